//! A shard: one assigned partition, what is known of its records, and how far it may go.

use std::{sync::Arc, time::Instant};

use super::{
    lease::Lease,
    ledger::{Ledger, Place, Position, Tally},
    upstream::Upstream,
};
use crate::{
    run::{commit::output::Output, intake::blocks::OpenTracks},
    telemetry::metrics::Shard as Gauges,
};

/// One assigned partition.
pub struct Shard {
    /// Tells this assignment from an earlier one of the same partition, whose records may still be with workers.
    pub epoch: u64,
    pub ledger: Ledger<Output>,
    pub lease: Arc<Lease>,
    /// If the input is blocks.
    pub tracks: OpenTracks,
    pub phase: Phase,
    /// Not read for now, because its share of the bytes in flight is used up.
    pub full: bool,
    /// Nothing of it is sent for now.
    pub stop: Option<Stop>,
    pub upstream: Upstream,
    pub gauges: Gauges,
}

/// How far an assignment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is asked where to read from: nothing is read before the answer to this question.
    Asking { question: u64 },
    /// The topic does not have the partition: it is asked again before long, or the group takes it back.
    Missing,
    /// Records are read, from here on.
    Consuming { from: Position },
    /// No record is begun any more; those that are may finish until then.
    Draining { until: Instant },
}

/// Why a shard sends nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The record that the result at `place` came of is read again, for its reject.
    Rereading { place: Place },
    /// Nothing that the topic takes can be made of this result. It is tried again at `again`.
    Held { place: Place, reason: String, since: Instant, again: Instant },
}

/// A record whose result is still wanted, and that nobody works on any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Dropped;

impl Shard {
    pub fn new(epoch: u64, partition: i32, tally: &Tally) -> Self {
        Self {
            epoch,
            ledger: Ledger::new(tally.clone()),
            lease: Arc::default(),
            tracks: OpenTracks::default(),
            phase: Phase::Asking { question: 0 },
            full: false,
            stop: None,
            upstream: Upstream::default(),
            gauges: Gauges::new(partition),
        }
    }

    /// No record is begun any more, those that are may finish until `deadline`.
    pub fn drain(&mut self, deadline: Instant) {
        self.lease.wind_down();
        let until = match self.phase {
            Phase::Draining { until } => until.min(deadline),
            Phase::Asking { .. } | Phase::Missing | Phase::Consuming { .. } => deadline,
        };
        self.phase = Phase::Draining { until };
    }

    /// The record at `offset` gets no result here.
    ///
    /// # Errors
    /// It should have got one.
    pub fn cancel(&mut self, offset: i64) -> Result<(), Dropped> {
        if !self.is_draining() && self.lease.is_valid() {
            return Err(Dropped);
        }
        self.ledger.cancel(offset);
        Ok(())
    }

    /// Whether records may be taken from its queue.
    pub fn wants_more(&self) -> bool {
        matches!(self.phase, Phase::Consuming { .. }) && !self.full
    }

    /// How many outputs of the record at `offset` are committed already.
    pub fn committed_of(&self, offset: i64) -> u64 {
        match self.phase {
            Phase::Consuming { from } if from.offset == offset => from.outputs,
            _ => 0,
        }
    }

    /// Whether its results may be sent: what is late belongs to the partition's next owner.
    pub fn may_send(&self, now: Instant) -> bool {
        !self.is_late(now) && self.stop.is_none()
    }

    /// Whether its drain is over.
    pub fn is_late(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Draining { until } if now >= until)
    }

    pub fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. })
    }

    /// Whether its drain is done: nothing more will come of it, and nothing of it is sent and not committed.
    pub fn is_done(&self, now: Instant) -> bool {
        let ended = self.ledger.is_drained() || self.is_late(now) || self.stop.is_some();
        self.is_draining() && ended && !self.ledger.has_sent()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shard() -> Shard {
        let mut shard = Shard::new(1, 0, &Tally::default());
        shard.phase = Phase::Consuming { from: Position { offset: 7, outputs: 3 } };
        shard
    }

    #[test]
    fn a_shard_is_read_while_it_consumes_and_has_room() {
        let mut shard = shard();
        assert!(shard.wants_more());
        shard.full = true;
        assert!(!shard.wants_more());
        shard.full = false;
        shard.drain(Instant::now());
        assert!(!shard.wants_more());
        assert!(!Shard::new(1, 0, &Tally::default()).wants_more(), "it is not known where it starts");
    }

    #[test]
    fn an_earlier_deadline_of_a_drain_stays() {
        let (mut shard, now) = (shard(), Instant::now());
        shard.drain(now + Duration::from_secs(1));
        shard.drain(now + Duration::from_secs(9));
        assert!(!shard.is_late(now) && shard.is_late(now + Duration::from_secs(1)));
    }

    #[test]
    fn a_drained_shard_is_done_before_its_deadline() {
        let (mut shard, now) = (shard(), Instant::now());
        assert!(shard.ledger.accept(7, 10, 3));
        shard.drain(now + Duration::from_secs(1));
        assert!(!shard.is_done(now));
        assert_eq!(shard.cancel(7), Ok(()));
        assert!(shard.is_done(now));
    }

    #[test]
    fn a_record_that_is_still_wanted_must_not_be_dropped() {
        let mut shard = shard();
        assert!(shard.ledger.accept(7, 10, 3));
        assert_eq!(shard.cancel(7), Err(Dropped));
        shard.lease.revoke();
        assert_eq!(shard.cancel(7), Ok(()), "it was lost to another process");
    }

    #[test]
    fn only_the_record_it_started_with_has_outputs_that_are_committed() {
        assert_eq!((shard().committed_of(7), shard().committed_of(8)), (3, 0));
    }
}
