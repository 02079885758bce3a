//! Records that are odd and may be published: none of them may keep a good one from its result.

use crate::{
    audio::wav,
    broker::{Topics, topic_config},
    chance::Chance,
    records::{Input, now_ms},
};

/// Years from now.
const FAR_MS: i64 = 10 * 365 * 24 * 60 * 60 * 1_000;
const MIB: usize = 1 << 20;
/// Of a value which is rejected, so that a reject is larger than what Kafka takes by default (1 MiB and 12 bytes) by
/// some bytes or by none, as its headers and its key are short or long.
const ABOUT_A_MIB: std::ops::Range<usize> = MIB - 1_200..MIB - 100;

/// What may be odd about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    /// A header whose name is no UTF-8.
    HeaderName,
    /// A header without a name, one without a value, one twice.
    OddHeaders,
    ManyHeaders,
    /// Headers that pass to predictions, hundreds of kilobytes each.
    LargeHeaders,
    /// Headers as a reject has them, of a record that was none.
    HeadersOfARejected,
    NoKey,
    EmptyKey,
    LargeKey,
    /// A key of control characters and of bytes that are no text.
    OddKey,
    FarFuture,
    Ancient,
    NoValue,
    EmptyValue,
    RandomBytes,
    AboutAMebibyte,
}

impl Poison {
    pub const ALL: [Self; 15] = [
        Self::HeaderName,
        Self::OddHeaders,
        Self::ManyHeaders,
        Self::LargeHeaders,
        Self::HeadersOfARejected,
        Self::NoKey,
        Self::EmptyKey,
        Self::LargeKey,
        Self::OddKey,
        Self::FarFuture,
        Self::Ancient,
        Self::NoValue,
        Self::EmptyValue,
        Self::RandomBytes,
        Self::AboutAMebibyte,
    ];

    /// The `n`th record of a feed, of this kind: half of them audio where that is not the oddity. Its key is its own.
    pub fn input(self, n: usize, partition: i32, chance: &mut Chance) -> Input {
        let value = match chance.below(2) {
            0 => wav(80.0 + (n % 400) as f32, 0.3, 8_000, 1),
            _ => noise(100, chance),
        };
        let mut input = Input::new(partition, &format!("poison-{n}"), value);
        let mut header = |name: &[u8], value: Option<Vec<u8>>| input.headers.push((name.to_vec(), value));
        match self {
            Self::HeaderName => {
                header(b"\xff\xfe", Some(b"x".to_vec()));
                let bytes = 1 + chance.below(40);
                let name: Vec<u8> = (0..bytes).map(|_| 1 + chance.below(255) as u8).collect();
                header(&name, Some(noise(10, chance)));
            }
            Self::OddHeaders => {
                header(b"", Some(b"nameless".to_vec()));
                header(b"x-null", None);
                header(b"x-twice", Some(Vec::new()));
                header(b"x-twice", Some(b"\x1b[31m\n\0".to_vec()));
                header(b"traceparent", Some(vec![0xff; 55]));
                header(b"content-type", None);
            }
            Self::ManyHeaders => (0..2_000).for_each(|nth| header(format!("x-{nth}").as_bytes(), Some(vec![b'x'; 3]))),
            Self::LargeHeaders => {
                header(b"content-type", Some(noise(600_000, chance)));
                header(b"ce_large", Some(noise(600_000, chance)));
            }
            Self::HeadersOfARejected => {
                header(b"__connect.errors.topic", Some(b"elsewhere".to_vec()));
                header(b"__connect.errors.partition", Some(b"77".to_vec()));
                header(b"__connect.errors.offset", Some(b"no number".to_vec()));
                header(b"__connect.errors.exception.class.name", Some(vec![0xff]));
            }
            Self::NoKey => input.key = None,
            Self::EmptyKey => input.key = Some(Vec::new()),
            Self::LargeKey => {
                input.key = Some([format!("poison-{n}-").into_bytes(), noise(900_000, chance)].concat());
                // With its key it is too large for a reject, and without a prediction's few bytes for nothing else.
                if chance.below(2) == 0 {
                    input.value = Some(noise(300_000, chance));
                }
            }
            Self::OddKey => input.key = Some([b"\x1b]0;\xff\0\n".as_slice(), &n.to_be_bytes()].concat()),
            Self::FarFuture => input.timestamp_ms = Some(now_ms() + FAR_MS),
            Self::Ancient => input.timestamp_ms = Some(1),
            Self::NoValue => input.value = None,
            Self::EmptyValue => input.value = Some(Vec::new()),
            Self::RandomBytes => {
                let bytes = 1 + chance.below(50_000) as usize;
                input.value = Some((0..bytes).map(|_| chance.below(256) as u8).collect());
            }
            Self::AboutAMebibyte => {
                let bytes = ABOUT_A_MIB.start as u64 + chance.below(ABOUT_A_MIB.len() as u64);
                input.value = Some(noise(bytes as usize, chance));
            }
        }
        input
    }
}

/// One of all kinds.
pub fn any(n: usize, partition: i32, chance: &mut Chance) -> Input {
    let kind = Poison::ALL[chance.below(Poison::ALL.len() as u64) as usize];
    kind.input(n, partition, chance)
}

/// Gives topics limits, as other people set them, that results of poison do not keep; `compacted` ones take no record
/// without a key.
pub fn limit(topics: &Topics, compacted: &[&str]) {
    const HOUR_MS: &str = "3600000";
    let Topics { audio, predictions, rejected, .. } = topics;
    // Takes whatever is published.
    topic_config(audio, "max.message.bytes", "10000000");
    topic_config(audio, "message.timestamp.after.max.ms", &i64::MAX.to_string());
    for topic in [predictions, rejected] {
        // Kafka's default.
        topic_config(topic, "max.message.bytes", "1048588");
        topic_config(topic, "message.timestamp.before.max.ms", HOUR_MS);
        topic_config(topic, "message.timestamp.after.max.ms", HOUR_MS);
    }
    for topic in compacted {
        topic_config(topic, "cleanup.policy", "compact");
        // Never really compacted, or results of equal keys would be lost.
        topic_config(topic, "min.compaction.lag.ms", "1000000000000000");
    }
    // Records of any time stay where they are.
    [audio, predictions, rejected].iter().for_each(|topic| topic_config(topic, "retention.ms", "-1"));
}

/// Bytes that no container starts with, and that compress to nothing less.
pub fn noise(bytes: usize, chance: &mut Chance) -> Vec<u8> {
    // No container starts with a zero byte and this many different ones.
    std::iter::once(0).chain((1..bytes).map(|_| chance.below(256) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_keys_of_its_own_and_is_made_again_by_its_seed() {
        for kind in Poison::ALL {
            let make = |n, seed| kind.input(n, 0, &mut Chance::of(seed));
            let (first, again, other) = (make(1, 7), make(1, 7), make(2, 7));
            let shared = [Poison::NoKey, Poison::EmptyKey].contains(&kind);
            assert_eq!(first.key == other.key, shared, "{kind:?}");
            assert_eq!((&first.headers, &first.value), (&again.headers, &again.value), "{kind:?}");
        }
    }
}
