//! What `tonearm publish --resume` remembers: a file of JSON lines, one before and one behind each commit.
//!
//! What a transaction carries is on the disk before it is committed. So after a crash one transaction at most has no
//! known end, and as it is whole or void, one of its records tells of all.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};

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

/// Whose journal it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    topic: String,
    /// What the brokers call the topic: another one of the same name has other records.
    topic_id: String,
    /// Of the transactional id.
    producer: String,
}

/// What a transaction is to publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    pub files: Vec<Published>,
    /// Where one of its records is.
    pub partition: i32,
    pub offset: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Began(Owner),
    /// A transaction is about to be committed. It is void if another one follows instead of its commit.
    Sent(Sent),
    Committed,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{path} (--resume) cannot be used: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} (--resume) is in use by another `tonearm publish`", path = path.display())]
    InUse { path: PathBuf },
    #[error("{path} (--resume) is no journal of `tonearm publish`", path = path.display())]
    Foreign { path: PathBuf },
    #[error("{path} (--resume) is no journal of `tonearm publish`: line {line}: {source}", path = path.display())]
    Broken { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("{path} (--resume) is about topic {theirs}, not {ours}", path = path.display())]
    OtherTopic { path: PathBuf, theirs: String, ours: String },
    #[error(
        "{path} (--resume) is about a topic {topic} that is no more: it was deleted and made again, which needs another \
         file", path = path.display()
    )]
    NewTopic { path: PathBuf, topic: String },
}

/// The journal of one topic, open for more. No other process writes to it meanwhile.
pub struct Journal {
    path: PathBuf,
    file: File,
    /// `None` before the first run has begun.
    owner: Option<Owner>,
    published: HashSet<Published>,
    /// The last transaction, if it is not known to be committed.
    unsettled: Option<Sent>,
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
        let mut text = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(io)?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let (path, published) = (path.to_owned(), HashSet::new());
        let mut journal = Self { path, file, owner: None, published, unsettled: None };
        for (index, line) in text[..whole].split_inclusive(|&byte| byte == b'\n').enumerate() {
            let parsed = serde_json::from_slice(line).map_err(|source| JournalError::Broken {
                path: journal.path.clone(),
                line: index + 1,
                source,
            })?;
            journal.take(parsed);
        }
        match &journal.owner {
            Some(owner) if owner.topic != topic => {
                let (theirs, ours) = (owner.topic.clone(), topic.to_owned());
                return Err(JournalError::OtherTopic { path: journal.path, theirs, ours });
            }
            Some(_) => {}
            // The first line may have been cut off by a crash. What is no journal at all is left alone.
            None if whole == 0 && text.iter().zip(b"{\"began\":{").all(|(found, expected)| found == expected) => {}
            None => return Err(JournalError::Foreign { path: journal.path }),
        }
        // A line that was cut off was never promised.
        match journal.file.set_len(whole as u64) {
            Ok(()) => Ok(journal),
            Err(source) => Err(JournalError::Io { path: journal.path, source }),
        }
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Began(owner) => self.owner = Some(owner),
            Line::Sent(sent) => self.unsettled = Some(sent),
            Line::Committed => self.published.extend(self.unsettled.take().into_iter().flat_map(|sent| sent.files)),
        }
    }

    /// Notes that a run begins. Returns the name of its producer, which is that of all runs with this journal.
    ///
    /// # Errors
    /// The topic is not the one that the journal knows, or the disk is full, or failed.
    pub fn begin(&mut self, topic: &str, topic_id: &str) -> Result<String, JournalError> {
        if let Some(owner) = &self.owner {
            return match owner.topic_id == topic_id {
                true => Ok(owner.producer.clone()),
                false => Err(JournalError::NewTopic { path: self.path.clone(), topic: topic.to_owned() }),
            };
        }
        let mut random = [0; 8];
        openssl::rand::rand_bytes(&mut random)
            .map_err(|e| JournalError::Io { path: self.path.clone(), source: io::Error::other(e) })?;
        let producer = format!("{:016x}", u64::from_ne_bytes(random));
        let (topic, topic_id) = (topic.to_owned(), topic_id.to_owned());
        self.append(Line::Began(Owner { topic, topic_id, producer: producer.clone() }))?;
        Ok(producer)
    }

    pub fn has(&self, file: &Published) -> bool {
        self.published.contains(file)
    }

    /// The last transaction, if it is not known whether it was committed.
    pub fn unsettled(&self) -> Option<&Sent> {
        self.unsettled.as_ref()
    }

    /// Notes a transaction. It is on the disk when this returns, and may be committed then.
    ///
    /// # Errors
    /// The disk is full, or failed.
    pub fn sent(&mut self, sent: Sent) -> Result<(), JournalError> {
        self.append(Line::Sent(sent))
    }

    /// Notes that the last transaction was committed.
    ///
    /// # Errors
    /// The disk is full, or failed.
    pub fn committed(&mut self) -> Result<(), JournalError> {
        self.append(Line::Committed)
    }

    fn append(&mut self, line: Line) -> Result<(), JournalError> {
        let written = serde_json::to_vec(&line).map_err(io::Error::from).and_then(|mut json| {
            json.push(b'\n');
            self.file.write_all(&json)?;
            self.file.sync_data()
        });
        written.map_err(|source| JournalError::Io { path: self.path.clone(), source })?;
        self.take(line);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(name: &str) -> Published {
        Published { file: PathBuf::from(name), bytes: 7, modified_ns: 3 }
    }

    fn sent(names: &[&str]) -> Sent {
        Sent { files: names.iter().map(|name| file(name)).collect(), partition: 1, offset: 23 }
    }

    #[test]
    fn a_journal_knows_what_was_committed_and_what_has_no_known_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let open = || Journal::open(&path, "audio").expect("a journal");
        let mut journal = open();
        let producer = journal.begin("audio", "id").expect("a line");
        journal.sent(sent(&["a", "b"])).expect("a line");
        journal.committed().expect("a line");
        journal.sent(sent(&["c"])).expect("a line");
        drop(journal);
        // A crash in the middle of a line.
        let mut cut = fs::read(&path).expect("a journal");
        cut.extend_from_slice(b"\"commi");
        fs::write(&path, &cut).expect("a journal");

        let mut journal = open();
        assert!(journal.has(&file("a")) && journal.has(&file("b")) && !journal.has(&file("c")));
        assert_eq!(journal.unsettled(), Some(&sent(&["c"])));
        assert_eq!(journal.begin("audio", "id").expect("the same topic"), producer);
        // The one before was void.
        journal.sent(sent(&["d"])).expect("a line");
        drop(journal);
        let mut journal = open();
        assert_eq!(journal.unsettled(), Some(&sent(&["d"])));
        journal.committed().expect("a line");
        drop(journal);
        let mut journal = open();
        assert!(!journal.has(&file("c")) && journal.has(&file("d")));
        assert_eq!(journal.unsettled(), None);
        let another = journal.begin("audio", "another id");
        assert!(matches!(another, Err(JournalError::NewTopic { .. })), "{another:?}");
    }

    #[test]
    fn each_journal_has_a_producer_of_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let begin = |name| Journal::open(&folder.path().join(name), "audio")?.begin("audio", "id");
        assert_ne!(begin("one").expect("a journal"), begin("two").expect("a journal"));
    }

    #[test]
    fn what_is_no_journal_of_this_topic_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let other = "{\"began\":{\"topic\":\"other\",\"topic_id\":\"id\",\"producer\":\"0\"}}\n";
        for content in ["RIFF", "RIFF\nWAVE\n", "\"committed\"\n", "\n", other] {
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
