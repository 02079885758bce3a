//! What is done about a result that its topic refuses: the steps of the [`ladder`], carried out in its shard.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use super::{
    commit::{
        ladder::{self, Step},
        outbox::{Outbox, Refused, Sending, Sent},
        output::{Routes, What},
    },
    intake::{originals::Originals, record::Record},
    partitions::{
        ledger::Place,
        shard::{Shard, Stop},
    },
};

/// A result that is held is tried again this often, and named in the log this often.
const TRY_AGAIN: Duration = Duration::from_secs(5);
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// The record of a refused result, read again for its reject.
pub struct Reread {
    pub sent: Sent,
    record: Record,
    message: String,
}

/// A result was refused for good: something else takes its place, once it is sure that it was this one.
pub fn step_down(shard: &mut Shard, refused: Refused, originals: &Originals, reread: &Sender<Reread>) {
    let Refused { sent, code, proven } = refused;
    let Sent { partition, place, .. } = sent;
    let Some(output) = shard.ledger.output(place) else { return };
    if !proven {
        output.alone = true;
        return;
    }
    match ladder::next(output, code) {
        Step::Write(record, form) => {
            tracing::info!(record = output.of.id(), topic = &*record.topic, "a reject is written plainer: {code}");
            if let What::Reject(_, written) = &mut output.what {
                *written = form;
            }
            output.record = *record;
            output.alone = true;
        }
        Step::Reject(message) => {
            let (of, lease, reread) = (Arc::clone(&output.of), Arc::clone(&shard.lease), reread.clone());
            shard.stop = Some(Stop::Rereading { place });
            originals.ask(&of, lease, move |record| _ = reread.send(Reread { sent, record, message }));
        }
        Step::Hold(reason) => hold(shard, partition, place, reason),
    }
}

/// The record of a refused result is here: its reject takes the result's place.
pub fn reject(shard: &mut Shard, reread: Reread, routes: &Routes) {
    let Reread { sent: Sent { place, .. }, record, message } = reread;
    shard.stop = None;
    let Some(output) = shard.ledger.output(place) else { return };
    let outputs = routes.refused(&output.of, record, &output.what, message);
    let outputs = outputs.into_iter().map(|output| {
        let bytes = output.bytes();
        (output, bytes)
    });
    for gone in shard.ledger.replace(place, outputs.collect()) {
        shard.lease.release(gone.reserved);
    }
}

/// Holds a shard: nothing of it is sent until a topic takes the result at `place`.
fn hold(shard: &mut Shard, partition: i32, place: Place, reason: String) {
    let now = Instant::now();
    let said = match &shard.stop {
        Some(Stop::Held { since, .. }) if now.duration_since(*since) < SAY_AGAIN => Some(*since),
        _ => None,
    };
    if said.is_none() {
        tracing::error!(
            partition,
            offset = place.offset,
            "held: {reason}; mend the topic, or stop the group's processes and pass over the record with `tonearm offsets \
             skip --partition {partition}`"
        );
    }
    shard.stop = Some(Stop::Held { place, reason, since: said.unwrap_or(now), again: now + TRY_AGAIN });
}

/// Tries a held result once more, in a transaction of its own.
pub fn try_again(shard: &mut Shard, outbox: &mut Outbox, partition: i32, now: Instant) {
    let epoch = shard.epoch;
    let Some((place, _)) = shard.ledger.next_to_send() else { return };
    if let Some(output) = shard.ledger.output(place) {
        output.alone = true;
    }
    let Some((_, output)) = shard.ledger.next_to_send() else { return };
    if outbox.send(output, Sent { partition, epoch, place }) == Sending::Taken {
        shard.ledger.mark_sent();
        if let Some(Stop::Held { again, .. }) = &mut shard.stop {
            *again = now + TRY_AGAIN;
        }
    }
}
