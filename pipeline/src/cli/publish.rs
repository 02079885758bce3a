//! `tonearm publish`

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io::{IsTerminal, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::{
    ClientConfig, ClientContext, Message,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer},
    util::Timeout,
};

use super::{
    CommandError, CommandResult, Global,
    files::{self, AudioFile},
    flag,
    journal::{Journal, JournalError, Published, Unnoted},
    say, signals,
};
use crate::{
    config::Config,
    kafka::{self, Access, FIRST_ANSWER, Logged},
    telemetry::log,
};

/// What is in memory at once, besides the file being read; more only for a single larger file.
const QUEUE_BYTES: u64 = 128 << 20;
/// A batch of Kafka's has a header of 61 bytes (message format, version 2), which counts for `max.message.bytes`.
const BATCH_HEADER_BYTES: u64 = 61;
/// After Ctrl-C, how long records that the broker may have already are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tonearm publish song.mp3                  the track id is the file's name without its ending: song\n  \
    tonearm publish --key track-1 song.mp3\n  \
    tonearm publish --recursive ~/Music       track ids are paths below ~/Music: album/song\n  \
    tonearm publish --resume done.jsonl *.flac   goes on where the last run with done.jsonl ended\n\n\
    Files that would have the same track id have their whole path, as it was given, as theirs.\n\n\
    Any Kafka client does the same: key = track id, value = the file as it is. Clients have limits of their own:\n  \
    kcat -P -b 127.0.0.1:9092 -t audio -k track-1 -X message.max.bytes=68157440 song.mp3")]
pub struct PublishArgs {
    /// Audio files, or folders of them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Take the files of subfolders too
    #[arg(short, long)]
    recursive: bool,
    /// Track id, for a single file
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Topic [default: topics.audio]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Note in FILE what is published, and leave out what it says is published already
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
}

impl PublishArgs {
    /// As if the user had named these files and nothing else.
    pub fn of(files: Vec<PathBuf>) -> Self {
        Self { files, recursive: false, key: None, topic: None, resume: None }
    }
}

pub fn main(global: &Global, args: &PublishArgs) -> CommandResult {
    let mut files = files::expand(&args.files, args.recursive)?;
    let mut named = HashSet::new();
    files.retain(|file| named.insert(file.path.clone()));
    if args.key.is_some() && files.len() > 1 {
        return Err(CommandError::Usage(format!("--key names one track, but there are {} files", files.len())));
    }
    let config = global.config([flag("topics.audio", "--topic", args.topic.as_ref())])?;
    log::init(&config.log.level, config.log.json);
    let topic = &config.topics.audio;
    let stop = signals::stop_on_signals()?;
    let total = files.len();
    let journal = args.resume.as_deref().map(|path| Journal::open(path, topic)).transpose();
    let mut journal = journal.map_err(CommandError::failed)?;

    kafka::reach_topics(&config.kafka, Access::Write, &[topic])?;
    let client = kafka::with_properties(kafka::client_config(&config.kafka), &config.kafka);
    let admin: AdminClient<Logged> = client.create_with_context(Logged).map_err(CommandError::failed)?;
    let partitions = kafka::partitions(admin.inner(), &config.kafka, topic)?;
    let limit = Limit::of(&admin, &config);
    let mut unnoted = Unnoted::new();
    if let Some(journal) = &mut journal {
        let unread = |e| CommandError::Failed(format!("what the last run published cannot be read from {topic}: {e}"));
        unnoted = journal.unnoted(&client, topic).map_err(unread)?;
        let ends = ends(&admin, topic, partitions)?;
        journal.begin(topic, ends).map_err(CommandError::failed)?;
    }

    let mut state = State { journal, ..State::default() };
    let mut parcels = state.pack(&files, args.key.as_deref(), &limit);
    parcels.retain(|parcel| !state.is_found(parcel, &unnoted));
    let bar = bar(&parcels);
    let largest = parcels.iter().map(|parcel| parcel.bytes).max().unwrap_or(0);
    let producer = producer(&config, largest, Deliveries { bar: bar.clone(), state: Mutex::new(state) })?;
    let deliveries = producer.context();
    for parcel in parcels {
        if stop.load(Ordering::Relaxed) || deliveries.state().journal_failed {
            break;
        }
        bar.set_message(parcel.path.display().to_string());
        let path = parcel.path.clone();
        if let Err(reason) = publish(&producer, topic, parcel, &stop) {
            bar.suspend(|| deliveries.state().fail(&path, reason));
        }
    }
    let unanswered = finish(&producer, &stop);
    bar.finish_and_clear();
    let mut state = std::mem::take(&mut *producer.context().state());
    drop(producer);
    let closed = state.close(unanswered);

    let before = if state.before > 0 { format!(", {} before", state.before) } else { String::new() };
    say::line(format_args!("{} of {total} files published to {topic}{before}", state.confirmed))?;
    closed?;
    let left = total - state.confirmed - state.before - state.failed;
    if left > 0 {
        let maybe = if unanswered > 0 { format!(", {unanswered} of them perhaps are") } else { String::new() };
        let goes_on =
            if args.resume.is_some() { "the same command goes on" } else { "--resume FILE makes a run that goes on" };
        say::problem(format_args!("stopped: {left} files are not published{maybe}; {goes_on}"));
    }
    if left > 0 || state.failed > 0 { Err(CommandError::Said) } else { Ok(()) }
}

/// A file about to be published.
struct Parcel {
    path: PathBuf,
    key: Vec<u8>,
    bytes: u64,
    /// What the journal is to say of it.
    published: Option<Published>,
}

impl Parcel {
    fn read(&self) -> Result<Vec<u8>, String> {
        // One byte more than there should be shows that the file has grown since its length was checked.
        let mut bytes = Vec::new();
        File::open(&self.path)
            .and_then(|file| file.take(self.bytes + 1).read_to_end(&mut bytes))
            .map_err(|e| format!("cannot be read: {e}"))?;
        if bytes.len() as u64 == self.bytes { Ok(bytes) } else { Err("has changed while it was read".to_owned()) }
    }
}

/// The largest record, and who says so.
struct Limit {
    bytes: u64,
    of: String,
}

impl Limit {
    /// The topic's own, if it may be read; else that of the records which `tonearm run` accepts.
    fn of(admin: &AdminClient<Logged>, config: &Config) -> Self {
        let topic = &config.topics.audio;
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            let options = AdminOptions::new().request_timeout(Some(Timeout::After(FIRST_ANSWER)));
            let topics = [ResourceSpecifier::Topic(topic)];
            let found = runtime.block_on(admin.describe_configs(&topics, &options)).ok()?.pop()?.ok()?;
            found.get("max.message.bytes")?.value.as_ref()?.parse().ok()
        };
        match ask() {
            Some(bytes) => Self { bytes, of: format!("topic {topic} takes (max.message.bytes)") },
            None => Self {
                bytes: config.limits.max_record_bytes as u64,
                of: "`tonearm run` accepts (limits.max_record_mib)".to_owned(),
            },
        }
    }

    fn check(&self, bytes: u64) -> Result<(), String> {
        let Self { bytes: limit, of } = self;
        if bytes > *limit {
            Err(format!("a record of {bytes} bytes is more than the {limit} that {of}"))
        } else {
            Ok(())
        }
    }
}

fn ends(admin: &AdminClient<Logged>, topic: &str, partitions: usize) -> Result<BTreeMap<i32, i64>, CommandError> {
    let end = |partition| {
        let (_, end) = admin.inner().fetch_watermarks(topic, partition, FIRST_ANSWER).map_err(|e| {
            CommandError::Failed(format!("the end of {topic}, partition {partition}, cannot be read: {e}"))
        })?;
        Ok((partition, end))
    };
    (0..partitions as i32).map(end).collect()
}

fn bar(parcels: &[Parcel]) -> ProgressBar {
    let total = parcels.iter().map(|parcel| parcel.bytes).sum();
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {msg}") {
        bar.set_style(style);
    }
    bar
}

fn producer(config: &Config, largest: u64, context: Deliveries) -> Result<ThreadedProducer<Deliveries>, CommandError> {
    let mut client: ClientConfig = kafka::client_config(&config.kafka);
    client
        .set("enable.idempotence", "true")
        .set("message.max.bytes", kafka::MAX_RECORD_BYTES)
        // A batch counts as one record against the topic's limit, so that two that fit might not fit together.
        .set("batch.num.messages", "1")
        // A record that is larger than the queue would wait for room for ever. librdkafka counts its own bytes too.
        .set("queue.buffering.max.kbytes", ((QUEUE_BYTES.max(largest) >> 10) + 1024).to_string());
    kafka::with_properties(client, &config.kafka).create_with_context(context).map_err(CommandError::failed)
}

/// Waits until every record has its answer; after Ctrl-C only for those that the broker may have. Returns how many have
/// none.
fn finish(producer: &ThreadedProducer<Deliveries>, stop: &AtomicBool) -> usize {
    let mut deadline = None;
    // Without a signal the producer gives a record up by itself (message.timeout.ms), so this ends.
    while producer.in_flight_count() > 0 {
        if stop.load(Ordering::Relaxed) {
            if deadline.is_none() {
                producer.purge(PurgeConfig::default().queue());
            }
            if Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + LAST_ANSWERS) {
                break;
            }
        }
        let _ = producer.flush(Duration::from_millis(100));
    }
    usize::try_from(producer.in_flight_count()).unwrap_or(0)
}

/// Hands a file to the producer.
fn publish(
    producer: &ThreadedProducer<Deliveries>,
    topic: &str,
    parcel: Parcel,
    stop: &AtomicBool,
) -> Result<(), String> {
    let bytes = parcel.read()?;
    let (key, media_type) = (parcel.key.clone(), media_type(&parcel.path));
    let mut record = BaseRecord::with_opaque_to(topic, Box::new(parcel)).key(&key).payload(&bytes);
    if let Some(media_type) = media_type {
        record = record.headers(OwnedHeaders::new().insert(Header { key: "content-type", value: Some(media_type) }));
    }
    while let Err((error, back)) = producer.send(record) {
        if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
            return Err(format!("cannot be published: {error}"));
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        // The queue is bounded; this waits for room in it.
        let _ = producer.flush(Duration::from_millis(100));
        record = back;
    }
    Ok(())
}

/// Track ids: paths below the folder that was named, without their endings. Where two would be the same, whole paths.
fn keys(files: &[AudioFile]) -> Vec<Vec<u8>> {
    let short = |file: &AudioFile| file.below.with_extension("").as_os_str().as_bytes().to_vec();
    let mut counts: HashMap<Vec<u8>, u32> = HashMap::new();
    files.iter().for_each(|file| *counts.entry(short(file)).or_default() += 1);
    let whole = |file: &AudioFile| file.path.as_os_str().as_bytes().to_vec();
    files.iter().map(|file| Some(short(file)).filter(|key| counts[key] == 1).unwrap_or_else(|| whole(file))).collect()
}

/// IANA's names for the usual endings; only a hint for the decoder.
fn media_type(file: &Path) -> Option<&'static str> {
    let ending = file.extension()?.to_str()?.to_ascii_lowercase();
    Some(match ending.as_str() {
        "mp3" => "audio/mpeg",
        "m4a" | "mp4" => "audio/mp4",
        "aac" => "audio/aac",
        "flac" => "audio/flac",
        "ogg" | "oga" | "opus" => "audio/ogg",
        "wav" => "audio/wav",
        "aif" | "aiff" => "audio/aiff",
        _ => return None,
    })
}

/// What has become of the files so far.
#[derive(Default)]
struct State {
    confirmed: usize,
    /// Published by an earlier run.
    before: usize,
    failed: usize,
    /// A record has no clear answer: the broker may have it.
    unsure: bool,
    journal: Option<Journal>,
    journal_failed: bool,
}

impl State {
    /// The files that are to be published. The others are counted, and those that cannot be are named at once.
    fn pack(&mut self, files: &[AudioFile], key: Option<&str>, limit: &Limit) -> Vec<Parcel> {
        let mut parcels = Vec::new();
        for (file, own) in files.iter().zip(keys(files)) {
            let key = key.map_or(own, |key| key.as_bytes().to_vec());
            match self.pack_one(file, key, limit) {
                Ok(parcel) => parcels.extend(parcel),
                Err(reason) => self.fail(&file.path, reason),
            }
        }
        parcels
    }

    fn pack_one(&mut self, file: &AudioFile, key: Vec<u8>, limit: &Limit) -> Result<Option<Parcel>, String> {
        let unreadable = |e: std::io::Error| format!("cannot be read: {e}");
        let metadata = file.path.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err("is no file".to_owned());
        }
        limit.check(metadata.len() + key.len() as u64 + BATCH_HEADER_BYTES)?;
        let mut published = None;
        if let Some(journal) = &self.journal {
            let this = Published::of(&file.path).map_err(unreadable)?;
            if journal.has(&this) {
                self.before += 1;
                return Ok(None);
            }
            published = Some(this);
        }
        Ok(Some(Parcel { path: file.path.clone(), key, bytes: metadata.len(), published }))
    }

    fn fail(&mut self, path: &Path, reason: String) {
        self.failed += 1;
        say::problem(format_args!("{}: {reason}", path.display()));
    }

    /// Whether the last run published a file without noting it, which is made up for.
    fn is_found(&mut self, parcel: &Parcel, unnoted: &Unnoted) -> bool {
        let Some(hashes) = unnoted.get(&parcel.key) else { return false };
        // A file that cannot be read is named when it is its turn.
        let found = parcel.read().is_ok_and(|bytes| hashes.contains(&blake3::hash(&bytes)));
        if let (true, Some(published)) = (found, &parcel.published) {
            self.before += 1;
            self.note(|journal| journal.add_found(published.clone()));
        }
        found
    }

    /// Writes into the journal. That it cannot be written is said once, and ends the run.
    fn note(&mut self, write: impl FnOnce(&mut Journal) -> Result<(), JournalError>) {
        if let Some(journal) = &mut self.journal
            && let Err(error) = write(journal)
            && !std::mem::replace(&mut self.journal_failed, true)
        {
            say::problem(error);
        }
    }

    /// Writes into the journal that the run has ended, if it is known of every record what became of it.
    fn close(&mut self, unanswered: usize) -> CommandResult {
        if self.journal_failed {
            return Err(CommandError::Said);
        }
        match &mut self.journal {
            Some(journal) if unanswered == 0 && !self.unsure => journal.end().map_err(CommandError::failed),
            _ => Ok(()),
        }
    }
}

/// Moves the bar as the broker confirms records, and notes those it did not take.
struct Deliveries {
    bar: ProgressBar,
    state: Mutex<State>,
}

impl Deliveries {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        kafka::log_error(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Parcel>;

    fn delivery(&self, result: &DeliveryResult<'_>, parcel: Box<Parcel>) {
        match result {
            Ok(message) => {
                self.bar.inc(parcel.bytes);
                let mut state = self.state();
                state.confirmed += 1;
                if let Some(published) = parcel.published {
                    state.note(|journal| journal.add(published, message.partition(), message.offset()));
                }
            }
            // It was taken back before it was sent, or nobody waits for its answer any more: it counts as left.
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight), _)) => {
            }
            Err((error, _)) => self.bar.suspend(|| {
                let mut state = self.state();
                state.unsure |= *error == KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut);
                state.fail(&parcel.path, format!("was not taken by the broker: {error}"));
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_keys_of_their_own() {
        let file = |path: &str, below: &str| AudioFile { path: path.into(), below: below.into() };
        let files = [
            file("music/song.mp3", "song.mp3"),
            file("music/album/song.mp3", "album/song.mp3"),
            file("a/take.wav", "take.wav"),
            file("b/take.wav", "take.wav"),
            file("music/air.flac", "air.flac"),
            file("music/air.ogg", "air.ogg"),
            file("mix.v2.mp3", "mix.v2.mp3"),
        ];
        let keys = keys(&files).into_iter().map(|key| String::from_utf8(key).expect("text"));
        let expected = ["song", "album/song", "a/take.wav", "b/take.wav", "music/air.flac", "music/air.ogg", "mix.v2"];
        assert_eq!(keys.collect::<Vec<_>>(), expected);
    }
}
