//! What will go wrong, and when: the same for the same seed.

use std::fmt;

use crate::chance::Chance;

/// Members that are there from the beginning.
pub const MEMBERS: usize = 2;
/// The member that joins and leaves.
pub const GUEST: usize = MEMBERS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disturbance {
    /// kill -9, and soon a start with the same instance id.
    Kill,
    /// kill -9, and no start before another member has taken over.
    KillForLong,
    /// SIGTERM, and soon a start.
    Stop,
    /// SIGSTOP for longer than the session timeout, then SIGCONT.
    Freeze,
    /// SIGSTOP, a start with the same instance id elsewhere, then SIGCONT: the first process must end.
    Replace,
    Join,
    Leave,
    /// kill -9 of a broker, and a start.
    KillBroker,
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "kill -9, restart",
            Self::KillForLong => "kill -9, takeover",
            Self::Stop => "SIGTERM, restart",
            Self::Freeze => "SIGSTOP, SIGCONT",
            Self::Replace => "SIGSTOP, replaced",
            Self::Join => "join",
            Self::Leave => "leave",
            Self::KillBroker => "kill -9 of a broker",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub disturbance: Disturbance,
    /// A member counted from 0, or a broker counted from 1.
    pub victim: usize,
    /// Before it.
    pub pause_ms: u64,
    /// Until the victim comes back; on top of the session timeout where that is to pass.
    pub away_ms: u64,
    /// Whether all partitions make progress again before the next one comes.
    pub settles: bool,
}

/// `count` disturbances of workers, and of `brokers` brokers: 0 leaves them alone.
pub fn plan(seed: u64, count: usize, brokers: usize) -> Vec<Step> {
    use Disturbance::{Freeze, Join, Kill, KillBroker, KillForLong, Leave, Replace, Stop};
    // Dealt like cards, so that even a few have some of each kind.
    let mut deck = vec![Kill, Kill, Kill, Kill, KillForLong, Stop, Stop, Freeze, Replace, Join, Leave];
    if brokers > 0 {
        deck.extend([KillBroker, KillBroker]);
    }
    let mut chance = Chance::of(seed);
    let mut dealt = Vec::new();
    let mut guest = false;
    let mut steps: Vec<Step> = Vec::with_capacity(count);
    while steps.len() < count {
        if dealt.is_empty() {
            dealt.clone_from(&deck);
        }
        let mut disturbance = dealt.swap_remove(chance.below(dealt.len() as u64) as usize);
        if matches!(disturbance, Join | Leave) {
            disturbance = if guest { Leave } else { Join };
            guest = !guest;
        }
        let victim = match disturbance {
            Join | Leave => GUEST,
            KillBroker => 1 + chance.below(brokers as u64) as usize,
            _ => chance.below(MEMBERS as u64 + u64::from(guest)) as usize,
        };
        let away_ms = match disturbance {
            // One in four stays away longer than a transaction may last, which is 5 s and the commit interval.
            KillBroker if chance.below(4) == 0 => 12_000 + chance.below(3_000),
            KillBroker => chance.below(4_000),
            _ => chance.below(2_000),
        };
        // These two are measured, or wait for one another: they start from a group that is well.
        if let (KillForLong | Replace | KillBroker, Some(before)) = (disturbance, steps.last_mut()) {
            before.settles = true;
        }
        // The time of a takeover is a promise, so each is measured.
        let settles = chance.below(5) > 0 || matches!(disturbance, KillBroker | KillForLong);
        steps.push(Step { disturbance, victim, pause_ms: chance.below(2_000), away_ms, settles });
    }
    if let Some(last) = steps.last_mut() {
        last.settles = true;
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_says_it_all() {
        assert_eq!(plan(7, 200, 3), plan(7, 200, 3));
        assert_ne!(plan(7, 200, 3), plan(8, 200, 3));
        assert_eq!(plan(7, 200, 3)[..50].len(), plan(7, 50, 3).len());
    }

    #[test]
    fn a_full_deck_has_every_kind() {
        for seed in 0..100 {
            let kinds = |steps: &[Step]| steps.iter().map(|step| step.disturbance).collect::<BTreeSet<_>>().len();
            assert_eq!(kinds(&plan(seed, 13, 3)), 8);
            assert_eq!(kinds(&plan(seed, 11, 0)), 7);
        }
    }

    #[test]
    fn only_who_is_there_is_disturbed() {
        for seed in 0..100 {
            let mut guest = false;
            for step in plan(seed, 200, 3) {
                match step.disturbance {
                    Disturbance::Join => assert!(!std::mem::replace(&mut guest, true)),
                    Disturbance::Leave => assert!(std::mem::replace(&mut guest, false)),
                    Disturbance::KillBroker => assert!((1..=3).contains(&step.victim)),
                    _ => assert!(step.victim < MEMBERS || (guest && step.victim == GUEST)),
                }
            }
        }
    }
}
