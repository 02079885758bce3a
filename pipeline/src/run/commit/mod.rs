//! Results on their way out: what a track made → records → a transaction with the positions of their inputs.

pub mod allowance;
pub mod committer;
pub mod deliveries;
pub mod ladder;
pub mod outbox;
pub mod output;
pub mod transaction;
pub mod watchdog;
