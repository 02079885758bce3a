//! `tonearm offsets`

use std::{
    fmt::Write,
    io::{BufRead, IsTerminal},
    time::{Duration, Instant, UNIX_EPOCH},
};

use clap::{Args, Subcommand};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use super::{CommandError, CommandResult, Global, flag, paint, say};
use crate::{
    config::Config,
    kafka::{self, FIRST_ANSWER, Logged},
    telemetry::log,
};

/// How many of the records to be skipped are shown.
const SHOWN: usize = 10;

#[derive(Subcommand)]
pub enum OffsetsCommand {
    /// Show where the group is in each partition
    #[command(after_help = "Example:\n  tonearm offsets show --group taggers\n\n\
        A partition without a position is one that the group has committed nothing in: see kafka.missing_offsets.\n\
        Records are counted by their offsets, which markers of transactions take part in.")]
    Show(Group),
    /// Move the group past records of a partition, which then get no result
    #[command(after_help = "Examples:\n  \
        tonearm offsets skip --partition 3             past the next record\n  \
        tonearm offsets skip --partition 3 --to 1190   past all records before offset 1190\n\n\
        No `tonearm run` of the group may run meanwhile.")]
    Skip {
        #[command(flatten)]
        group: Group,
        #[arg(long, value_name = "N")]
        partition: i32,
        /// The offset of the first record that is not skipped [default: that after the next record]
        #[arg(long, value_name = "OFFSET")]
        to: Option<i64>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Move the group to another place in all partitions, or in one
    #[command(after_help = "Examples:\n  \
        tonearm offsets reset --to earliest            every record gets a result once more\n  \
        tonearm offsets reset --to 2026-11-25T13:00:00Z\n  \
        tonearm offsets reset --to 1187 --partition 3\n\n\
        No `tonearm run` of the group may run meanwhile.")]
    Reset {
        #[command(flatten)]
        group: Group,
        /// earliest, latest, an offset, or a time in UTC: the first record published then or later
        #[arg(long, value_name = "PLACE")]
        to: String,
        /// Only this partition
        #[arg(long, value_name = "N")]
        partition: Option<i32>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Args)]
pub struct Group {
    /// Consumer group [default: kafka.group_id]
    #[arg(long, value_name = "ID")]
    group: Option<String>,
    /// Stages whose input topic is meant [default: runtime.stages]
    #[arg(long, value_name = "STAGES")]
    stages: Option<String>,
}

pub fn main(global: &Global, command: &OffsetsCommand) -> CommandResult {
    let (OffsetsCommand::Show(group) | OffsetsCommand::Skip { group, .. } | OffsetsCommand::Reset { group, .. }) =
        command;
    let config = global.config([
        flag("kafka.group_id", "--group", group.group.as_ref()),
        flag("runtime.stages", "--stages", group.stages.as_ref()),
    ])?;
    log::init(if global.log.is_some() { &config.log.level } else { "warn" }, config.log.json);
    match command {
        OffsetsCommand::Show(_) => show(&Positions::open(&config)?),
        OffsetsCommand::Skip { partition, to, yes, .. } => skip(&Positions::open(&config)?, *partition, *to, *yes),
        OffsetsCommand::Reset { to, partition, yes, .. } => {
            let place = Place::parse(to)?;
            reset(&Positions::open(&config)?, place, *partition, *yes)
        }
    }
}

fn show(positions: &Positions) -> CommandResult {
    let mut table = vec![["partition", "position", "log start", "log end", "lag", ""].map(str::to_owned)];
    for partition in positions.all()? {
        let Partition { number, committed, metadata, start, end } = partition;
        let lag = end - committed.unwrap_or(start).max(start);
        let position = committed.map_or_else(|| "none".to_owned(), |offset| offset.to_string());
        let numbers = [start, end, lag].map(|number| number.to_string());
        let [start, end, lag] = numbers;
        table.push([number.to_string(), position, start, end, lag, paint::plain(&metadata)]);
    }
    let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4].map(width);
    let mut text = format!("group {}, topic {}\n", positions.group, positions.topic);
    for row in &table {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:>width$}  ");
        }
        text.push_str(format!("{line}{}", row[5]).trim_end());
        text.push('\n');
    }
    Ok(say::text(text)?)
}

fn skip(positions: &Positions, number: i32, to: Option<i64>, yes: bool) -> CommandResult {
    let Partition { committed, start, end, .. } = positions.one(number)?;
    let from = committed.unwrap_or(start).max(start);
    let whole = || format!("partition {number} of {}", positions.topic);
    if let Some(to) = to
        && !(from + 1..=end).contains(&to)
    {
        let place = format!("the group is at {from}, and the log ends at {end}");
        return Err(CommandError::Usage(format!("--to {to} is not ahead in {}: {place}", whole())));
    }
    let records = positions.read(number, from, to)?;
    let to = match (to, records.last()) {
        (Some(to), _) => to,
        (None, Some(record)) => record.offset + 1,
        (None, None) => {
            return Err(CommandError::Failed(format!("there is no record to skip: {} is read to its end", whole())));
        }
    };
    let mut text = format!("{}, from offset {from} to {to}, skips:\n", whole());
    for Record { offset, key, bytes, published } in &records {
        let _ = writeln!(text, "  offset {offset}: {key}, {bytes} bytes{published}");
    }
    if records.len() == SHOWN {
        let _ = writeln!(text, "  … and what comes behind it");
    }
    say::text(text)?;
    confirm(yes, "these records get no result; skip them?")?;
    positions.commit(&[(number, to)])
}

fn reset(positions: &Positions, place: Place, only: Option<i32>, yes: bool) -> CommandResult {
    let partitions = match only {
        Some(number) => vec![positions.one(number)?],
        None => positions.all()?,
    };
    let targets = positions.find(place, &partitions)?;
    let mut text = String::new();
    for (partition, (number, to)) in partitions.iter().zip(&targets) {
        let from = partition.committed.map_or_else(|| "none".to_owned(), |offset| offset.to_string());
        let _ = writeln!(text, "partition {number}: {from} → {to}");
    }
    say::text(text)?;
    confirm(yes, "records before these offsets get no result, those behind get one once more; go there?")?;
    positions.commit(&targets)
}

/// Asks, if there is somebody to ask.
fn confirm(yes: bool, question: &str) -> CommandResult {
    if yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(CommandError::Usage("nothing was changed: this needs --yes, as there is nobody to ask".to_owned()));
    }
    say::problem(format_args!("{question} [y/N]"));
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(CommandError::failed)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(CommandError::Failed("nothing was changed".to_owned()))
}

/// Where a reset leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Earliest,
    Latest,
    Offset(i64),
    /// Milliseconds since 1970.
    Time(i64),
}

impl Place {
    fn parse(text: &str) -> Result<Self, CommandError> {
        let time = || {
            let since = humantime::parse_rfc3339_weak(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
            i64::try_from(since.as_millis()).ok()
        };
        match (text, text.parse()) {
            ("earliest", _) => Ok(Self::Earliest),
            ("latest", _) => Ok(Self::Latest),
            (_, Ok(offset)) if offset >= 0 => Ok(Self::Offset(offset)),
            _ => time().map(Self::Time).ok_or_else(|| {
                let allowed = "earliest, latest, an offset, or a time such as 2026-11-25T13:00:00Z";
                CommandError::Usage(format!("--to {text:?} is none of {allowed}"))
            }),
        }
    }
}

/// A partition of the input topic.
struct Partition {
    number: i32,
    committed: Option<i64>,
    /// What was committed with the position: how many blocks of a record in work are written, for example.
    metadata: String,
    start: i64,
    end: i64,
}

/// A record that may be skipped.
struct Record {
    offset: i64,
    key: String,
    bytes: usize,
    published: String,
}

/// The group's positions in the input topic, seen from outside the group.
struct Positions {
    consumer: BaseConsumer<Logged>,
    group: String,
    topic: String,
    partitions: i32,
}

impl Positions {
    fn open(config: &Config) -> Result<Self, CommandError> {
        let mut client = kafka::client_config(&config.kafka);
        client
            .set("group.id", &config.kafka.group_id)
            .set("enable.auto.commit", "false")
            // A transaction that is open over positions or records is no reason to wait.
            .set("isolation.level", "read_uncommitted")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("receive.message.max.bytes", kafka::MAX_RESPONSE_BYTES);
        let client = kafka::with_properties(client, &config.kafka);
        let consumer: BaseConsumer<Logged> = client.create_with_context(Logged).map_err(CommandError::failed)?;
        let topic = config.input_topic().to_owned();
        kafka::reach_topics(&config.kafka, kafka::Access::Read, &[topic.as_str()])?;
        let partitions = kafka::partitions(consumer.client(), &config.kafka, &topic)?;
        Ok(Self { consumer, group: config.kafka.group_id.clone(), topic, partitions: partitions as i32 })
    }

    fn all(&self) -> Result<Vec<Partition>, CommandError> {
        self.some(0..self.partitions)
    }

    fn one(&self, number: i32) -> Result<Partition, CommandError> {
        if !(0..self.partitions).contains(&number) {
            let Self { topic, partitions, .. } = self;
            let last = partitions - 1;
            return Err(CommandError::Usage(format!(
                "--partition {number} is not one of 0 to {last} of topic {topic}"
            )));
        }
        Ok(self.some(number..number + 1)?.remove(0))
    }

    fn some(&self, numbers: std::ops::Range<i32>) -> Result<Vec<Partition>, CommandError> {
        let mut asked = TopicPartitionList::new();
        numbers.for_each(|number| _ = asked.add_partition(&self.topic, number));
        let unknown = |e| CommandError::Failed(format!("the positions of group {} cannot be read: {e}", self.group));
        let found = self.committed(&asked).map_err(unknown)?;
        let partition = |found: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            found.error().map_err(unknown)?;
            let number = found.partition();
            let (start, end) = self.ends(number)?;
            let committed = match found.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            Ok(Partition { number, committed, metadata: found.metadata().to_owned(), start, end })
        };
        found.elements().iter().map(partition).collect()
    }

    /// The first group of a cluster gets its coordinator when it is asked for, and others may get another.
    fn committed(&self, asked: &TopicPartitionList) -> KafkaResult<TopicPartitionList> {
        use RDKafkaErrorCode::{CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator};
        let began = Instant::now();
        loop {
            match self.consumer.committed_offsets(asked.clone(), FIRST_ANSWER) {
                Err(KafkaError::MetadataFetch(
                    CoordinatorLoadInProgress | CoordinatorNotAvailable | NotCoordinator,
                )) if began.elapsed() < FIRST_ANSWER => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                answer => return answer,
            }
        }
    }

    fn ends(&self, partition: i32) -> Result<(i64, i64), CommandError> {
        self.consumer.fetch_watermarks(&self.topic, partition, FIRST_ANSWER).map_err(|e| {
            CommandError::Failed(format!("the ends of {}, partition {partition}, cannot be read: {e}", self.topic))
        })
    }

    /// The next record, or the first of those before `to`.
    fn read(&self, partition: i32, from: i64, to: Option<i64>) -> Result<Vec<Record>, CommandError> {
        let failed = |e: KafkaError| {
            let place = format!("{}, partition {partition}, offset {from}", self.topic);
            CommandError::Failed(format!("what is to be skipped at {place} cannot be read: {e}"))
        };
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&self.topic, partition, Offset::Offset(from)).map_err(failed)?;
        self.consumer.assign(&assignment).map_err(failed)?;
        let (count, asked) = (if to.is_some() { SHOWN } else { 1 }, Instant::now());
        let mut records = Vec::new();
        while records.len() < count {
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) if to.is_some_and(|to| message.offset() >= to) => break,
                Some(Ok(message)) => records.push(Record {
                    offset: message.offset(),
                    key: message.key().map_or_else(
                        || "no key".to_owned(),
                        |key| format!("key \"{}\"", paint::plain(&String::from_utf8_lossy(key))),
                    ),
                    bytes: message.payload_len(),
                    published: message.timestamp().to_millis().map(published).unwrap_or_default(),
                }),
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                None if asked.elapsed() < FIRST_ANSWER => {}
                None => return Err(failed(KafkaError::NoMessageReceived)),
                Some(Err(error)) => return Err(failed(error)),
            }
        }
        self.consumer.unassign().map_err(failed)?;
        Ok(records)
    }

    /// The offset of `place` in each of `partitions`.
    fn find(&self, place: Place, partitions: &[Partition]) -> Result<Vec<(i32, i64)>, CommandError> {
        let mut times = TopicPartitionList::new();
        if let Place::Time(time) = place {
            let failed = |e| CommandError::Failed(format!("offsets of a time cannot be read: {e}"));
            for partition in partitions {
                let at = Offset::Offset(time);
                times.add_partition_offset(&self.topic, partition.number, at).map_err(failed)?;
            }
            times = self.consumer.offsets_for_times(times, FIRST_ANSWER).map_err(failed)?;
        }
        let target = |partition: &Partition| {
            let Partition { number, start, end, .. } = *partition;
            let offset = match place {
                Place::Earliest => start,
                Place::Latest => end,
                Place::Offset(offset) if (start..=end).contains(&offset) => offset,
                Place::Offset(offset) => {
                    let whole = format!("{start}..={end} of {}, partition {number}", self.topic);
                    return Err(CommandError::Usage(format!("--to {offset} is outside {whole}")));
                }
                Place::Time(_) => match times.find_partition(&self.topic, number).map(|found| found.offset()) {
                    Some(Offset::Offset(offset)) => offset,
                    // Nothing was published then or later.
                    _ => end,
                },
            };
            Ok((number, offset))
        };
        partitions.iter().map(target).collect()
    }

    /// Moves the group. Kafka lets nobody from outside do so while it has members.
    fn commit(&self, targets: &[(i32, i64)]) -> CommandResult {
        let failed = |e: KafkaError| {
            let group = &self.group;
            let members = matches!(
                e.rdkafka_error_code(),
                Some(
                    RDKafkaErrorCode::UnknownMemberId
                        | RDKafkaErrorCode::IllegalGeneration
                        | RDKafkaErrorCode::RebalanceInProgress
                        | RDKafkaErrorCode::StaleMemberEpoch
                )
            );
            CommandError::Failed(if members {
                format!("nothing was changed: group {group} has members; stop every `tonearm run` of it first")
            } else {
                format!("the positions of group {group} cannot be changed: {e}")
            })
        };
        let mut list = TopicPartitionList::new();
        for &(partition, offset) in targets {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(offset)).map_err(failed)?;
        }
        self.consumer.commit(&list, CommitMode::Sync).map_err(failed)?;
        let partitions = if targets.len() == 1 { "partition" } else { "partitions" };
        Ok(say::line(format_args!("group {} moved in {} {partitions} of {}", self.group, targets.len(), self.topic))?)
    }
}

/// `, published 2026-11-25T13:00:00Z`
fn published(ms: i64) -> String {
    let time = u64::try_from(ms).ok().and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    // humantime writes no year behind 9999.
    let time = time.filter(|_| ms < 253_402_300_800_000);
    time.map(|time| format!(", published {}", humantime::format_rfc3339_seconds(time))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_words_offsets_or_times() {
        assert_eq!(Place::parse("earliest").ok(), Some(Place::Earliest));
        assert_eq!(Place::parse("1187").ok(), Some(Place::Offset(1187)));
        assert_eq!(Place::parse("1970-01-01T00:00:01Z").ok(), Some(Place::Time(1000)));
        for wrong in ["", "-1", "soon", "1960-01-01T00:00:00Z"] {
            assert!(Place::parse(wrong).is_err(), "{wrong}");
        }
    }
}
