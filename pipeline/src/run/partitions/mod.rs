//! The partitions this process has: how they come and go, and what is known of their records.

pub mod assignment;
pub mod input;
pub mod lease;
pub mod ledger;
pub mod membership;
pub mod positions;
pub mod recover;
pub mod shard;
pub mod unpacker;
pub mod upstream;
pub mod watch;
pub mod whereabouts;
pub mod window;
