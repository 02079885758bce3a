//! Every input record ends as exactly one prediction or exactly one reject, whatever is in it.

use std::{collections::BTreeSet, fs, sync::LazyLock, sync::OnceLock};

use tonearm_schemas::{
    manifest::Manifest,
    prediction::{CONTENT_TYPE, Prediction, SCHEMA, Source},
    reject::{RejectClass, header},
};
use tonearm_tests::{
    audio::{music, wav},
    broker::Topics,
    models::{self, LABELS, WINDOW},
    program::Run,
    records::{Input, Reader, Record, publish, read_all},
};

const PARTITIONS: i32 = 4;
/// An input says by this header what must become of it, and so proves that its headers come back.
const EXPECTED: &str = "expected";

/// Everything a producer might send, with what must become of it.
fn inputs() -> Vec<Input> {
    use RejectClass as Class;
    let good = "prediction";
    let tone = || wav(220.0, 0.4, 16_000, 1);
    let mut inputs: Vec<(&str, Input)> = Vec::new();
    let mut add = |expected: &'static str, key: Option<&[u8]>, value: Option<Vec<u8>>| {
        let partition = inputs.len() as i32 % PARTITIONS;
        inputs.push((expected, Input { partition, key: key.map(<[u8]>::to_vec), value, ..Input::default() }));
    };

    add(good, Some(b"two windows"), Some(wav(110.0, 0.9, 16_000, 1)));
    add(good, Some(b"stereo"), Some(wav(220.0, 1.0, 44_100, 2)));
    add(good, Some(b"a fifth of a second"), Some(wav(330.0, 0.2, 8_000, 1)));
    for (name, bytes) in music() {
        add(good, Some(name.as_bytes()), Some(bytes));
    }
    add(good, None, Some(tone()));
    add(good, Some(b""), Some(tone()));
    add(good, Some(&[0xff, 0x00, 0xfe]), Some(tone()));
    add(Class::EmptyRecord.as_str(), Some(b"tombstone"), None);
    add(Class::EmptyRecord.as_str(), Some(b"empty"), Some(Vec::new()));
    add(Class::EmptyRecord.as_str(), None, None);
    add(Class::UnsupportedFormat.as_str(), Some(b"text"), Some(b"this is no music".to_vec()));
    add(Class::UnsupportedFormat.as_str(), Some(b"zeros"), Some(vec![0; 20_000]));
    add(Class::UnsupportedFormat.as_str(), Some(&[0x80, 0x81]), Some((0..=255).cycle().take(5_000).collect()));
    add(Class::CorruptAudio.as_str(), Some(b"header only"), Some(tone()[..30].to_vec()));
    add(Class::NoAudioTrack.as_str(), Some(b"no frames"), Some(wav(220.0, 0.0, 16_000, 1)));
    add(Class::TooLarge.as_str(), Some(b"too large"), Some(vec![7; (2 << 20) + 1]));
    add(Class::TooLong.as_str(), Some(b"too long"), Some(wav(220.0, 61.0, 8_000, 1)));
    // Good ones last: what came before must not have hurt.
    for _ in 0..PARTITIONS {
        add(good, Some(b"after the bad ones"), Some(tone()));
    }

    let trace = |input: Input| {
        input
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .header("ce_id", "7")
            .header("ce_source", "/uploads")
            .header("x-own", "mine")
            .header("content-type", "audio/mpeg") // wrong on purpose: the bytes decide
    };
    let stamped = inputs.into_iter().enumerate().map(|(index, (expected, input))| {
        let timestamp_ms = Some(1_700_000_000_000 + index as i64);
        let mut input = trace(Input { timestamp_ms, ..input }).header(EXPECTED, expected);
        input.headers.push((b"x-null".to_vec(), None));
        // As when a reject is published again.
        input.header(header::CLASS, "from-an-earlier-life")
    });
    stamped.collect()
}

struct Outcome {
    topics: Topics,
    inputs: Vec<Input>,
    /// Of each input, in its partition.
    offsets: Vec<i64>,
    predictions: Vec<Record>,
    rejects: Vec<Record>,
}

impl Outcome {
    fn of(inputs: Vec<Input>, topics: Topics, run: impl FnOnce(Run) -> Run) -> Self {
        let offsets = publish(&topics.audio, &inputs);
        let running = run(Run::new(&topics).model(&models::tiny())).start();
        Reader::new(&[&topics.predictions, &topics.rejected]).take(inputs.len());
        running.stop();
        // Read again after the end: a result that came late or twice is seen as well.
        let (predictions, rejects) = (read_all(&topics.predictions), read_all(&topics.rejected));
        Self { topics, inputs, offsets, predictions, rejects }
    }

    fn index(&self, partition: i32, offset: i64) -> usize {
        let is_it = |index: &usize| (self.inputs[*index].partition, self.offsets[*index]) == (partition, offset);
        (0..self.inputs.len()).find(is_it).expect("a result names an input")
    }

    /// The input a result says it is of.
    fn input_of(&self, result: &Record) -> usize {
        if result.topic == self.topics.rejected {
            let number = |name| result.header(name).last().and_then(|text| text.parse::<i64>().ok()).expect("a number");
            return self.index(number(header::PARTITION) as i32, number(header::OFFSET));
        }
        match result.prediction().source {
            Source::Record { partition, offset, .. } => self.index(partition, offset),
            Source::File { .. } => panic!("a prediction of a record has no file"),
        }
    }

    fn results(&self) -> impl Iterator<Item = (&Record, &Input)> {
        self.predictions.iter().chain(&self.rejects).map(|result| (result, &self.inputs[self.input_of(result)]))
    }

    fn predictions(&self) -> impl Iterator<Item = (Prediction, &Input)> {
        self.predictions.iter().map(|record| (record.prediction(), &self.inputs[self.input_of(record)]))
    }

    fn prediction_of(&self, key: &str) -> Prediction {
        let record = self.predictions.iter().find(|record| record.key_text() == key);
        record.unwrap_or_else(|| panic!("{key} has no prediction")).prediction()
    }
}

/// One run over everything, which most tests look at.
fn outcome() -> &'static Outcome {
    static OUTCOME: OnceLock<Outcome> = OnceLock::new();
    OUTCOME.get_or_init(|| {
        Outcome::of(inputs(), Topics::new(PARTITIONS), |run| {
            run.set("output.windows", true)
                .set("output.labels", 3)
                .set("limits.max_record_mib", 2)
                .set("limits.max_duration_s", 60)
        })
    })
}

static MANIFEST: LazyLock<Manifest> = LazyLock::new(|| {
    let path = models::tiny().repository.join("tiny/1.0.0/model.toml");
    Manifest::parse(&fs::read_to_string(path).expect("a manifest")).expect("a manifest")
});

#[test]
fn each_record_ends_as_one_prediction_or_one_reject() {
    let outcome = outcome();
    let answered: Vec<usize> = outcome.results().map(|(result, _)| outcome.input_of(result)).collect();
    let distinct: BTreeSet<usize> = answered.iter().copied().collect();
    assert_eq!(answered.len(), outcome.inputs.len(), "a result is missing or one too many");
    assert_eq!(distinct.len(), outcome.inputs.len(), "an input has two results");
}

#[test]
fn each_record_becomes_what_its_bytes_deserve() {
    for (result, input) in outcome().results() {
        let became = if result.topic == outcome().topics.predictions {
            "prediction".to_owned()
        } else {
            result.header(header::CLASS).last().expect("a reject has a class").clone()
        };
        let expected =
            input.headers.iter().find(|(name, _)| name == EXPECTED.as_bytes()).and_then(|(_, value)| value.clone());
        assert_eq!(expected, Some(became.into_bytes()), "{:?}", input.key.as_deref().map(String::from_utf8_lossy));
    }
}

#[test]
fn results_keep_the_key() {
    for (result, input) in outcome().results() {
        assert_eq!(result.key, input.key);
    }
}

#[test]
fn results_keep_the_partition_and_the_order_within_it() {
    let outcome = outcome();
    for topic in [&outcome.predictions, &outcome.rejects] {
        let mut last = [-1; PARTITIONS as usize];
        for result in topic {
            let index = outcome.input_of(result);
            assert_eq!(result.partition, outcome.inputs[index].partition);
            let last = &mut last[result.partition as usize];
            assert!(*last < outcome.offsets[index], "offset {} comes after {last}", outcome.offsets[index]);
            *last = outcome.offsets[index];
        }
    }
}

#[test]
fn predictions_carry_trace_and_cloudevents_headers_and_their_own_content_type() {
    for record in &outcome().predictions {
        let value = |text: &str| Some(text.as_bytes().to_vec());
        let mut headers = record.headers.clone();
        headers.sort();
        let expected = [
            ("ce_id", value("7")),
            ("ce_source", value("/uploads")),
            ("content-type", value(CONTENT_TYPE)),
            ("traceparent", value("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")),
        ];
        assert_eq!(headers, expected.map(|(name, value)| (name.as_bytes().to_vec(), value)));
    }
}

#[test]
fn predictions_name_their_record() {
    let outcome = outcome();
    for (record, prediction) in outcome.predictions.iter().map(|record| (record, record.prediction())) {
        let index = outcome.input_of(record);
        let (input, offset) = (&outcome.inputs[index], outcome.offsets[index]);
        let (topic, partition) = (outcome.topics.audio.clone(), input.partition);
        assert_eq!(prediction.schema, SCHEMA);
        assert_eq!(prediction.id, format!("{topic}-{partition}-{offset}"));
        assert_eq!(prediction.track, input.key.clone().and_then(|key| String::from_utf8(key).ok()));
        assert_eq!(prediction.source, Source::Record { topic, partition, offset, timestamp_ms: input.timestamp_ms });
        assert!(prediction.produced_by.starts_with("tonearm "), "{}", prediction.produced_by);
    }
}

#[test]
fn predictions_describe_the_audio() {
    for (prediction, input) in outcome().predictions() {
        let audio = &prediction.audio;
        assert_eq!(audio.blake3, blake3::hash(input.value.as_deref().unwrap_or_default()).to_hex().as_str());
        // Written with all its digits, but read by a parser that may miss the last one.
        let seconds = audio.frames as f64 / f64::from(audio.sample_rate_hz);
        assert!((audio.duration_s - seconds).abs() < 1e-9, "{} s, not {seconds} s", audio.duration_s);
    }
    let audio = outcome().prediction_of("stereo").audio;
    assert_eq!(
        (audio.codec.as_str(), audio.sample_rate_hz, audio.channels, audio.frames, audio.padded),
        ("pcm_s16le", 44_100, 2, 44_100, false)
    );
    assert!(outcome().prediction_of("a fifth of a second").audio.padded);
}

#[test]
fn predictions_name_the_model() {
    for (prediction, _) in outcome().predictions() {
        let model = &prediction.model;
        assert_eq!((model.name.as_str(), model.version.as_str()), ("tiny", "1.0.0"));
        assert_eq!(model.sha256, MANIFEST.sha256);
        assert!(["float32", "bfloat16"].contains(&model.precision.as_str()), "{}", model.precision);
    }
}

#[test]
fn windows_lie_one_after_the_other_in_seconds_of_the_track() {
    let windows = outcome().prediction_of("two windows").windows.expect("windows were asked for");
    let seconds = WINDOW.as_secs_f64();
    let times: Vec<(f64, f64)> = windows.iter().map(|window| (window.start_s, window.end_s)).collect();
    assert_eq!(times, [(0.0, seconds), (seconds, 2.0 * seconds)]);
}

#[test]
fn labels_are_the_best_means_over_the_windows_best_first() {
    for (prediction, _) in outcome().predictions() {
        let windows = prediction.windows.expect("windows were asked for");
        let mean = |label: usize| {
            windows.iter().map(|window| f64::from(window.scores[label])).sum::<f64>() / windows.len() as f64
        };
        let mut means: Vec<(f32, &str)> = (0..LABELS.len()).map(|at| (mean(at) as f32, LABELS[at])).collect();
        means.sort_by(|a, b| b.0.total_cmp(&a.0));
        let labels: Vec<_> = prediction.labels.iter().map(|found| (found.score, found.label.as_str())).collect();
        assert_eq!(labels, means[..3]);
        assert!(means.iter().all(|(score, _)| (0.0..=1.0).contains(score)), "{means:?}");
    }
}

#[test]
fn rejects_are_the_original_record_with_the_reason_in_headers() {
    let outcome = outcome();
    for record in &outcome.rejects {
        let index = outcome.input_of(record);
        let input = &outcome.inputs[index];
        assert_eq!(record.value, input.value);
        assert_eq!(record.timestamp_ms, input.timestamp_ms);
        let mut original = input.headers.clone();
        // The reasons of an earlier round are replaced.
        original.retain(|(name, _)| !header::is_ours(name));
        assert_eq!(record.headers[..original.len()], original, "the original headers come first");
        let added = record.headers[original.len()..].iter();
        let added: Vec<_> = added.map(|(name, _)| String::from_utf8_lossy(name)).collect();
        assert_eq!(
            added,
            [header::TOPIC, header::PARTITION, header::OFFSET, header::STAGE, header::CLASS, header::MESSAGE]
        );
        assert_eq!(record.header(header::TOPIC).concat(), outcome.topics.audio);
        assert_eq!(record.header(header::STAGE), ["decode"]);
        let message = record.header(header::MESSAGE).concat();
        assert!(message.len() > 10 && !message.contains('\n'), "not a sentence: {message:?}");
    }
}

#[test]
fn all_labels_come_and_no_windows_when_configured_so() {
    let tone = Input::new(0, "tone", wav(220.0, 0.4, 16_000, 1));
    let outcome = Outcome::of(vec![tone], Topics::new(1), |run| run.set("output.labels", "all"));
    let prediction = outcome.prediction_of("tone");
    let labels: BTreeSet<&str> = prediction.labels.iter().map(|label| label.label.as_str()).collect();
    assert_eq!(labels, LABELS.into());
    assert!(prediction.labels.is_sorted_by(|a, b| a.score >= b.score));
    assert_eq!(prediction.windows, None);
    let json = String::from_utf8(outcome.predictions[0].value.clone().expect("a value")).expect("JSON is UTF-8");
    assert!(!json.contains("windows"), "{json}");
}

#[test]
fn results_of_one_key_share_a_partition_where_the_topics_have_other_partition_counts() {
    let inputs: Vec<Input> = (0..24)
        .map(|n| {
            Input::new(n % 4, &format!("track-{}", n % 4), if n < 4 { wav(220.0, 0.2, 8_000, 1) } else { vec![1] })
        })
        .collect();
    let outcome = Outcome::of(inputs, Topics::with_partitions(4, 3), |run| run);
    assert_eq!((outcome.predictions.len(), outcome.rejects.len()), (4, 20));
    let homes: BTreeSet<(String, i32)> =
        outcome.rejects.iter().map(|record| (record.key_text(), record.partition)).collect();
    assert_eq!(homes.len(), 4, "a key is in two partitions: {homes:?}");
}
