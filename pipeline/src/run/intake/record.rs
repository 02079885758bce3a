//! A record of the input topic, copied out of librdkafka's memory.

use std::sync::Arc;

use bytes::Bytes;
use rdkafka::{Message, message::BorrowedMessage};

use crate::kafka::headers::{self, Header};

/// One record, as it came.
#[derive(Clone, Debug)]
pub struct Record {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
    /// Milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
    /// It is no longer in its topic: only what its track carried is known of it.
    pub gone: bool,
}

impl Record {
    pub fn of(topic: &Arc<str>, message: &BorrowedMessage<'_>) -> Self {
        Self {
            topic: Arc::clone(topic),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(Bytes::copy_from_slice),
            value: message.payload().map(Bytes::copy_from_slice),
            headers: headers::read(message),
            timestamp_ms: message.timestamp().to_millis(),
            gone: false,
        }
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        len(&self.key) + len(&self.value) + self.headers.iter().map(Header::bytes).sum::<usize>()
    }

    /// Its key, if that is UTF-8 text.
    pub fn track(&self) -> Option<String> {
        std::str::from_utf8(self.key.as_deref()?).ok().map(str::to_owned)
    }
}

/// The `id` of a record's prediction.
pub fn id(topic: &str, partition: i32, offset: i64) -> String {
    format!("{topic}-{partition}-{offset}")
}
