//! Whether every record that was published has the one result it should have: pure, so that it can be shown to find
//! each fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use tonearm_schemas::reject::header;

use super::records::{Ends, Record, TIMESTAMP};

/// The class of a reject that stands for a result which its topic refuses for good.
const RESULT_REFUSED: &str = "result-refused";
/// A reject with this header is not as its record came: a topic refused that. It says why, and what is left out.
const REDUCED: &str = "tonearm.reduced";
/// What such a reject says of a value that it leaves out.
const VALUE_BYTES: &str = "tonearm.value.bytes";
const VALUE_BLAKE3: &str = "tonearm.value.blake3";

/// What readers of committed records found in the end. Results have as many partitions as their input.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The input topic. What is not audio in it is expected to be rejected, see [`is_broken`].
    pub published: Vec<Record>,
    pub predictions: Vec<Record>,
    pub rejected: Vec<Record>,
    /// Where the group is in the input, by partition.
    pub positions: Vec<Option<i64>>,
}

/// Partition and offset of a record that was published.
pub type Source = (i32, i64);

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Lost(Source),
    Repeated(Source),
    /// Its result comes behind that of the later record `behind`.
    OutOfOrder {
        source: Source,
        behind: Source,
    },
    /// Audio that was rejected, or noise that was predicted.
    WrongTopic(Source),
    WrongKey(Source),
    WrongPartition(Source),
    /// A reject with another value than its record, or a prediction of other bytes.
    WrongValue(Source),
    /// A reject without some of its record's headers, or with others before its own.
    WrongHeaders(Source),
    /// A reject of another time than its record.
    WrongTime(Source),
    /// A result of a record that nobody published.
    OfNothing(Source),
    /// The group is somewhere else than behind the last record of a partition.
    WrongPosition {
        partition: i32,
        position: Option<i64>,
        end: i64,
    },
    /// The group was ahead of what was written.
    Ahead {
        source: Source,
        position: i64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |(partition, offset): &Source| format!("partition {partition} offset {offset}");
        match self {
            Self::Lost(source) => write!(f, "lost: {}", name(source)),
            Self::Repeated(source) => write!(f, "repeated: {}", name(source)),
            Self::OutOfOrder { source, behind } => write!(f, "out of order: {} behind {}", name(source), name(behind)),
            Self::WrongTopic(source) => write!(f, "in the wrong topic: {}", name(source)),
            Self::WrongKey(source) => write!(f, "with another key: {}", name(source)),
            Self::WrongPartition(source) => write!(f, "in another partition: {}", name(source)),
            Self::WrongValue(source) => write!(f, "of other bytes: {}", name(source)),
            Self::WrongHeaders(source) => write!(f, "with other headers: {}", name(source)),
            Self::WrongTime(source) => write!(f, "of another time: {}", name(source)),
            Self::OfNothing(source) => write!(f, "a result of no record: {}", name(source)),
            Self::WrongPosition { partition, position, end } => {
                write!(f, "the group is at {position:?} in partition {partition}, which ends at {end}")
            }
            Self::Ahead { source, position } => {
                write!(f, "the group was at {position} while nothing was written of {}", name(source))
            }
        }
    }
}

/// What came of a history.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub records: usize,
    pub predictions: usize,
    pub rejects: usize,
    pub faults: Vec<Fault>,
}

impl Verdict {
    /// # Panics
    /// A promise is broken.
    #[track_caller]
    pub fn assert_faultless(&self) {
        assert!(self.faults.is_empty(), "{self}");
    }

    pub fn count(&self, kind: impl Fn(&Fault) -> bool) -> usize {
        self.faults.iter().filter(|fault| kind(fault)).count()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = self.count(|fault| matches!(fault, Fault::Lost(_)));
        let repeated = self.count(|fault| matches!(fault, Fault::Repeated(_)));
        let out_of_order = self.count(|fault| matches!(fault, Fault::OutOfOrder { .. }));
        let wrong_topic = self.count(|fault| matches!(fault, Fault::WrongTopic(_)));
        let other = self.faults.len() - lost - repeated - out_of_order - wrong_topic;
        let Self { records, predictions, rejects, .. } = self;
        write!(
            f,
            "{records} records, {predictions} predictions, {rejects} rejects: {lost} lost, {repeated} repeated, \
             {out_of_order} out of order, {wrong_topic} in the wrong topic, {other} other faults"
        )?;
        // A whole partition may be wrong; the first few say how.
        for fault in self.faults.iter().take(20) {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

/// True of what must be rejected: in these tests all audio is WAV.
pub fn is_broken(published: &Record) -> bool {
    !published.value.as_deref().unwrap_or_default().starts_with(b"RIFF")
}

pub fn verify(history: &History) -> Verdict {
    let History { published, predictions, rejected, positions } = history;
    let inputs: BTreeMap<Source, &Record> =
        published.iter().map(|record| ((record.partition, record.offset), record)).collect();
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for (results, are_rejects) in [(predictions, false), (rejected, true)] {
        let mut last: BTreeMap<i32, Source> = BTreeMap::new();
        for result in results {
            let source = result.source();
            let Some(input) = inputs.get(&source) else {
                faults.push(Fault::OfNothing(source));
                continue;
            };
            if !seen.insert(source) {
                faults.push(Fault::Repeated(source));
                continue;
            }
            match last.get(&source.0) {
                Some(&behind) if behind > source => faults.push(Fault::OutOfOrder { source, behind }),
                _ => _ = last.insert(source.0, source),
            }
            let kept = if are_rejects { Kept::by_reject(result, input) } else { Kept::by_prediction(result, input) };
            let in_wrong_topic = if are_rejects { !is_broken(input) && !is_refused(result) } else { is_broken(input) };
            for (is_wrong, fault) in [
                (in_wrong_topic, Fault::WrongTopic(source)),
                (!kept.key, Fault::WrongKey(source)),
                (result.partition != source.0, Fault::WrongPartition(source)),
                (!kept.value, Fault::WrongValue(source)),
                (!kept.headers, Fault::WrongHeaders(source)),
                (!kept.time, Fault::WrongTime(source)),
            ] {
                faults.extend(is_wrong.then_some(fault));
            }
        }
    }
    faults.extend(inputs.keys().filter(|source| !seen.contains(source)).map(|source| Fault::Lost(*source)));
    for (partition, &position) in (0..).zip(positions) {
        let of_partition = published.iter().filter(|record| record.partition == partition);
        let end = of_partition.map(|record| record.offset + 1).max().unwrap_or(0);
        if position.unwrap_or(0) != end {
            faults.push(Fault::WrongPosition { partition, position, end });
        }
    }
    Verdict { records: published.len(), predictions: predictions.len(), rejects: rejected.len(), faults }
}

/// True for a reject that stands for a result which its topic takes in no form.
fn is_refused(reject: &Record) -> bool {
    reject.header(header::CLASS).last().is_some_and(|class| class == RESULT_REFUSED)
}

/// Which parts of a record are in its result as they were published.
struct Kept {
    key: bool,
    value: bool,
    headers: bool,
    time: bool,
}

impl Kept {
    fn by_prediction(prediction: &Record, input: &Record) -> Self {
        let value = prediction.prediction().audio.blake3 == hash(input);
        Self { key: prediction.key == input.key, value, headers: true, time: true }
    }

    /// What a topic does not take of a reject may be left out, if that is said.
    fn by_reject(reject: &Record, input: &Record) -> Self {
        let reduced = !reject.header(REDUCED).concat().is_empty();
        let said = |name| reject.header(name).last().cloned();
        let id = format!("{}-{}-{}", input.topic, input.partition, input.offset);
        let bytes = input.value.as_deref().unwrap_or_default().len().to_string();
        let value_is_named =
            reject.value.is_none() && said(VALUE_BYTES) == Some(bytes) && said(VALUE_BLAKE3) == Some(hash(input));
        let time_is_named = said(TIMESTAMP) == input.timestamp_ms.map(|at| at.to_string());
        let without_key = reject.key.as_ref().is_none_or(|key| key == id.as_bytes());
        // Those of an earlier life are replaced.
        let ours = [b"__connect.errors.".as_slice(), b"tonearm."];
        let theirs = |(name, _): &&(Vec<u8>, _)| !ours.iter().any(|ours| name.starts_with(ours));
        let (mut was, is) = (input.headers.iter().filter(theirs), reject.headers.iter().filter(theirs));
        let all = was.clone().count() == is.clone().count();
        let in_order = is.clone().all(|kept| was.any(|header| header == kept));
        Self {
            key: reject.key == input.key || (reduced && without_key),
            value: reject.value == input.value || (reduced && value_is_named),
            headers: in_order && (all || reduced),
            time: reject.timestamp_ms == input.timestamp_ms || (reduced && time_is_named),
        }
    }
}

/// How predictions name the bytes they are of.
fn hash(record: &Record) -> String {
    blake3::hash(record.value.as_deref().unwrap_or_default()).to_hex().to_string()
}

/// Where the group was at a moment, and then how much of the results was written, committed or not.
#[derive(Clone, Debug)]
pub struct Sample {
    pub positions: Vec<Option<i64>>,
    pub ends: Ends,
}

/// Records that the group was behind before a result of them was `written`. A result that was never written is lost,
/// which [`verify`] tells.
pub fn ahead(samples: &[Sample], written: &[Record]) -> Vec<Fault> {
    // A result may be written again after an abort: what counts is that one was there.
    let mut first: BTreeMap<Source, Vec<&Record>> = BTreeMap::new();
    written.iter().for_each(|result| first.entry(result.source()).or_default().push(result));
    let mut checked: BTreeMap<i32, i64> = BTreeMap::new();
    let mut faults = Vec::new();
    for Sample { positions, ends } in samples {
        for (partition, position) in (0..).zip(positions) {
            let position = position.unwrap_or(0);
            let from = checked.entry(partition).or_default();
            for source in (*from..position).map(|offset| (partition, offset)) {
                let results = first.get(&source).map(Vec::as_slice).unwrap_or_default();
                let was_there = |result: &&Record| ends[&(result.topic.clone(), result.partition)] > result.offset;
                if !results.is_empty() && !results.iter().any(was_there) {
                    faults.push(Fault::Ahead { source, position });
                }
            }
            *from = position.max(*from);
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::headers::Headers;

    const PARTITIONS: i32 = 2;

    /// Five records in each of two partitions, the last of them broken; one result each, as it should be.
    fn faultless() -> History {
        let mut history = History::default();
        for (partition, offset) in (0..PARTITIONS).flat_map(|partition| (0..5).map(move |offset| (partition, offset))) {
            let broken = offset == 4;
            let value = format!("{} {partition} {offset}", if broken { "noise" } else { "RIFF" }).into_bytes();
            let published = Record {
                topic: "audio".to_owned(),
                partition,
                offset,
                key: (offset != 2).then(|| format!("{partition}-{offset}").into_bytes()),
                value: Some(value),
                headers: vec![(b"a".to_vec(), None), (b"\xff".to_vec(), Some(b"b".to_vec()))],
                timestamp_ms: Some(1_000 + offset),
            };
            let results = if broken { &mut history.rejected } else { &mut history.predictions };
            let offset_of_result = results.len() as i64;
            results.push(result(&published, offset_of_result));
            history.published.push(published);
        }
        history.positions = vec![Some(5), Some(5)];
        history
    }

    fn result(published: &Record, offset: i64) -> Record {
        let mut result = Record { offset, ..published.clone() };
        if is_broken(published) {
            let number = |number: i64| Some(number.to_string().into_bytes());
            result.headers.push((header::CLASS.into(), Some(b"unsupported-format".to_vec())));
            result.headers.push((header::PARTITION.into(), number(published.partition.into())));
            result.headers.push((header::OFFSET.into(), number(published.offset)));
        } else {
            result.value = Some(prediction(published, &hash(published)));
        }
        result
    }

    fn prediction(published: &Record, blake3: &str) -> Vec<u8> {
        let Record { topic, partition, offset, .. } = published;
        let prediction = json!({
            "schema": "tonearm.prediction/1", "id": format!("{topic}-{partition}-{offset}"), "track": null,
            "source": {"topic": topic, "partition": partition, "offset": offset, "timestamp_ms": null},
            "audio": {"codec": "pcm_s16le", "sample_rate_hz": 8000, "channels": 1, "frames": 2400, "duration_s": 0.3,
                "blake3": blake3},
            "model": {"name": "m", "version": "1.0.0", "sha256": "", "precision": "float32"},
            "labels": [], "timing_ms": {"queue": 0.0, "decode": 0.0, "features": 0.0, "infer": 0.0, "total": 0.0},
            "produced_by": "tonearm",
        });
        prediction.to_string().into_bytes()
    }

    /// The faults that `harm` makes.
    fn faults(harm: impl FnOnce(&mut History)) -> Vec<Fault> {
        let mut history = faultless();
        harm(&mut history);
        verify(&history).faults
    }

    #[test]
    fn one_result_each_is_faultless() {
        assert_eq!(faults(|_| {}), []);
        let verdict = verify(&faultless());
        assert_eq!((verdict.records, verdict.predictions, verdict.rejects), (10, 8, 2));
    }

    #[test]
    fn a_missing_result_is_lost() {
        assert_eq!(faults(|history| _ = history.predictions.remove(1)), [Fault::Lost((0, 1))]);
        assert_eq!(faults(|history| _ = history.rejected.remove(1)), [Fault::Lost((1, 4))]);
        assert_eq!(faults(|history| history.predictions.clear()).len(), 8);
    }

    #[test]
    fn a_second_result_is_repeated_wherever_it_is() {
        let again = |history: &mut History| history.predictions.push(history.predictions[2].clone());
        assert_eq!(faults(again), [Fault::Repeated((0, 2))]);
        // The same record was once predicted and once rejected.
        let both = faults(|history| {
            let mut reject = result(&history.published[4], 9);
            reject.headers.last_mut().expect("a header").1 = Some(b"3".to_vec());
            history.rejected.push(reject);
        });
        assert_eq!(both, [Fault::Repeated((0, 3))]);
    }

    #[test]
    fn swapped_results_are_out_of_order() {
        let swapped = faults(|history| history.predictions.swap(0, 1));
        assert_eq!(swapped, [Fault::OutOfOrder { source: (0, 0), behind: (0, 1) }]);
        // Partitions have no order among each other.
        assert_eq!(faults(|history| history.predictions.swap(3, 4)), []);
    }

    #[test]
    fn audio_that_is_rejected_and_noise_that_is_predicted_are_in_the_wrong_topic() {
        let rejected = faults(|history| {
            history.published[3].value = Some(b"noise".to_vec());
            history.predictions[3].value = Some(prediction(&history.published[3], &hash(&history.published[3])));
        });
        assert_eq!(rejected, [Fault::WrongTopic((0, 3))]);
        let predicted = faults(|history| {
            history.published[4].value = Some(b"RIFF".to_vec());
            history.rejected[0].value = Some(b"RIFF".to_vec());
        });
        assert_eq!(predicted, [Fault::WrongTopic((0, 4))]);
    }

    #[test]
    fn keys_partitions_and_values_are_compared() {
        assert_eq!(faults(|history| history.predictions[0].key = None), [Fault::WrongKey((0, 0))]);
        assert_eq!(faults(|history| history.rejected[1].key = Some(Vec::new())), [Fault::WrongKey((1, 4))]);
        assert_eq!(faults(|history| history.predictions[4].partition = 0), [Fault::WrongPartition((1, 0))]);
        assert_eq!(faults(|history| history.rejected[0].value = None), [Fault::WrongValue((0, 4))]);
        let others = |history: &mut History| {
            let other = hash(&history.published[1]);
            history.predictions[0].value = Some(prediction(&history.published[0], &other));
        };
        assert_eq!(faults(others), [Fault::WrongValue((0, 0))]);
    }

    #[test]
    fn headers_and_times_of_rejects_are_compared() {
        let theirs = |change: fn(&mut Headers)| faults(|history| change(&mut history.rejected[0].headers));
        let wrong = [Fault::WrongHeaders((0, 4))];
        assert_eq!(theirs(|headers| _ = headers.remove(1)), wrong);
        assert_eq!(theirs(|headers| headers.swap(0, 1)), wrong);
        assert_eq!(theirs(|headers| headers[0].1 = Some(Vec::new())), wrong);
        assert_eq!(theirs(|headers| headers.push((b"a".to_vec(), None))), wrong);
        assert_eq!(faults(|history| history.rejected[0].timestamp_ms = None), [Fault::WrongTime((0, 4))]);
    }

    #[test]
    fn what_an_earlier_life_said_of_a_record_is_replaced() {
        let again = |history: &mut History| {
            for headers in [&mut history.published[4].headers, &mut history.rejected[0].headers] {
                headers.insert(0, (header::CLASS.into(), Some(b"too-long".to_vec())));
                headers.insert(1, (header::OFFSET.into(), Some(b"77".to_vec())));
            }
        };
        assert_eq!(faults(again), []);
        let replaced = |history: &mut History| {
            again(history);
            history.rejected[0].headers.drain(..2);
        };
        assert_eq!(faults(replaced), []);
    }

    /// Puts a reject of class `result-refused` in the place of the first prediction, or makes the first reject one that
    /// is reduced; both lack key, value and time.
    fn reduce(history: &mut History, broken: bool) -> &mut Record {
        let published = &history.published[if broken { 4 } else { 0 }];
        let mut reject = Record { offset: 0, key: None, value: None, timestamp_ms: Some(7), ..published.clone() };
        let mut say = |name: &str, text: String| reject.headers.push((name.into(), Some(text.into_bytes())));
        say(header::CLASS, if broken { "corrupt-audio" } else { RESULT_REFUSED }.to_owned());
        say(header::PARTITION, published.partition.to_string());
        say(header::OFFSET, published.offset.to_string());
        say(VALUE_BYTES, published.value.as_ref().map_or(0, Vec::len).to_string());
        say(VALUE_BLAKE3, hash(published));
        say(TIMESTAMP, published.timestamp_ms.map_or(String::new(), |at| at.to_string()));
        say(REDUCED, "too large".to_owned());
        if broken {
            history.rejected[0] = reject;
        } else {
            history.predictions.remove(0);
            history.rejected.insert(0, reject);
        }
        &mut history.rejected[0]
    }

    #[test]
    fn a_reject_may_stand_for_a_refused_prediction() {
        let whole = |history: &mut History| {
            let published = history.published[0].clone();
            let reject = reduce(history, false);
            (reject.key, reject.value, reject.timestamp_ms) = (published.key, published.value, published.timestamp_ms);
            reject.headers.retain(|(name, _)| name != REDUCED.as_bytes());
        };
        assert_eq!(faults(whole), []);
    }

    #[test]
    fn a_reject_may_leave_out_what_its_topic_refuses() {
        for broken in [false, true] {
            assert_eq!(faults(|history| _ = reduce(history, broken)), []);
            assert_eq!(faults(|history| _ = reduce(history, broken).headers.drain(..2)), []);
            let id = format!("audio-0-{}", if broken { 4 } else { 0 });
            assert_eq!(faults(|history| reduce(history, broken).key = Some(id.into_bytes())), []);
        }
    }

    #[test]
    fn what_a_reduced_reject_leaves_out_must_be_named_as_it_was() {
        let reduced = |change: &dyn Fn(&mut Record)| faults(|history| change(reduce(history, false)));
        let say = |reject: &mut Record, name: &str, text: &str| {
            reject.headers.push((name.into(), Some(text.as_bytes().to_vec())));
        };
        assert_eq!(reduced(&|reject| say(reject, VALUE_BYTES, "7")), [Fault::WrongValue((0, 0))]);
        assert_eq!(reduced(&|reject| say(reject, VALUE_BLAKE3, "00")), [Fault::WrongValue((0, 0))]);
        assert_eq!(reduced(&|reject| reject.value = Some(b"other".to_vec())), [Fault::WrongValue((0, 0))]);
        assert_eq!(reduced(&|reject| say(reject, TIMESTAMP, "7")), [Fault::WrongTime((0, 0))]);
        assert_eq!(reduced(&|reject| reject.key = Some(b"other".to_vec())), [Fault::WrongKey((0, 0))]);
        assert_eq!(reduced(&|reject| reject.headers[0].0 = b"other".to_vec()), [Fault::WrongHeaders((0, 0))]);
        // Audio that is rejected for another reason.
        assert_eq!(reduced(&|reject| say(reject, header::CLASS, "corrupt-audio")), [Fault::WrongTopic((0, 0))]);
        // One that does not say that something is left out.
        let silent = reduced(&|reject| reject.headers.retain(|(name, _)| name != REDUCED.as_bytes()));
        assert_eq!(silent, [Fault::WrongKey, Fault::WrongValue, Fault::WrongTime].map(|fault| fault((0, 0))));
    }

    #[test]
    fn a_result_of_nothing_is_a_fault() {
        let unpublished = faults(|history| _ = history.published.pop());
        assert!(unpublished.contains(&Fault::OfNothing((1, 4))), "{unpublished:?}");
    }

    #[test]
    fn the_group_must_be_behind_everything_and_no_further() {
        let wrong = |position| Fault::WrongPosition { partition: 1, position, end: 5 };
        for position in [None, Some(4), Some(6)] {
            assert_eq!(faults(|history| history.positions[1] = position), [wrong(position)]);
        }
        let empty = History { positions: vec![None, Some(0)], ..History::default() };
        assert_eq!(verify(&empty).faults, []);
    }

    #[test]
    fn a_position_may_not_be_ahead_of_what_is_written() {
        let history = faultless();
        let sample = |position, end| {
            let mut ends = Ends::new();
            ends.insert(("audio".to_owned(), 0), end);
            Sample { positions: vec![Some(position), None], ends }
        };
        // The result of offset n of partition 0 is at offset n.
        let ahead = |samples: &[Sample]| ahead(samples, &history.predictions);
        assert_eq!(ahead(&[sample(1, 1), sample(3, 4)]), []);
        assert_eq!(ahead(&[sample(2, 1), sample(2, 2)]), [Fault::Ahead { source: (0, 1), position: 2 }]);
        // It is never written: lost, and told as such.
        assert_eq!(ahead(&[sample(5, 4)]), []);
    }

    #[test]
    fn a_verdict_says_how_many_and_which() {
        let mut history = faultless();
        history.predictions.remove(1);
        let text = verify(&history).to_string();
        assert!(text.contains("1 lost, 0 repeated, 0 out of order, 0 in the wrong topic, 0 other"), "{text}");
        assert!(text.contains("lost: partition 0 offset 1"), "{text}");
    }
}
