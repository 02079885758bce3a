//! A job: one track asked for, and who asked.

use std::{any::Any, pin::Pin, time::Instant};

use bytes::Bytes;
use tonearm_schemas::{
    block::BlockHead,
    prediction::{Prediction, Source},
    reject::Reject,
};

/// One encoded track asked for. It owns its bytes.
pub struct Job {
    pub origin: Origin,
    pub bytes: Bytes,
    /// A hint for messages; the bytes decide.
    pub content_type: Option<String>,
    pub caller: Box<dyn Caller>,
}

/// Which track it is.
#[derive(Clone, Debug)]
pub struct Origin {
    pub id: String,
    pub key: Option<String>,
    pub source: Source,
    /// When this process read it, for the time it waited.
    pub received: Instant,
}

/// Who asked for a track, and hears how it ends.
pub trait Caller: Send + Sync {
    fn client(&self) -> &dyn Client;

    fn end(self: Box<Self>, outcome: Outcome);
}

/// Who a track is for, while it is worked on.
pub trait Client: Send + Sync {
    /// Whether the track may still be begun; if not, it ends without an outcome.
    fn may_begin(&self) -> bool;

    /// Whether the track is still wanted; if not, it ends without an outcome.
    fn is_wanted(&self) -> bool;

    /// Takes room for a block of `bytes`, as soon as there is some. `false` if the track is cancelled.
    fn room(&self, bytes: usize) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;

    /// Takes a block that is not the track's last, and that there is room for.
    fn take(&self, block: Block);
}

/// How a track ends in this process.
pub enum Outcome {
    Prediction(Box<Prediction>),
    /// The track's last block, for the next stage.
    Block(Block),
    Reject {
        reject: Reject,
        /// Tells the next stage, if it has blocks of the track.
        last: Option<Block>,
    },
}

/// Values in a block, so that it stays below Kafka's default limit of 1 MiB for a record. Windows larger than this are
/// a block of their own.
pub const BLOCK_VALUES: usize = 1 << 17;

/// A block, as the next stage reads it.
pub struct Block {
    pub head: BlockHead,
    pub value: Vec<u8>,
}

impl Block {
    /// What it weighs: its values, and what its head takes at most.
    pub fn bytes(&self) -> usize {
        self.value.len()
    }
}

/// Why a track does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Reject(#[from] Reject),
    /// Its client does not want it any more.
    #[error("cancelled")]
    Cancelled,
}

/// What a panic said.
pub(crate) fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
