//! Why a record could not become a prediction, and the headers that say so on the rejects topic.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The reason for a reject: a closed list, the same words in headers, metrics, logs and `inspect --json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RejectClass {
    /// The record has no value, or one of zero bytes.
    EmptyRecord,
    /// The container or codec is not one Tonearm decodes, or not in this form (HE-AAC, DRM, more than 8 channels, …).
    UnsupportedFormat,
    /// The container or codec is known, but its bytes break its rules or end early.
    CorruptAudio,
    /// The container is readable and holds no audio track, or one without a single frame.
    NoAudioTrack,
    /// The batch that the record is in cannot be unpacked.
    UnreadableBatch,
    /// The value is larger than `limits.max_record_mib`.
    TooLarge,
    /// The audio is longer than `limits.max_duration_s`.
    TooLong,
    /// The audio is shorter than the model's manifest accepts.
    TooShort,
    /// The decoder panicked on these bytes.
    DecoderCrash,
    /// The model failed on these windows, or gave scores that are not finite numbers.
    ModelFailure,
    /// A record between two stages is no block, is not in its track's order, or was made for another model.
    InvalidBlock,
    /// The result is there, but its topic does not take it: too large, or against the topic's rules.
    ResultRefused,
    /// A stage other than the decoder panicked: a bug of Tonearm's, met by this record.
    InternalError,
}

impl RejectClass {
    /// Every class, in the order of the documentation.
    pub const ALL: [Self; 13] = [
        Self::EmptyRecord,
        Self::UnsupportedFormat,
        Self::CorruptAudio,
        Self::NoAudioTrack,
        Self::UnreadableBatch,
        Self::TooLarge,
        Self::TooLong,
        Self::TooShort,
        Self::DecoderCrash,
        Self::ModelFailure,
        Self::InvalidBlock,
        Self::ResultRefused,
        Self::InternalError,
    ];

    /// The word that travels: `unsupported-format`, …
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmptyRecord => "empty-record",
            Self::UnsupportedFormat => "unsupported-format",
            Self::CorruptAudio => "corrupt-audio",
            Self::NoAudioTrack => "no-audio-track",
            Self::UnreadableBatch => "unreadable-batch",
            Self::TooLarge => "too-large",
            Self::TooLong => "too-long",
            Self::TooShort => "too-short",
            Self::DecoderCrash => "decoder-crash",
            Self::ModelFailure => "model-failure",
            Self::InvalidBlock => "invalid-block",
            Self::ResultRefused => "result-refused",
            Self::InternalError => "internal-error",
        }
    }
}

impl fmt::Display for RejectClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names of the headers on a rejected record, those of Kafka Connect's dead letter queues.
///
/// All values are UTF-8 text; partition and offset are decimal.
pub mod header {
    /// The topic the record was read from.
    pub const TOPIC: &str = "__connect.errors.topic";
    /// The partition it was read from.
    pub const PARTITION: &str = "__connect.errors.partition";
    /// Its offset there.
    pub const OFFSET: &str = "__connect.errors.offset";
    /// The stage that rejected it: `decode`, `features` or `infer`.
    pub const STAGE: &str = "__connect.errors.stage";
    /// A [`RejectClass`](super::RejectClass).
    pub const CLASS: &str = "__connect.errors.exception.class.name";
    /// One sentence for a person.
    pub const MESSAGE: &str = "__connect.errors.exception.message";
    /// On a reject without its record's value: how many bytes that has, decimal.
    pub const VALUE_BYTES: &str = "tonearm.value.bytes";
    /// On a reject without its record's value: BLAKE3 of that, 64 hexadecimal digits.
    pub const VALUE_BLAKE3: &str = "tonearm.value.blake3";
    /// On a reject that does not keep its record's timestamp: that, in milliseconds since 1970, decimal.
    pub const TIMESTAMP: &str = "tonearm.timestamp";
    /// On a reject that is not as its record came: why, and what was left out.
    pub const REDUCED: &str = "tonearm.reduced";

    /// All of them.
    pub const ALL: [&str; 10] =
        [TOPIC, PARTITION, OFFSET, STAGE, CLASS, MESSAGE, VALUE_BYTES, VALUE_BLAKE3, TIMESTAMP, REDUCED];

    /// Whether a header of this name is a reject's own: a record that has some was rejected before.
    pub fn is_ours(name: &[u8]) -> bool {
        ALL.iter().any(|ours| ours.as_bytes() == name)
    }
}

/// Characters a message has at most.
pub const MESSAGE_CHARS: usize = 300;

/// The stage a record was rejected in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Decode,
    Features,
    Infer,
}

impl Stage {
    /// The stages in the order a record passes them.
    pub const ALL: [Self; 3] = [Self::Decode, Self::Features, Self::Infer];

    /// The stage's word in headers, metrics and `--stages`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Features => "features",
            Self::Infer => "infer",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why one record was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    pub stage: Stage,
    pub class: RejectClass,
    /// One sentence: what is wrong, the value found, what is allowed.
    pub message: String,
}

impl Reject {
    /// A message of more than [`MESSAGE_CHARS`] is cut.
    pub fn new(stage: Stage, class: RejectClass, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS) {
            let cut = message[..end].char_indices().next_back().map_or(0, |(last, _)| last);
            message.truncate(cut);
            message.push('…');
        }
        Self { stage, class, message }
    }

    /// The reject's headers, for a record read from `topic`, `partition` and `offset`, in a fixed order.
    pub fn headers(&self, topic: &str, partition: i32, offset: i64) -> [(&'static str, String); 6] {
        [
            (header::TOPIC, topic.to_owned()),
            (header::PARTITION, partition.to_string()),
            (header::OFFSET, offset.to_string()),
            (header::STAGE, self.stage.to_string()),
            (header::CLASS, self.class.to_string()),
            (header::MESSAGE, self.message.clone()),
        ]
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}: {}", self.class, self.stage, self.message)
    }
}

impl std::error::Error for Reject {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_any_length_is_cut() {
        let message = |chars: usize| Reject::new(Stage::Decode, RejectClass::TooLong, "ü".repeat(chars)).message;
        assert_eq!(message(MESSAGE_CHARS), "ü".repeat(MESSAGE_CHARS));
        let cut = message(MESSAGE_CHARS + 1);
        assert_eq!((cut.chars().count(), cut.ends_with("ü…")), (MESSAGE_CHARS, true));
    }

    #[test]
    fn the_word_of_a_class_is_the_same_in_json() {
        for class in RejectClass::ALL {
            assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
        }
        for stage in Stage::ALL {
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.as_str());
        }
    }
}
