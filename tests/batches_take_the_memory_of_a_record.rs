//! A compressed batch of any size takes the memory of its largest record, and stops no partition: whatever is in it
//! ends, and so does what can no longer be read of it.

use tonearm_schemas::reject::header;
use tonearm_tests::{
    audio::{wav, wav_of},
    broker::{Topics, damage, delete_group, topic_config},
    models,
    program::Run,
    records::{Input, Publisher, Reader, Record, committed, publish, read_all},
    verifier::{History, Verdict, verify},
};

const MIB: usize = 1 << 20;
const CODECS: [&str; 4] = ["gzip", "snappy", "lz4", "zstd"];

fn run(topics: &Topics) -> Run {
    Run::new(topics).model(&models::tiny())
}

/// Publishes `inputs` of one partition in one batch.
fn publish_packed(topic: &str, codec: &str, inputs: &[Input]) {
    let mut publisher = Publisher::packing(topic, codec);
    inputs.iter().for_each(|input| publisher.send(input));
    publisher.finish();
}

fn good(partition: i32, name: &str) -> Input {
    Input::new(partition, name, wav(200.0, 0.3, 8_000, 1))
}

/// `mib` of silence, which packs into kilobytes: audio, or every other time zeros that are none.
fn silence(partition: i32, n: usize, mib: usize) -> Input {
    let audio = wav_of(&vec![0.0; mib * MIB / 4], 192_000);
    let value = if n.is_multiple_of(2) { audio } else { vec![0; mib * MIB] };
    Input::new(partition, &format!("silence-{n}"), value).header("x-n", &n.to_string())
}

fn verdict(topics: &Topics, partitions: i32) -> Verdict {
    verify(&History {
        published: read_all(&topics.audio),
        predictions: read_all(&topics.predictions),
        rejected: read_all(&topics.rejected),
        positions: committed(&topics.group, &topics.audio, partitions),
    })
}

/// Lets a run work on `inputs` results, which are then all that there should be.
fn assert_all_end(run: Run, topics: &Topics, partitions: i32, inputs: usize) {
    let running = run.start();
    Reader::new(&[&topics.predictions, &topics.rejected]).take(inputs);
    running.stop();
    let verdict = verdict(topics, partitions);
    verdict.assert_faultless();
    assert_eq!(verdict.records, inputs);
}

#[test]
fn batches_far_larger_than_the_limit_are_worked_off_within_it() {
    const IN_FLIGHT_MIB: usize = 24;
    const RECORD_MIB: usize = 8;
    const RECORDS: usize = 16;
    // Beyond the bytes in flight: the record that goes over them, once more for librdkafka's queue and for its batch;
    // decoders; 24 MiB for an allocator's gaps. A batch alone unpacks to 128 MiB.
    const ALLOWED_MIB: usize = IN_FLIGHT_MIB + 3 * RECORD_MIB + 16 + 24;
    let partitions = CODECS.len() as i32;
    let topics = Topics::new(partitions);
    // Libtorch and the workers' buffers have their memory before anything is measured.
    let warm_up: Vec<Input> = (0..partitions).map(|partition| silence(partition, 0, RECORD_MIB)).collect();
    publish(&topics.audio, &warm_up);
    let running = run(&topics).set("runtime.workers", 2).set("runtime.in_flight_mib", IN_FLIGHT_MIB).ready();
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    reader.take(warm_up.len());
    let before = running.memory("VmHWM");

    let mut count = warm_up.len();
    for round in 0..2 {
        for (partition, codec) in (0..).zip(CODECS) {
            let inputs: Vec<Input> = (0..RECORDS).map(|n| silence(partition, n, RECORD_MIB)).collect();
            publish_packed(&topics.audio, codec, &inputs);
            publish(&topics.audio, &[good(partition, &format!("good-{round}"))]);
            count += RECORDS + 1;
        }
    }
    reader.take(count - warm_up.len());
    let grown = (running.memory("VmHWM") - before) as usize / MIB;
    running.stop();
    println!("{grown} MiB more for {} MiB", RECORDS * RECORD_MIB * CODECS.len() * 2);
    let verdict = verdict(&topics, partitions);
    verdict.assert_faultless();
    assert_eq!(verdict.records, count);
    assert!(grown <= ALLOWED_MIB, "grown by {grown} MiB, allowed are {ALLOWED_MIB}");
}

#[test]
fn a_batch_is_taken_up_in_its_middle() {
    const RECORDS: usize = 60;
    let topics = Topics::new(1);
    let inputs: Vec<Input> = (0..RECORDS).map(|n| silence(0, n, 1)).collect();
    publish_packed(&topics.audio, "zstd", &inputs);
    let slow = || Run::new(&topics).model(&models::slow(std::time::Duration::from_millis(20)));
    let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
    for stop in [true, false] {
        let running = slow().start();
        reader.take(RECORDS / 4);
        if stop {
            running.stop();
        } else {
            running.kill();
        }
    }
    let position = committed(&topics.group, &topics.audio, 1)[0].expect("something is committed");
    assert!((1..RECORDS as i64).contains(&position), "{position} is not within the batch");
    let running = slow().start();
    reader.take(RECORDS / 2);
    running.stop();
    verdict(&topics, 1).assert_faultless();
}

#[test]
fn keys_headers_and_times_come_out_of_a_batch_as_they_went_in() {
    let topics = Topics::new(CODECS.len() as i32);
    let mut count = 0;
    for (partition, codec) in (0..).zip(CODECS) {
        let mut inputs: Vec<Input> = (0..8).map(|n| silence(partition, n, 1)).collect();
        inputs[1].key = None;
        inputs[2].value = None;
        inputs[3].headers.push((b"\xff".to_vec(), None));
        inputs[4].key = Some(vec![0; 100_000]);
        for (n, input) in (1..).zip(&mut inputs) {
            input.timestamp_ms = Some(1_700_000_000_000 - n);
        }
        publish_packed(&topics.audio, codec, &inputs);
        count += inputs.len();
    }
    topic_config(&topics.rejected, "message.timestamp.before.max.ms", &i64::MAX.to_string());
    topic_config(&topics.rejected, "retention.ms", "-1");
    assert_all_end(run(&topics), &topics, CODECS.len() as i32, count);
}

#[test]
fn a_record_of_a_batch_that_is_too_large_is_not_unpacked() {
    let topics = Topics::new(1);
    let mut inputs = vec![silence(0, 0, 1), silence(0, 1, 40), silence(0, 1, 40), silence(0, 3, 1)];
    inputs[2].key = Some(vec![1; 30 * MIB]);
    publish_packed(&topics.audio, "zstd", &inputs);
    publish(&topics.audio, &[good(0, "behind")]);
    assert_all_end(run(&topics).set("limits.max_record_mib", 2), &topics, 1, inputs.len() + 1);
    let too_large =
        read_all(&topics.rejected).into_iter().filter(|reject| reject.header(header::CLASS) == ["too-large"]);
    assert!(too_large.map(|reject| reject.value).eq([None, None]));
}

#[test]
fn stages_work_on_compressed_blocks_and_results_are_found_again_in_compressed_topics() {
    let topics = Topics::between_stages(2);
    for topic in [&topics.pcm, &topics.features, &topics.predictions, &topics.rejected] {
        topic_config(topic, "compression.type", "zstd");
    }
    let feed = |round: usize| {
        let inputs: Vec<Input> = (0..20).map(|n| silence(n as i32 % 2, n + 100 * round, 1)).collect();
        publish(&topics.audio, &inputs);
        inputs.len()
    };
    let mut count = 0;
    for round in 0..2 {
        count += feed(round);
        let stages = ["decode", "features", "infer"];
        let running = stages.map(|stages| {
            let group = format!("{}-{stages}", topics.group);
            run(&topics).set("runtime.stages", stages).set("kafka.group_id", group).start()
        });
        let reader = Reader::new(&[&topics.predictions, &topics.rejected]);
        reader.take(count);
        running.into_iter().for_each(|running| _ = running.stop());
        // What the first one has done is known by its blocks only.
        delete_group(&format!("{}-decode", topics.group));
    }
    let verdict = verify(&History {
        published: read_all(&topics.audio),
        predictions: read_all(&topics.predictions),
        rejected: read_all(&topics.rejected),
        positions: Vec::new(),
    });
    verdict.assert_faultless();
}

#[test]
fn what_cannot_be_read_of_a_batch_is_rejected_and_the_rest_goes_on() {
    for codec in CODECS {
        let topics = Topics::new(1);
        let inputs: Vec<Input> = (0..40).map(|n| silence(0, n, 1)).collect();
        publish_packed(&topics.audio, codec, &inputs);
        let batch = read_all(&topics.audio);
        damage(&topics.audio, 0, 64);
        // Behind the file's middle.
        publish(&topics.audio, &[good(0, "behind")]);
        let running = run(&topics).start();
        Reader::new(&[&topics.predictions, &topics.rejected]).take(inputs.len() + 1);
        running.stop();

        let (predictions, rejected) = (read_all(&topics.predictions), read_all(&topics.rejected));
        let (unreadable, read): (Vec<Record>, Vec<Record>) =
            rejected.into_iter().partition(|reject| reject.header(header::CLASS) == ["unreadable-batch"]);
        let first = unreadable[0].source().1;
        assert!(unreadable.iter().map(|reject| reject.source().1).eq(first..40), "{codec}: each has one");
        assert!(unreadable.iter().all(|reject| reject.value.is_none()), "{codec}");
        assert_eq!(predictions.last().map(Record::source), Some((0, 40)), "{codec}: the partition goes on");
        let before = |result: &&Record| result.source().1 < first;
        let history = History {
            published: batch.into_iter().filter(|record| record.offset < first).collect(),
            predictions: predictions.iter().filter(before).cloned().collect(),
            rejected: read,
            positions: Vec::new(),
        };
        verify(&history).assert_faultless();
        assert_eq!(committed(&topics.group, &topics.audio, 1), [Some(41)], "{codec}");
    }
}
