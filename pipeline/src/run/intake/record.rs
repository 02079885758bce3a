//! A record of the input topic, copied out of librdkafka's memory.

use std::{iter, sync::Arc};

use bytes::Bytes;
use rdkafka::{Message, message::BorrowedMessage};
use tonearm_schemas::reject::{Reject, RejectClass, Stage, header};

use crate::kafka::{
    headers::{self, Header},
    packed::{self, Oversize, Unpacked},
};

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
    /// If it is not here as it was published.
    pub missing: Option<Missing>,
}

/// Why parts of a record are not here.
#[derive(Clone, Debug)]
pub enum Missing {
    /// It is no longer in its topic: only what its track carried is known of it.
    Gone,
    /// It has more bytes than are unpacked of a record.
    TooLarge { found: Oversize, most: usize },
    /// Its batch cannot be read, for this reason: only its offset is known.
    Unreadable(Arc<str>),
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
            missing: None,
        }
    }

    /// One of a compressed batch, of which at most `most` bytes are unpacked.
    pub fn of_batch(topic: &Arc<str>, partition: i32, unpacked: Unpacked, most: usize) -> Self {
        let Unpacked { offset, timestamp_ms, key, value, headers, oversize } = unpacked;
        let missing = oversize.map(|found| Missing::TooLarge { found, most });
        Self { topic: Arc::clone(topic), partition, offset, key, value, headers, timestamp_ms, missing }
    }

    /// One that may be at an offset of a batch that cannot be read.
    pub fn unreadable(topic: &Arc<str>, partition: i32, offset: i64, why: &Arc<str>) -> Self {
        Self {
            topic: Arc::clone(topic),
            partition,
            offset,
            key: None,
            value: None,
            headers: Vec::new(),
            timestamp_ms: None,
            missing: Some(Missing::Unreadable(Arc::clone(why))),
        }
    }

    /// All records that a message stands for, from an offset on, up to where they cannot be read.
    pub fn all_of(topic: &Arc<str>, message: &BorrowedMessage<'_>, from: i64) -> Box<dyn Iterator<Item = Self>> {
        let Some(batch) = packed::batch(message) else { return Box::new(iter::once(Self::of(topic, message))) };
        let (topic, partition) = (Arc::clone(topic), message.partition());
        let mut records = batch.records().ok();
        Box::new(iter::from_fn(move || {
            let unpacked = records.as_mut()?.next(from, usize::MAX).ok()??;
            Some(Self::of_batch(&topic, partition, unpacked, usize::MAX))
        }))
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

impl Missing {
    /// What is to be said of it in a reject.
    pub fn headers(&self) -> Vec<Header> {
        let reduced = |why: &str| Header::new(header::REDUCED, why);
        match self {
            Self::Gone => {
                vec![reduced("the record is no longer in its topic; left out: its value and most of its headers")]
            }
            Self::TooLarge { found, .. } => {
                let why = "the record is not unpacked; left out: what is as large of its value, key and headers";
                let value = found.value.iter().flat_map(|(bytes, hash)| {
                    let hash = Header::new(header::VALUE_BLAKE3, hash.to_hex().as_bytes());
                    [Header::new(header::VALUE_BYTES, bytes.to_string()), hash]
                });
                value.chain([reduced(why)]).collect()
            }
            Self::Unreadable(_) => {
                vec![reduced("its batch cannot be read; left out: its key, value, headers and timestamp")]
            }
        }
    }

    /// Why there is nothing to decode.
    pub fn reject(&self) -> Option<Reject> {
        let (class, message) = match self {
            Self::Gone => return None,
            Self::TooLarge { found: Oversize { bytes, .. }, most } => {
                let message = format!(
                    "the record has {bytes} bytes; of a compressed one {most} are unpacked, limits.max_record_mib and a MiB"
                );
                (RejectClass::TooLarge, message)
            }
            Self::Unreadable(why) => (RejectClass::UnreadableBatch, why.to_string()),
        };
        Some(Reject::new(Stage::Decode, class, message))
    }
}

/// The `id` of a record's prediction.
pub fn id(topic: &str, partition: i32, offset: i64) -> String {
    format!("{topic}-{partition}-{offset}")
}
