//! Stages in processes of their own give the results of one process, to the bit, exactly once along the whole chain: a
//! track whose blocks are half written goes on where it was, whoever goes on with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rdkafka::{
    ClientConfig, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use safetensors::{Dtype, SafeTensors};
use tonearm_schemas::{
    block::{self, BlockHead, BlockKind, TrackEnd},
    prediction::{Audio, Label, Model, Source, Window},
    reject::header,
};
use tonearm_tests::{
    PATIENCE,
    audio::{music, wav},
    broker::{Topics, brokers},
    chance::{self, Chance},
    models,
    program::{Run, Running},
    records::{Input, Reader, Record, committed, now_ms, publish, read_all},
    wait,
};

/// Longer tracks are rejected, after blocks of them are written.
const MAX_DURATION_S: u32 = 110;
const STAGES: [&str; 3] = ["decode", "features", "infer"];

fn stages(topics: &Topics, stages: &str) -> Run {
    Run::new(topics)
        .set("runtime.stages", stages)
        .set("output.labels", "all")
        .set("output.windows", true)
        .set("limits.max_duration_s", MAX_DURATION_S)
}

/// What may not depend on which process did what. Compared for equality: the same bits give the same text.
#[derive(Debug, PartialEq)]
struct Said {
    id: String,
    source: Source,
    audio: Audio,
    model: Model,
    labels: Vec<Label>,
    windows: Option<Vec<Window>>,
}

/// Predictions by partition and key, in the order of their partition.
fn predictions(topics: &Topics) -> Vec<(i32, String, Said)> {
    let said = |record: &Record| {
        let prediction = record.prediction();
        let (id, source) = (prediction.id, prediction.source);
        Said {
            // Topics of different runs have different names.
            id: id.replace(&topics.audio, "audio"),
            source: match source {
                Source::Record { partition, offset, timestamp_ms, .. } => {
                    Source::Record { topic: "audio".to_owned(), partition, offset, timestamp_ms }
                }
                file @ Source::File { .. } => file,
            },
            audio: prediction.audio,
            model: prediction.model,
            labels: prediction.labels,
            windows: prediction.windows,
        }
    };
    let records = read_all(&topics.predictions);
    records.iter().map(|record| (record.partition, record.key_text(), said(record))).collect()
}

/// Rejects without what another run has otherwise: the name of their topic, and offsets, as transactions have some.
fn rejects(topics: &Topics) -> Vec<Record> {
    let mut rejects = read_all(&topics.rejected);
    for reject in &mut rejects {
        reject.topic.clear();
        reject.offset = 0;
        reject.headers.retain(|(name, _)| name != header::TOPIC.as_bytes());
    }
    rejects
}

/// Music, a track of many blocks, one that is rejected in its middle, a short one, noise, and nothing.
fn inputs() -> Vec<Input> {
    let mut pieces = music();
    pieces.push(("long".to_owned(), wav(98.0, 100.0, 22_050, 1)));
    pieces.push(("too long".to_owned(), wav(120.0, MAX_DURATION_S as f32 + 5.0, 16_000, 1)));
    pieces.push(("short".to_owned(), wav(440.0, 0.7, 48_000, 2)));
    pieces.push(("noise".to_owned(), (0..5000u32).map(|n| (n * n % 251) as u8).collect()));
    pieces.push(("nothing".to_owned(), Vec::new()));
    // Not long ago, or the broker's retention would take the records away.
    let now_ms = now_ms();
    let input = |(n, (name, bytes)): (usize, (String, Vec<u8>))| {
        let input = Input::new(n as i32 % 2, &name, bytes).header("traceparent", &format!("00-{n:032x}-1-01"));
        Input { timestamp_ms: Some(now_ms - n as i64), ..input }
    };
    pieces.into_iter().enumerate().map(input).collect()
}

#[test]
fn three_processes_give_the_results_of_one_to_the_bit() {
    let inputs = inputs();
    let results = |kinds: &[&str]| {
        let topics = Topics::between_stages(2);
        publish(&topics.audio, &inputs);
        let running: Vec<Running> = kinds.iter().map(|kind| stages(&topics, kind).start()).collect();
        Reader::new(&[&topics.predictions, &topics.rejected]).take(inputs.len());
        running.into_iter().for_each(|running| _ = running.stop());
        let passed: Vec<Vec<String>> =
            read_all(&topics.predictions).iter().map(|record| record.header("traceparent")).collect();
        (predictions(&topics), rejects(&topics), passed)
    };
    let together = results(&["decode,features,infer"]);
    assert_eq!((together.0.len(), together.1.len()), (inputs.len() - 3, 3));
    for kinds in [&STAGES[..], &["decode,features", "infer"], &["decode", "features,infer"]] {
        let apart = results(kinds);
        assert_eq!((apart.0.len(), apart.1.len()), (together.0.len(), together.1.len()), "{kinds:?}");
        for (apart, together) in apart.0.iter().zip(&together.0) {
            assert_eq!(apart, together, "{kinds:?}");
        }
        for (apart, together) in apart.1.iter().zip(&together.1) {
            assert_eq!(apart.headers, together.headers, "{kinds:?}");
            assert!(apart == together, "{kinds:?}: the reject of {} differs", apart.key_text());
        }
        assert_eq!(apart.2, together.2, "{kinds:?}");
    }
}

/// What the blocks of a topic say, track by track, in the order they are written.
fn blocks(topic: &str, kind: BlockKind) -> BTreeMap<String, Vec<BlockHead>> {
    let mut tracks: BTreeMap<String, Vec<BlockHead>> = BTreeMap::new();
    for record in read_all(topic) {
        let text = |name: &str| record.headers.iter().find(|(key, _)| key == name.as_bytes())?.1.as_deref();
        let head = BlockHead::read(kind, |name| std::str::from_utf8(text(name)?).ok()).expect("a block");
        tracks.entry(head.track.id.clone()).or_default().push(head);
    }
    tracks
}

/// Every track is there once, from its first block to its last.
#[track_caller]
fn assert_whole(tracks: &BTreeMap<String, Vec<BlockHead>>) {
    for (track, blocks) in tracks {
        let indices: Vec<u64> = blocks.iter().map(|block| block.index).collect();
        assert_eq!(indices, (0..blocks.len() as u64).collect::<Vec<_>>(), "blocks of {track}");
        let ends: Vec<bool> = blocks.iter().map(|block| block.track.end.is_some()).collect();
        assert!(ends.iter().rev().skip(1).all(|end| !end) && ends.last() == Some(&true), "ends of {track}: {ends:?}");
    }
}

#[test]
fn killing_any_of_the_processes_again_and_again_loses_and_repeats_nothing() {
    const KILLS: usize = 6;
    let mut chance = Chance::new();
    let topics = Topics::between_stages(2);
    topics.session_timeout(Duration::from_secs(3));
    // Most tracks have several blocks; every tenth is rejected after some of them, but none that ends its partition:
    // a reject comes before the other stages see the end of its track, a prediction after they are through with it.
    let is_rejected = |n: i64| n % 10 == 5;
    let inputs: Vec<Input> = (0..40)
        .map(|n| {
            let seconds = if is_rejected(n.into()) { 143.0 } else { 10.0 + (n % 7) as f32 * 20.0 };
            Input::new(n % 2, &format!("track-{n}"), wav(80.0 + n as f32, seconds, 8_000, 1))
        })
        .collect();
    publish(&topics.audio, &inputs);
    let instance = chance::name("instance");
    let model = models::slow(Duration::from_millis(1));
    let start = |kind: usize| {
        stages(&topics, STAGES[kind])
            .model(&model)
            .set("limits.max_duration_s", 140)
            .set("kafka.instance_id", &instance)
            .set("runtime.commit_interval_ms", 20)
            .set("runtime.in_flight_mib", 8)
            .start()
    };
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    let mut running: Vec<Option<Running>> = (0..3).map(|kind| Some(start(kind))).collect();
    let mut came = reader.take(1).len();
    for kill in 0..KILLS {
        let victim = kill % 3;
        came += reader.take(1 + chance.below(3) as usize).len();
        std::thread::sleep(Duration::from_millis(chance.below(300)));
        running[victim].take().expect("it runs").kill();
        running[victim] = Some(start(victim));
    }
    reader.take(inputs.len() - came);
    running.into_iter().flatten().for_each(|running| _ = running.stop());

    assert_whole(&blocks(&topics.pcm, BlockKind::Pcm));
    assert_whole(&blocks(&topics.features, BlockKind::Features));
    let mut keys = BTreeSet::new();
    for topic in [&topics.predictions, &topics.rejected] {
        let mut last = (0, -1);
        for record in read_all(topic) {
            let number: i64 = record.key_text()["track-".len()..].parse().expect("a number");
            assert_eq!(i64::from(record.partition), number % 2, "partition of track {number}");
            assert!(last < (record.partition, number), "track {number} comes after {last:?} in {topic}");
            assert!(keys.insert(number), "track {number} has two results");
            assert_eq!(topic == &topics.rejected, is_rejected(number), "track {number} is in {topic}");
            last = (record.partition, number);
        }
    }
    assert_eq!(keys.len(), inputs.len(), "lost");
}

/// The metadata of the group's offset.
fn metadata(topics: &Topics) -> String {
    let client = ClientConfig::new().set("bootstrap.servers", brokers()).set("group.id", &topics.group).clone();
    let consumer: BaseConsumer = client.create().expect("a consumer");
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&topics.audio, 0);
    let found = consumer.committed_offsets(asked, PATIENCE).expect("the broker answers");
    found.elements().first().map(|found| found.metadata().to_owned()).unwrap_or_default()
}

#[test]
fn a_half_written_track_goes_on_where_it_was() {
    let topics = Topics::between_stages(1);
    topics.session_timeout(Duration::from_secs(3));
    // 20 minutes: about 150 blocks.
    publish(&topics.audio, &[Input::new(0, "long", wav(110.0, 1200.0, 8_000, 1))]);
    // Little room: blocks wait for each other's commits.
    let run = || {
        stages(&topics, "decode")
            .set("limits.max_duration_s", 2000)
            .set("runtime.in_flight_mib", 4)
            .set("runtime.commit_interval_ms", 500)
            .set("runtime.drain_timeout_ms", 0)
    };
    let reader = Reader::new(&[&topics.pcm]);
    let first = run().start();
    reader.take(5);
    first.kill();
    let half = read_all(&topics.pcm).len();
    wait("the count of blocks", || metadata(&topics).contains(" blocks=").then_some(()));
    assert_eq!(committed(&topics.group, &topics.audio, 1), [Some(0)], "the track is not done");

    let second = run().ready();
    wait("more blocks", || (read_all(&topics.pcm).len() > half).then_some(()));
    let log = second.stop();
    let later = read_all(&topics.pcm).len();
    assert!(later > half, "{half} blocks, then {later}");
    assert!(log.contains("left the group"), "{log}");

    let third = run().ready();
    wait("the whole track", || (committed(&topics.group, &topics.audio, 1) == [Some(1)]).then_some(()));
    third.stop();
    let tracks = blocks(&topics.pcm, BlockKind::Pcm);
    assert_whole(&tracks);
    let blocks = &tracks.values().next().expect("a track");
    assert!(later < blocks.len(), "the track was done before it was half done: {later} of {}", blocks.len());
}

#[test]
fn a_track_half_written_by_another_kind_of_process_is_written_anew() {
    let topics = Topics::between_stages(1);
    topics.session_timeout(Duration::from_secs(3));
    let long = Input::new(0, "long", wav(110.0, 600.0, 8_000, 1));
    publish(&topics.audio, &[long, Input::new(0, "short", wav(99.0, 4.0, 16_000, 1))]);
    let run = |max_duration_s: u32| {
        stages(&topics, "decode").set("limits.max_duration_s", max_duration_s).set("runtime.in_flight_mib", 4)
    };
    let first = run(2000).set("runtime.commit_interval_ms", 500).start();
    Reader::new(&[&topics.pcm]).take(3);
    first.kill();
    // Another limit might end the track elsewhere, so what is written so far cannot be counted on.
    let second = [run(2001).start(), stages(&topics, "features").start(), stages(&topics, "infer").start()];
    Reader::new(&[&topics.predictions]).take(2);
    second.into_iter().for_each(|running| _ = running.stop());

    let tracks = blocks(&topics.pcm, BlockKind::Pcm);
    let indices: Vec<u64> = tracks[&format!("{}-0-0", topics.audio)].iter().map(|block| block.index).collect();
    let again = 1 + indices[1..].iter().position(|&index| index == 0).expect("it starts over");
    assert!(indices[..again].iter().copied().eq(0..again as u64), "{indices:?}");
    assert!(indices[again..].iter().copied().eq(0..(indices.len() - again) as u64), "{indices:?}");
    let said = predictions(&topics);
    assert_eq!(said.iter().map(|(_, key, _)| key.as_str()).collect::<Vec<_>>(), ["long", "short"]);
    // 16 000 × 600 / 256 frames in windows of 187.
    assert_eq!(said[0].2.windows.as_ref().map(Vec::len), Some(200));
    assert_eq!(read_all(&topics.rejected).len(), 0);
}

#[test]
fn a_block_is_read_with_safetensors_alone() {
    let topics = Topics::between_stages(1);
    publish(&topics.audio, &[Input::new(0, "piece", wav(220.0, 30.0, 44_100, 2))]);
    let running = [stages(&topics, "decode").start(), stages(&topics, "features").start()];
    // 30 s are ten windows in two blocks of at most seven.
    Reader::new(&[&topics.features]).take(2);
    running.into_iter().for_each(|running| _ = running.stop());

    let pcm: Vec<Record> = read_all(&topics.pcm);
    let samples = |record: &Record| {
        let value = record.value.clone().expect("a value");
        let tensors = SafeTensors::deserialize(&value).expect("safetensors");
        let pcm = tensors.tensor("pcm").expect("a tensor");
        assert_eq!((pcm.dtype(), pcm.shape().len()), (Dtype::F32, 1));
        pcm.shape()[0]
    };
    assert_eq!(pcm.iter().map(samples).sum::<usize>(), 30 * 16_000);
    let features: Vec<Record> = read_all(&topics.features);
    let windows = |record: &Record| {
        let value = record.value.clone().expect("a value");
        let tensors = SafeTensors::deserialize(&value).expect("safetensors");
        let features = tensors.tensor("features").expect("a tensor");
        assert_eq!((features.dtype(), &features.shape()[1..]), (Dtype::F32, [187, 96].as_slice()));
        features.shape()[0]
    };
    assert_eq!(features.iter().map(windows).sum::<usize>(), 10);
    for record in pcm.iter().chain(&features) {
        assert_eq!(record.key_text(), "piece");
        assert_eq!(record.header("content-type"), [block::CONTENT_TYPE]);
    }
    let last: serde_json::Value =
        serde_json::from_str(&features.last().expect("blocks").header(block::header::TRACK)[0]).expect("JSON");
    assert_eq!(last["end"]["whole"]["audio"]["frames"], 30 * 44_100);
    assert_eq!(last["source"]["offset"], 0);
    assert_eq!(features.last().expect("blocks").header(block::header::LAST), ["true"]);
}

#[test]
fn what_is_no_block_is_rejected_and_the_rest_goes_on() {
    let topics = Topics::between_stages(1);
    let piece = wav(220.0, 30.0, 16_000, 1);
    let decode = stages(&topics, "decode").start();
    publish(&topics.audio, &[Input::new(0, "good", piece.clone()), Input::new(0, "torn", piece.clone())]);
    let blocks = Reader::new(&[&topics.pcm]).take(8);
    decode.stop();

    // As if others wrote to the topic: no block, and a track without its first block.
    let again = |record: &Record| Input {
        partition: 0,
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.clone(),
        timestamp_ms: None,
    };
    let strange = Topics::between_stages(1);
    let torn: Vec<&Record> = blocks.iter().filter(|block| block.key_text() == "torn").collect();
    let good: Vec<&Record> = blocks.iter().filter(|block| block.key_text() == "good").collect();
    let mut written = vec![Input::new(0, "noise", b"no block".to_vec())];
    written.extend(torn.iter().skip(1).map(|block| again(block)));
    written.extend(good.iter().map(|block| again(block)));
    publish(&strange.pcm, &written);
    let running = stages(&strange, "features,infer").start();
    Reader::new(&[&strange.predictions, &strange.rejected]).take(3);
    running.stop();

    let rejects = read_all(&strange.rejected);
    let said = |reject: &Record| [header::TOPIC, header::STAGE, header::CLASS].map(|name| reject.header(name).join(""));
    assert_eq!(said(&rejects[0]), [&strange.pcm, "features", "invalid-block"]);
    assert_eq!(rejects[0].value.as_deref(), Some(b"no block".as_slice()));
    assert_eq!(rejects[0].header(header::MESSAGE), ["header tonearm.schema is missing"]);
    // The track comes back as it was first published.
    assert_eq!(said(&rejects[1]), [&topics.audio, "features", "invalid-block"]);
    assert_eq!(rejects[1].value, Some(piece));
    assert_eq!(rejects[1].header(header::OFFSET), ["1"]);
    assert_eq!(rejects[1].header(header::MESSAGE), ["block 1 comes in place of block 0"]);
    let predictions = read_all(&strange.predictions);
    assert_eq!(predictions.len(), 1);
    assert_eq!(predictions[0].key_text(), "good");
}

#[test]
fn a_rejected_track_ends_for_the_stages_behind_as_well() {
    let topics = Topics::between_stages(1);
    let long = wav(120.0, MAX_DURATION_S as f32 + 5.0, 8_000, 1);
    publish(&topics.audio, &[Input::new(0, "long", long.clone()), Input::new(0, "good", wav(99.0, 4.0, 16_000, 1))]);
    let running: Vec<Running> = STAGES.iter().map(|kind| stages(&topics, kind).start()).collect();
    Reader::new(&[&topics.predictions, &topics.rejected]).take(2);
    running.into_iter().for_each(|running| _ = running.stop());
    for (topic, kind) in [(&topics.pcm, BlockKind::Pcm), (&topics.features, BlockKind::Features)] {
        let tracks = blocks(topic, kind);
        assert_whole(&tracks);
        let ends: Vec<bool> = tracks
            .values()
            .map(|blocks| matches!(blocks.last().and_then(|last| last.track.end.clone()), Some(TrackEnd::Rejected)))
            .collect();
        assert_eq!(ends, [true, false], "in {topic}");
    }
    let rejects = read_all(&topics.rejected);
    assert_eq!((rejects.len(), &rejects[0].value), (1, &Some(long)));
    assert_eq!(read_all(&topics.predictions).len(), 1);
}
