//! Positions read back from results, for a group that has none: brokers forget a group's offsets when it is away for
//! longer than they keep them (`offsets.retention.minutes`, seven days by default), and its results are still there.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use tonearm_schemas::{
    block::{self, BlockTrack},
    prediction::{Prediction, Source},
    reject::header,
};

use crate::{
    kafka::{self, Logged, headers::Header},
    run::intake::record::Record,
};

/// Results that are read first from each partition's end; if that is not enough, more.
const FIRST_LOOK: i64 = 256;
/// How long results may take to arrive before the brokers are asked anew.
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(100);

/// Where results of a topic lie.
#[derive(Clone, Debug)]
pub struct Results {
    pub client: ClientConfig,
    pub input: String,
    /// Topics of results, and whether a result keeps its record's partition there.
    pub topics: Vec<(String, bool)>,
}

/// A record that has its result: its offset and timestamp.
type Done = (i64, Option<i64>);

impl Results {
    /// For each of `partitions` the offset behind the last record that has its result, if there is one and it is a
    /// record of the topic that is there now.
    ///
    /// # Errors
    /// The brokers do not answer.
    pub fn behind(&self, partitions: &[i32]) -> KafkaResult<BTreeMap<i32, i64>> {
        let consumer: BaseConsumer<Logged> = self.client.create_with_context(Logged)?;
        let mut last = Vec::new();
        for (topic, keeps_partition) in &self.topics {
            self.look(&consumer, topic, *keeps_partition, partitions, &mut last)?;
        }
        let mut behind = BTreeMap::new();
        for (partition, done) in last {
            if self.is_here(&consumer, partition, done)? {
                let known = behind.entry(partition).or_insert(0);
                *known = (*known).max(done.0 + 1);
            }
        }
        Ok(behind)
    }

    /// Reads a topic of results from its end, until there is one of each partition or no more. Notes the last of each:
    /// those before it may be of higher offsets, of a topic that is no more.
    fn look(
        &self,
        consumer: &BaseConsumer<Logged>,
        topic: &str,
        keeps_partition: bool,
        partitions: &[i32],
        last: &mut Vec<(i32, Done)>,
    ) -> KafkaResult<()> {
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
        let count = metadata.topics().first().map_or(0, |found| found.partitions().len());
        let all = 0..i32::try_from(count).unwrap_or(i32::MAX);
        for of_results in all.filter(|number| !keeps_partition || partitions.contains(number)) {
            let (first, end) = consumer.fetch_watermarks(topic, of_results, PATIENCE)?;
            let wanted = if keeps_partition { &[of_results] } else { partitions };
            let (mut to, mut look) = (end, FIRST_LOOK);
            let mut seen = BTreeMap::new();
            while to > first && !wanted.iter().all(|partition| seen.contains_key(partition)) {
                let from = (to - look).max(first);
                let mut found = BTreeMap::new();
                self.read(consumer, topic, of_results, from..to, |result| {
                    if let Some((partition, done)) = self.source(result)
                        && partitions.contains(&partition)
                    {
                        found.insert(partition, done);
                    }
                })?;
                found.into_iter().for_each(|(partition, done)| _ = seen.entry(partition).or_insert(done));
                (to, look) = (from, look * 4);
            }
            last.extend(seen);
        }
        Ok(())
    }

    /// Reads what readers of committed records see of a range of offsets.
    fn read(
        &self,
        consumer: &BaseConsumer<Logged>,
        topic: &str,
        partition: i32,
        offsets: std::ops::Range<i64>,
        mut each: impl FnMut(&Record),
    ) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offsets.start))?;
        consumer.assign(&list)?;
        let mut heard = Instant::now();
        loop {
            match consumer.poll(STEP) {
                Some(Ok(message)) => {
                    let all = Record::all_of(&topic.into(), &message, offsets.start);
                    all.take_while(|record| record.offset < offsets.end).for_each(|record| each(&record));
                    heard = Instant::now();
                    if message.offset() + 1 >= offsets.end {
                        return Ok(());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) => return Err(error),
                None if heard.elapsed() >= PATIENCE => {
                    return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::OperationTimedOut));
                }
                None => {}
            }
        }
    }

    /// The record of the input that a result is of.
    fn source(&self, result: &Record) -> Option<(i32, Done)> {
        let of = &result.headers;
        let number = |name| Header::text(of, name).and_then(|text| text.parse::<i64>().ok());
        if let Some(topic) = Header::text(of, header::TOPIC) {
            let moved = number(header::TIMESTAMP);
            let timestamp = moved.or(result.timestamp_ms);
            let partition = i32::try_from(number(header::PARTITION)?).ok()?;
            return (topic == self.input).then_some((partition, (number(header::OFFSET)?, timestamp)));
        }
        let source = match Header::text(of, block::header::TRACK) {
            Some(track) => {
                let track = serde_json::from_str::<BlockTrack>(track).ok()?;
                // A track that is half written is started over.
                track.end.is_some().then_some(track.source)?
            }
            None => serde_json::from_slice::<Prediction>(result.value.as_ref()?).ok()?.source,
        };
        match source {
            Source::Record { topic, partition, offset, timestamp_ms } if topic == self.input => {
                Some((partition, (offset, timestamp_ms)))
            }
            _ => None,
        }
    }

    /// Whether the record that a result is of is in the topic that is there now, or may have been: a topic that was
    /// made again has other records at the same offsets, with other timestamps.
    fn is_here(&self, consumer: &BaseConsumer<Logged>, partition: i32, (offset, timestamp): Done) -> KafkaResult<bool> {
        let (first, end) = consumer.fetch_watermarks(&self.input, partition, PATIENCE)?;
        if offset < first {
            return Ok(true);
        }
        if offset >= end {
            return Ok(false);
        }
        let mut found = None;
        self.read(consumer, &self.input, partition, offset..offset + 1, |record| {
            found = Some(record.timestamp_ms);
        })?;
        Ok(found.is_none_or(|found| found == timestamp))
    }
}

/// A client that reads results, and is no member of any group.
pub fn client(kafka: &crate::config::Kafka) -> ClientConfig {
    let mut client = super::positions::observer(kafka, kafka::client_config(kafka));
    client
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        // The end of each partition is waited for, and the next one for that.
        .set("fetch.wait.max.ms", "10")
        .set("receive.message.max.bytes", kafka::MAX_RESPONSE_BYTES);
    kafka::with_properties(client, kafka)
}
