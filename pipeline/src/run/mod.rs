//! `tonearm run`: the loop that reads records, has the engine work on them, and writes what comes of them.
//!
//! One thread owns the consumer and all shards, so there is nothing to lock: it takes what has happened (rebalances,
//! records, reports, commits), then does what is due (send, commit, give partitions back). It neither computes nor
//! waits for brokers, so membership in the group does not depend on how long records or commits take.

mod commit;
mod error;
mod intake;
mod partitions;
mod pulse;
mod refusal;
mod start;
mod turns;

pub use self::{error::RunError, start::run, turns::COMMIT_GRACE};
