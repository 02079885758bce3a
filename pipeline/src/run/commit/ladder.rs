//! What becomes of a result that its topic refuses for good: something smaller or plainer, down to where nothing is
//! left.
//!
//! A prediction or block becomes a reject of class `result-refused`, with its record as it came. A reject first loses
//! the one thing that was refused, if that is known, then all that a topic may refuse. If even that is refused, its
//! partition is held.

use std::sync::Arc;

use bytes::Bytes;
use rdkafka::error::RDKafkaErrorCode as Code;
use tonearm_schemas::reject::header;

use super::output::{Form, OutRecord, Output, What};
use crate::kafka::headers::Header;

/// Bytes that a key, or a header with its name, has at most in a reduced reject, and all its headers together.
const LONGEST_KEPT: usize = 256;
const HEADERS_KEPT: usize = 4096;

/// What to do about a refused result.
#[derive(Debug)]
pub enum Step {
    /// Send this in its place. It takes as many of the output's fields as are still wanted.
    Write(Box<OutRecord>, Form),
    /// Reject its record, which is to be read again for that; with this message.
    Reject(String),
    /// Wait for a person; why.
    Hold(String),
}

/// The next step down from `output`, which was refused with `code`.
pub fn next(output: &Output, code: Code) -> Step {
    let record = &output.record;
    let (topic, size) = (&record.topic, record.bytes());
    if is_of_the_topic(code) {
        return Step::Hold(format!("topic {topic} does not take it: {}", words(code)));
    }
    let why = format!("topic {topic} refused it, {size} bytes: {}", words(code));
    match &output.what {
        What::Block(_) | What::LastBlock(_) => Step::Reject(format!("the block for {}", cause(topic, size, code))),
        What::Prediction { .. } => Step::Reject(format!("the prediction for {}", cause(topic, size, code))),
        What::Reject(_, Form::Whole) => match code {
            Code::InvalidTimestamp if record.timestamp_ms.is_some() => {
                let mut plainer = record.clone();
                move_timestamp(&mut plainer);
                plainer.headers.push(Header::new(header::REDUCED, why));
                Step::Write(Box::new(plainer), Form::Whole)
            }
            // A compacted topic takes no record without a key.
            Code::InvalidRecord if record.key.is_none() => {
                let mut plainer = record.clone();
                plainer.key = Some(Bytes::from(output.of.id()));
                plainer.headers.push(Header::new(header::REDUCED, format!("{why}; its key was null")));
                Step::Write(Box::new(plainer), Form::Whole)
            }
            _ => Step::Write(Box::new(reduced(record, &output.of.id(), why)), Form::Reduced),
        },
        What::Reject(_, Form::Reduced) => Step::Hold(why),
    }
}

/// Whether it is the topic's state that refuses, whatever the record.
fn is_of_the_topic(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::InvalidTopic
    )
}

fn cause(topic: &Arc<str>, size: usize, code: Code) -> String {
    match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => format!(
            "topic {topic} has {size} bytes, which is more than the topic takes (its max.message.bytes, or the broker's \
             message.max.bytes)"
        ),
        code => format!("topic {topic}, {size} bytes, was refused: {}", words(code)),
    }
}

/// Kafka's errors in our words.
fn words(code: Code) -> String {
    let words = match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => "it is larger than max.message.bytes allows",
        Code::InvalidTimestamp => {
            "its timestamp is outside message.timestamp.before.max.ms or message.timestamp.after.max.ms"
        }
        Code::InvalidRecord => "it breaks a rule of the topic's (a compacted topic takes no null key)",
        Code::PolicyViolation => "a policy of the brokers' forbids it",
        Code::TopicAuthorizationFailed => "this user may not write it (the right WRITE on the topic is missing)",
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            "there is no such topic or partition"
        }
        Code::InvalidTopic => "its name is not allowed",
        code => return code.to_string(),
    };
    words.to_owned()
}

/// The reject without what a topic may refuse: its value, long keys and headers, its timestamp, a null key.
fn reduced(record: &OutRecord, id: &str, why: String) -> OutRecord {
    let mut plain = record.clone();
    move_timestamp(&mut plain);
    let mut left_out = Vec::new();
    if let Some(value) = plain.value.take() {
        plain.headers.push(Header::new(header::VALUE_BYTES, value.len().to_string()));
        plain.headers.push(Header::new(header::VALUE_BLAKE3, blake3::hash(&value).to_hex().as_bytes()));
        left_out.push("its value".to_owned());
    }
    match &plain.key {
        Some(key) if key.len() <= LONGEST_KEPT => {}
        key => {
            left_out.push(match key {
                Some(key) => format!("its key of {} bytes", key.len()),
                None => "its null key".to_owned(),
            });
            plain.key = Some(Bytes::from(id.to_owned()));
        }
    }
    let own = |header: &Header| header::is_ours(&header.name);
    let (mut kept, mut dropped) = (0, 0);
    plain.headers.retain(|header| {
        let keep = own(header) || (header.bytes() <= LONGEST_KEPT && kept + header.bytes() <= HEADERS_KEPT);
        match keep {
            true => kept += header.bytes(),
            false => {
                dropped += 1;
                // Names of what is left out, as long as they are short and few.
                if dropped <= 8 {
                    let name: String = String::from_utf8_lossy(&header.name).chars().take(40).collect();
                    left_out.push(format!("header {name:?} of {} bytes", header.bytes()));
                }
            }
        }
        keep
    });
    if dropped > 8 {
        left_out.push(format!("{} more headers", dropped - 8));
    }
    plain.headers.retain(|header| header.name != header::REDUCED.as_bytes());
    plain.headers.push(Header::new(header::REDUCED, format!("{why}; left out: {}", left_out.join(", "))));
    plain
}

fn move_timestamp(record: &mut OutRecord) {
    if let Some(timestamp) = record.timestamp_ms.take() {
        record.headers.push(Header::new(header::TIMESTAMP, timestamp.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tonearm_schemas::{
        prediction::Source,
        reject::{Reject, RejectClass, Stage},
    };

    use super::*;
    use crate::run::commit::output::{Carried, Of};

    fn reject(key: Option<&[u8]>, value: usize, headers: Vec<Header>) -> Output {
        let source = Source::Record { topic: "audio".to_owned(), partition: 3, offset: 7, timestamp_ms: Some(1) };
        let carried = Carried { partition: 3, key: None, headers: Vec::new() };
        Output {
            record: OutRecord {
                topic: "audio.rejected".into(),
                partition: Some(3),
                key: key.map(Bytes::copy_from_slice),
                value: Some(Bytes::from(vec![7; value])),
                headers,
                timestamp_ms: Some(1),
            },
            what: What::Reject(Reject::new(Stage::Decode, RejectClass::CorruptAudio, "broken"), Form::Whole),
            of: Arc::new(Of { source, received: Instant::now(), carried }),
            finished: Instant::now(),
            reserved: 0,
            alone: false,
        }
    }

    fn written(output: &mut Output, code: Code) -> OutRecord {
        match next(output, code) {
            Step::Write(record, form) => {
                output.record = (*record).clone();
                if let What::Reject(_, old) = &mut output.what {
                    *old = form;
                }
                *record
            }
            step => panic!("{step:?}"),
        }
    }

    fn text(record: &OutRecord, name: &str) -> String {
        Header::text(&record.headers, name).unwrap_or_default().to_owned()
    }

    #[test]
    fn a_refused_timestamp_moves_and_the_value_stays() {
        let record = written(&mut reject(Some(b"k"), 10, Vec::new()), Code::InvalidTimestamp);
        assert_eq!((record.timestamp_ms, record.value.map(|value| value.len())), (None, Some(10)));
        assert_eq!(Header::text(&record.headers, header::TIMESTAMP), Some("1"));
    }

    #[test]
    fn a_null_key_becomes_the_record_s_id_and_the_value_stays() {
        let record = written(&mut reject(None, 10, Vec::new()), Code::InvalidRecord);
        assert_eq!(
            (record.key.as_deref(), record.value.map(|value| value.len())),
            (Some(b"audio-3-7".as_slice()), Some(10))
        );
    }

    #[test]
    fn what_is_too_large_loses_its_value_and_what_is_long() {
        let long = Header::new("long", vec![b'x'; 600_000]);
        let kept = Header::new("short", "text");
        let record = written(
            &mut reject(Some(&[b'k'; 900_000]), 4_000_000, vec![long, kept.clone()]),
            Code::MessageSizeTooLarge,
        );
        assert_eq!(record.value, None);
        assert_eq!(record.key.as_deref(), Some(b"audio-3-7".as_slice()));
        assert!(record.headers.contains(&kept));
        assert_eq!(text(&record, header::VALUE_BYTES), "4000000");
        assert_eq!(text(&record, header::VALUE_BLAKE3), blake3::hash(&vec![7; 4_000_000]).to_hex().as_str());
        let reduced = text(&record, header::REDUCED);
        for named in ["audio.rejected", "its key of 900000 bytes", "header \"long\" of 600004 bytes", "its value"] {
            assert!(reduced.contains(named), "{reduced}");
        }
        assert!(record.bytes() < 2000, "{} bytes", record.bytes());
    }

    #[test]
    fn no_record_stays_large() {
        let many: Vec<Header> = (0..20_000).map(|number| Header::new(format!("header-{number}"), "value")).collect();
        let record = written(&mut reject(None, 10, many), Code::PolicyViolation);
        assert!(record.bytes() < 8192, "{} bytes", record.bytes());
    }

    #[test]
    fn the_ladder_ends() {
        for code in [Code::InvalidTimestamp, Code::InvalidRecord, Code::MessageSizeTooLarge, Code::PolicyViolation] {
            let mut output = reject(None, 10, Vec::new());
            let steps = (0..10).take_while(|_| match next(&output, code) {
                Step::Write(..) => {
                    written(&mut output, code);
                    true
                }
                _ => false,
            });
            let steps = steps.count();
            assert!((1..=2).contains(&steps), "{code}: {steps}");
            assert!(matches!(next(&output, code), Step::Hold(_)));
        }
    }

    #[test]
    fn a_topic_that_is_not_there_changes_no_record() {
        for code in [Code::UnknownTopic, Code::TopicAuthorizationFailed] {
            assert!(matches!(next(&reject(None, 1, Vec::new()), code), Step::Hold(_)));
        }
    }
}
