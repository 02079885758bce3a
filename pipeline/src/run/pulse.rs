//! What a run says of itself each second: its gauges, and what `/health/ready` answers from.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tonearm_engine::Engine;

use super::partitions::{
    membership::Seen,
    shard::{Phase, Shard, Stop},
};
use crate::telemetry::{health::Check, metrics};

/// A member without partitions is a spare after this long: until then it may be waiting for those of one that died.
/// Brokers take 6 s to 45 s for a session by default, and whoever waits longer is as good as a spare.
const SPARE_AFTER: Duration = Duration::from_secs(15);
/// A track that has made no step forward on its worker for this long is stuck, and results that are not committed for
/// this long, or for longer than a transaction may take, wait for something.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// A partition without leader is an input that cannot be read after this long: until then it is getting another one.
const LEADERLESS_AFTER: Duration = Duration::from_secs(5);
/// A worker that is stuck is named in the log this often.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// How commits go.
#[derive(Clone, Debug, Default)]
pub struct Commits {
    /// How many transactions in a row were aborted, and why the last one was.
    pub aborts: u32,
    pub reason: String,
    /// What is waited for before the next one can be begun.
    pub obstacle: Option<String>,
    /// For how long one has been under way, if one is.
    pub busy: Option<Duration>,
    /// How long one may take.
    pub granted: Duration,
}

/// Brings the gauges of the shards up to date.
pub fn gauges(shards: &mut BTreeMap<i32, Shard>, seen: &Seen) {
    for (partition, shard) in &mut *shards {
        if let Some(ends) = seen.ends.get(partition) {
            shard.gauges.ends_at(ends.log);
            // Behind the last record there may be markers of its producer's transactions, which nobody reads.
            if let Some(read) = ends.read.filter(|read| *read > shard.gauges.committed_at()) {
                shard.ledger.note_end(read);
            }
            if let Some(waits) = shard.upstream.watch(*ends, shard.gauges.committed_at(), Instant::now()) {
                tracing::warn!(
                    partition,
                    offset = ends.stable,
                    "the partition has waited for {} s for an open transaction of its producer: what is behind this \
                     offset can be read once the transaction ends",
                    waits.as_secs()
                );
            }
        }
        shard.gauges.refresh();
    }
    metrics::shards(shards.len(), shards.values().filter(|shard| shard.full).count());
    metrics::held(held(shards).count());
}

/// What must hold of what a run has to do with brokers.
pub fn checks(shards: &mut BTreeMap<i32, Shard>, seen: &Seen, commits: &Commits) -> Vec<Check> {
    let works = shards.values().any(|shard| matches!(shard.phase, Phase::Consuming { .. }));
    let asks = shards.values().any(|shard| matches!(shard.phase, Phase::Asking { .. }));
    let is_spare = !asks && seen.member_since.is_some_and(|since| since.elapsed() >= SPARE_AFTER);
    let waits = shards.values_mut().any(|shard| shard.stop.is_none() && shard.ledger.next_to_send().is_some());
    let late = late(commits, waits);
    let held: Vec<String> = held(shards).collect();
    let unreadable = seen.unreadable.clone().or_else(|| leaderless(shards, seen));
    vec![
        Check::new("connected", seen.connected != Some(false), || "no broker answers".to_owned()),
        Check::new("group", seen.excluded.is_none(), || seen.excluded.clone().unwrap_or_default()),
        Check::new("input", unreadable.is_none(), || unreadable.unwrap_or_default()),
        Check::new("partitions", works || is_spare, || match asks {
            true => "it is not known yet from where the partitions are to be read".to_owned(),
            false => "no partition is assigned yet".to_owned(),
        }),
        Check::new("commits", late.is_none(), || late.unwrap_or_default()),
        Check::new("held", held.is_empty(), || held.join("; ")),
    ]
}

/// What keeps partitions of ours from being read if brokers are connected and theirs is not.
fn leaderless(shards: &BTreeMap<i32, Shard>, seen: &Seen) -> Option<String> {
    let late = seen.leaderless.iter().filter(|(_, since)| since.elapsed() >= LEADERLESS_AFTER);
    let ours = late.filter(|(partition, _)| shards.contains_key(partition));
    let partitions: Vec<String> = ours.map(|(partition, _)| partition.to_string()).collect();
    (seen.connected == Some(true) && !partitions.is_empty())
        .then(|| format!("no broker that leads partition {} answers", partitions.join(", ")))
}

/// What keeps results that are finished from being committed, if they `wait` or are under way.
fn late(commits: &Commits, wait: bool) -> Option<String> {
    if commits.obstacle.is_some() {
        return commits.obstacle.clone();
    }
    // A single one is void for every rebalance.
    if commits.aborts > 1 && (wait || commits.busy.is_some()) {
        return Some(format!("{} transactions in a row were aborted, the last: {}", commits.aborts, commits.reason));
    }
    let busy = commits.busy.filter(|busy| *busy >= STUCK_AFTER.max(commits.granted))?;
    Some(format!("a transaction has been under way for {} s", busy.as_secs()))
}

/// Partitions whose next result no topic takes, and why.
fn held(shards: &BTreeMap<i32, Shard>) -> impl Iterator<Item = String> {
    shards.iter().filter_map(|(partition, shard)| match &shard.stop {
        Some(Stop::Held { place, reason, .. }) => {
            Some(format!("partition {partition} at offset {}: {reason}", place.offset))
        }
        _ => None,
    })
}

/// What must hold of the workers. `said` is when the log last named one that is stuck.
pub fn workers(engine: &Engine, said: &mut Option<Instant>) -> Check {
    let mut stuck = engine.stuck(STUCK_AFTER);
    // Several workers may be at one track.
    stuck.dedup_by(|one, other| one.id == other.id);
    let stuck: Vec<String> =
        stuck.iter().map(|at| format!("{} in {} for {} s", at.id, at.stage, at.still.as_secs())).collect();
    let check = Check::new("workers", stuck.is_empty(), || format!("no progress: {}", stuck.join("; ")));
    if check.ok {
        *said = None;
    } else if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
        *said = Some(Instant::now());
        tracing::warn!("workers make {}", check.detail);
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::partitions::{
        ledger::{Place, Position, Tally},
        shard::Shard,
    };

    fn consuming() -> BTreeMap<i32, Shard> {
        let mut shard = Shard::new(1, 3, &Tally::default());
        shard.phase = Phase::Consuming { from: Position { offset: 0, outputs: 0 } };
        BTreeMap::from([(3, shard)])
    }

    fn failing(mut shards: BTreeMap<i32, Shard>, seen: &Seen, commits: &Commits) -> Vec<(&'static str, String)> {
        let checks = checks(&mut shards, seen, commits).into_iter();
        checks.filter(|check| !check.ok).map(|check| (check.name, check.detail)).collect()
    }

    #[test]
    fn nothing_is_said_of_what_holds() {
        assert_eq!(failing(consuming(), &Seen::default(), &Commits::default()), []);
    }

    #[test]
    fn a_member_without_partitions_is_ready_once_it_is_a_spare() {
        let member =
            |secs| Seen { member_since: Instant::now().checked_sub(Duration::from_secs(secs)), ..Seen::default() };
        assert_eq!(failing(BTreeMap::new(), &member(1), &Commits::default())[0].0, "partitions");
        assert_eq!(failing(BTreeMap::new(), &member(15), &Commits::default()), []);
        let asking = BTreeMap::from([(0, Shard::new(1, 0, &Tally::default()))]);
        let (name, detail) = failing(asking, &member(15), &Commits::default()).remove(0);
        assert!(
            name == "partitions" && detail.contains("from where"),
            "it has partitions, so it is no spare: {detail}"
        );
    }

    #[test]
    fn an_input_that_cannot_be_read_is_said_even_of_a_spare() {
        let since = Instant::now().checked_sub(SPARE_AFTER);
        let seen = Seen { member_since: since, unreadable: Some("no such topic".to_owned()), ..Seen::default() };
        assert_eq!(failing(BTreeMap::new(), &seen, &Commits::default()), [("input", "no such topic".to_owned())]);
    }

    #[test]
    fn a_partition_without_leader_is_named_if_it_is_ours_and_stays_so() {
        let seen = |partition, secs| {
            let since = Instant::now().checked_sub(Duration::from_secs(secs)).expect("a time");
            Seen { connected: Some(true), leaderless: BTreeMap::from([(partition, since)]), ..Seen::default() }
        };
        let said = "no broker that leads partition 3 answers".to_owned();
        assert_eq!(failing(consuming(), &seen(3, 5), &Commits::default()), [("input", said)]);
        for seen in [seen(3, 1), seen(4, 5), Seen { connected: None, ..seen(3, 5) }] {
            assert_eq!(failing(consuming(), &seen, &Commits::default()), []);
        }
    }

    #[test]
    fn a_held_partition_is_named_with_its_offset() {
        let mut shards = consuming();
        let (place, now) = (Place { offset: 7, number: 0 }, Instant::now());
        let stop = Stop::Held { place, reason: "too large".to_owned(), since: now, again: now };
        shards.get_mut(&3).expect("a shard").stop = Some(stop);
        let said = "partition 3 at offset 7: too large".to_owned();
        assert_eq!(failing(shards, &Seen::default(), &Commits::default()), [("held", said)]);
    }

    #[test]
    fn transactions_that_are_aborted_matter_while_results_wait() {
        let commits = |aborts, busy| Commits { aborts, reason: "fenced".to_owned(), busy, ..Commits::default() };
        assert_eq!(late(&commits(1, Some(Duration::ZERO)), true), None, "one abort comes with every rebalance");
        assert_eq!(late(&commits(2, None), false), None, "nothing is to be committed any more");
        for late in [late(&commits(2, None), true), late(&commits(2, Some(Duration::ZERO)), false)] {
            assert_eq!(late.as_deref(), Some("2 transactions in a row were aborted, the last: fenced"));
        }
    }

    #[test]
    fn a_transaction_that_takes_no_longer_than_it_may_is_not_late() {
        let open = |secs| Commits {
            busy: Some(Duration::from_secs(secs)),
            granted: Duration::from_secs(30),
            ..Commits::default()
        };
        assert_eq!(late(&open(29), true), None);
        assert!(late(&open(30), false).is_some());
    }
}
