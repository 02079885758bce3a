//! Records on their way in: copied out of librdkafka, and worked on as tracks of the engine.

pub mod blocks;
pub mod encoded;
pub mod originals;
pub mod receipt;
pub mod record;
pub mod reply;
