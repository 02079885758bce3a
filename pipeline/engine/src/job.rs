//! A job: one track asked for, and who asked.

use std::{pin::Pin, time::Instant};

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
    pub client: Box<dyn Client>,
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

/// Who asked for a track.
pub trait Client: Send + Sync {
    /// Whether the track may still be begun; if not, it ends without an outcome.
    fn may_begin(&self) -> bool;

    /// Whether the track is still wanted; if not, it ends without an outcome.
    fn is_wanted(&self) -> bool;

    /// Takes room for a block of `bytes`, as soon as there is some. `false` if the track is cancelled.
    fn room(&self, bytes: usize) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;

    /// Takes a block that is not the track's last, and that there is room for.
    fn take(&self, block: Block);

    /// Takes the end.
    fn end(self: Box<Self>, outcome: Outcome);
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
