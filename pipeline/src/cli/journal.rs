//! What `tonearm publish --resume` remembers: a file with one line of JSON per record that the broker has confirmed.
//!
//! A line is appended after the confirmation, so a crash in between leaves records that are published and not in the
//! journal. They lie behind the last one that is in it: the next run looks for them in the topic.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use serde::{Deserialize, Serialize};

use crate::kafka::{FIRST_ANSWER, Logged};

/// For this long after its last line, records of a run that crashed may still be on their way: the broker has what the
/// run sent it, and may not have looked at it.
const ON_THE_WAY: Duration = Duration::from_secs(3);

/// A file in the state in which it was published. A changed file is another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Published {
    file: PathBuf,
    bytes: u64,
    modified_ns: u64,
}

impl Published {
    /// # Errors
    /// The file is not there, or its name is no text that JSON can hold.
    pub fn of(path: &Path) -> io::Result<Self> {
        let file = path.canonicalize()?;
        if file.to_str().is_none() {
            return Err(io::Error::other("its name is not UTF-8, which --resume needs"));
        }
        let metadata = file.metadata()?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self { file, bytes: metadata.len(), modified_ns: u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX) })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// A run began when the topic's partitions ended there.
    Began { topic: String, ends: BTreeMap<i32, i64> },
    Published {
        #[serde(flatten)]
        published: Published,
        partition: i32,
        offset: i64,
    },
    /// An earlier run published it, and could not note it any more.
    Found(Published),
    /// The run ended, and every record it sent is accounted for.
    Ended,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{path} (--resume) cannot be used: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} (--resume) is in use by another `tonearm publish`", path = path.display())]
    InUse { path: PathBuf },
    #[error("{path} (--resume) is no journal of `tonearm publish`: line {line}: {source}", path = path.display())]
    Broken { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("{path} (--resume) is about topic {theirs}, not {ours}", path = path.display())]
    OtherTopic { path: PathBuf, theirs: String, ours: String },
    #[error(
        "{path} (--resume) says that more was published to {topic}, partition {partition}, than is there: the topic was \
         made anew, which needs another file", path = path.display()
    )]
    NewTopic { path: PathBuf, topic: String, partition: i32 },
}

/// The journal of one topic, open for more. No other process writes to it meanwhile.
pub struct Journal {
    path: PathBuf,
    file: File,
    published: HashSet<Published>,
    /// When the last run wrote its last line.
    written: SystemTime,
    /// Where the topic's partitions ended when last heard of.
    ends: BTreeMap<i32, i64>,
    /// From where records may be in the topic that are not in the journal; empty if the last run accounted for all.
    unsure: BTreeMap<i32, i64>,
}

impl Journal {
    /// Opens the journal, or makes it.
    ///
    /// # Errors
    /// It cannot be read and written, another process has it, or it is something else or of another topic.
    pub fn open(path: &Path, topic: &str) -> Result<Self, JournalError> {
        let io = |source| JournalError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io)?;
        file.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => JournalError::InUse { path: path.to_owned() },
            std::fs::TryLockError::Error(source) => io(source),
        })?;
        let written = file.metadata().and_then(|metadata| metadata.modified()).map_err(io)?;
        let mut text = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(io)?;
        let (mut published, mut known, mut unsure) = (HashSet::new(), BTreeMap::new(), BTreeMap::new());
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        for (index, line) in text[..whole].split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty())
        {
            let parsed = serde_json::from_slice(line).map_err(|source| JournalError::Broken {
                path: path.to_owned(),
                line: index + 1,
                source,
            })?;
            match parsed {
                Line::Began { topic: theirs, .. } if theirs != topic => {
                    return Err(JournalError::OtherTopic { path: path.to_owned(), theirs, ours: topic.to_owned() });
                }
                // After a run that has not ended its positions stay, as its records lie behind them.
                Line::Began { ends, .. } => ends.into_iter().for_each(|(partition, end)| {
                    known.insert(partition, end);
                    unsure.entry(partition).or_insert(end);
                }),
                Line::Published { published: one, partition, offset } => {
                    published.insert(one);
                    known.insert(partition, offset + 1);
                    unsure.insert(partition, offset + 1);
                }
                Line::Found(one) => _ = published.insert(one),
                Line::Ended => unsure.clear(),
            }
        }
        // A line that was cut off by a crash was never promised. What is no journal at all is left alone.
        let mut first = text.iter().zip(b"{\"began\":{");
        if whole == 0 && first.any(|(found, expected)| found != expected) {
            let source = io::Error::other("it is no journal of `tonearm publish`");
            return Err(io(source));
        }
        file.set_len(whole as u64).map_err(io)?;
        Ok(Self { path: path.to_owned(), file, published, written, ends: known, unsure })
    }

    pub fn has(&self, file: &Published) -> bool {
        self.published.contains(file)
    }

    /// Notes that a run begins, with the ends of the topic's partitions.
    ///
    /// # Errors
    /// The topic is not the one that the journal knows, or the disk is full, or failed.
    pub fn begin(&mut self, topic: &str, ends: BTreeMap<i32, i64>) -> Result<(), JournalError> {
        let shorter = |(partition, end): &(&i32, &i64)| ends.get(partition).is_none_or(|now| now < end);
        if let Some((&partition, _)) = self.ends.iter().find(shorter) {
            return Err(JournalError::NewTopic { path: self.path.clone(), topic: topic.to_owned(), partition });
        }
        self.append(&Line::Began { topic: topic.to_owned(), ends })
    }

    /// Notes a confirmed record. It is on the disk when this returns.
    ///
    /// # Errors
    /// The disk is full, or failed.
    pub fn add(&mut self, published: Published, partition: i32, offset: i64) -> Result<(), JournalError> {
        self.append(&Line::Published { published, partition, offset })
    }

    /// Notes a record that [`unnoted`](Self::unnoted) found. All are to be noted before the first new one is published:
    /// what is unsure lies behind the last one that was.
    ///
    /// # Errors
    /// The disk is full, or failed.
    pub fn add_found(&mut self, published: Published) -> Result<(), JournalError> {
        self.append(&Line::Found(published))
    }

    /// Notes that nothing is under way any more.
    ///
    /// # Errors
    /// The disk is full, or failed.
    pub fn end(&mut self) -> Result<(), JournalError> {
        self.append(&Line::Ended)
    }

    fn append(&mut self, line: &Line) -> Result<(), JournalError> {
        let written = serde_json::to_vec(line).map_err(io::Error::from).and_then(|mut json| {
            json.push(b'\n');
            self.file.write_all(&json)?;
            self.file.sync_data()
        });
        written.map_err(|source| JournalError::Io { path: self.path.clone(), source })
    }

    /// The records that the last run may have published without noting them. There are none if it accounted for
    /// all of its records.
    ///
    /// # Errors
    /// The topic cannot be read.
    pub fn unnoted(&self, client: &ClientConfig, topic: &str) -> Result<Unnoted, KafkaError> {
        let mut found = Unnoted::new();
        if self.unsure.is_empty() {
            return Ok(found);
        }
        std::thread::sleep(ON_THE_WAY.saturating_sub(self.written.elapsed().unwrap_or_default()));
        let mut client = client.clone();
        client
            // What retention has taken meanwhile was not needed.
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("group.id", "tonearm-publish")
            .set("isolation.level", "read_uncommitted")
            .set("receive.message.max.bytes", crate::kafka::MAX_RESPONSE_BYTES);
        let consumer: BaseConsumer<Logged> = client.create_with_context(Logged)?;
        let (mut assignment, mut unread) = (TopicPartitionList::new(), BTreeSet::new());
        for (&partition, &from) in &self.unsure {
            let (_, end) = consumer.fetch_watermarks(topic, partition, FIRST_ANSWER)?;
            if from < end {
                assignment.add_partition_offset(topic, partition, Offset::Offset(from))?;
                unread.insert(partition);
            }
        }
        consumer.assign(&assignment)?;
        while !unread.is_empty() {
            match consumer.poll(FIRST_ANSWER) {
                Some(Ok(message)) => {
                    let hashes: &mut Vec<_> = found.entry(message.key().unwrap_or_default().to_vec()).or_default();
                    hashes.push(blake3::hash(message.payload().unwrap_or_default()));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => _ = unread.remove(&partition),
                Some(Err(error)) => return Err(error),
                None => return Err(KafkaError::NoMessageReceived),
            }
        }
        Ok(found)
    }
}

/// Hashes of records' values, by key.
pub type Unnoted = HashMap<Vec<u8>, Vec<blake3::Hash>>;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(name: &str) -> Published {
        Published { file: PathBuf::from(name), bytes: 7, modified_ns: 3 }
    }

    #[test]
    fn a_journal_knows_what_was_noted_and_from_where_on_it_is_unsure() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut journal = Journal::open(&path, "audio").expect("a new journal");
        journal.begin("audio", BTreeMap::from([(0, 10), (1, 20)])).expect("a line");
        journal.add(file("a"), 1, 23).expect("a line");
        drop(journal);
        // A crash in the middle of a line.
        let mut cut = fs::read(&path).expect("a journal");
        cut.extend_from_slice(b"{\"published\":{\"file\":\"b\"");
        fs::write(&path, &cut).expect("a journal");

        let mut journal = Journal::open(&path, "audio").expect("a journal");
        assert!(journal.has(&file("a")) && !journal.has(&file("b")));
        assert_eq!(journal.unsure, BTreeMap::from([(0, 10), (1, 24)]));
        journal.begin("audio", BTreeMap::from([(0, 15), (1, 30), (2, 0)])).expect("a line");
        journal.add_found(file("c")).expect("a line");
        journal.add(file("b"), 0, 15).expect("a line");
        drop(journal);
        let mut journal = Journal::open(&path, "audio").expect("a journal");
        assert!(journal.has(&file("b")) && journal.has(&file("c")));
        assert_eq!(journal.unsure, BTreeMap::from([(0, 16), (1, 24), (2, 0)]));
        journal.end().expect("a line");
        drop(journal);
        let mut journal = Journal::open(&path, "audio").expect("a journal");
        assert_eq!(journal.unsure, BTreeMap::new());
        let fewer = journal.begin("audio", BTreeMap::from([(0, 16), (1, 23), (2, 0)]));
        assert!(matches!(fewer, Err(JournalError::NewTopic { partition: 1, .. })), "{fewer:?}");
    }

    #[test]
    fn what_is_no_journal_of_this_topic_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        for content in ["RIFF", "RIFF\nWAVE\n", "{\"began\":{\"topic\":\"other\",\"ends\":{}}}\n"] {
            fs::write(&path, content).expect("a file");
            assert!(Journal::open(&path, "audio").is_err(), "{content}");
            assert_eq!(fs::read_to_string(&path).expect("a file"), content);
        }
    }

    #[test]
    fn two_runs_do_not_share_a_journal() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let _first = Journal::open(&path, "audio").expect("a journal");
        assert!(matches!(Journal::open(&path, "audio"), Err(JournalError::InUse { .. })));
    }
}
