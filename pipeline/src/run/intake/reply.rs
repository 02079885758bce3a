//! What the engine asks and tells of a track on its way.

use std::{pin::Pin, sync::Arc};

use tonearm_engine::{Block, Client};

use super::receipt::Receipt;
use crate::run::commit::output::{Of, Routes};

/// Answers for a track with the record that stands for it: the encoded one, or that of its first block.
pub struct Reply {
    pub receipt: Receipt,
    pub routes: Arc<Routes>,
    pub of: Arc<Of>,
}

impl Client for Reply {
    fn may_begin(&self) -> bool {
        self.receipt.lease().may_begin()
    }

    fn is_wanted(&self) -> bool {
        self.receipt.lease().is_valid()
    }

    fn room(&self, bytes: usize) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(self.receipt.room(bytes))
    }

    fn take(&self, block: Block) {
        let bytes = block.bytes();
        self.receipt.output(self.routes.block(&self.of, block), bytes);
    }
}
