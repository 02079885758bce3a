//! `tonearm publish`

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::{
    ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
};

use super::{CommandError, CommandResult, Global, files, flag, say};
use crate::{
    kafka::{self, Access},
    telemetry::log,
};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tonearm publish song.mp3                  the track id is the file's name without its ending: song\n  \
    tonearm publish --key track-1 song.mp3\n  \
    tonearm publish --topic audio.backfill *.flac\n\n\
    Any Kafka client does the same: key = track id, value = the file as it is.\n  \
    kcat -P -b 127.0.0.1:9092 -t audio -k track-1 song.mp3")]
pub struct PublishArgs {
    /// Audio files, or folders of them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Track id, for a single file
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Topic [default: topics.audio]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
}

impl PublishArgs {
    /// As if the user had named these files and nothing else.
    pub fn of(files: Vec<PathBuf>) -> Self {
        Self { files, key: None, topic: None }
    }
}

pub fn main(global: &Global, args: &PublishArgs) -> CommandResult {
    let files = files::expand(&args.files)?;
    if args.key.is_some() && files.len() > 1 {
        return Err(CommandError::Usage(format!("--key names one track, but there are {} files", files.len())));
    }
    let config = global.config([flag("topics.audio", "--topic", args.topic.as_ref())])?;
    log::init(&config.log.level, config.log.json);
    let topic = &config.topics.audio;

    let total: u64 = files.iter().filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum();
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {msg}") {
        bar.set_style(style);
    }

    kafka::reach_topics(&config.kafka, Access::Write, &[topic])?;
    let mut client = kafka::client_config(&config.kafka);
    client
        .set("enable.idempotence", "true")
        .set("message.max.bytes", kafka::MAX_RECORD_BYTES)
        // What is in memory at once, besides the file being read.
        .set("queue.buffering.max.kbytes", "131072");
    let deliveries = Deliveries { bar: bar.clone(), failures: Arc::default() };
    let failures = Arc::clone(&deliveries.failures);
    let producer: ThreadedProducer<Deliveries> =
        kafka::with_properties(client, &config.kafka).create_with_context(deliveries).map_err(CommandError::failed)?;

    let mut published = 0;
    for file in &files {
        bar.set_message(file.display().to_string());
        match publish(&producer, topic, file, args.key.as_deref()) {
            Ok(()) => published += 1,
            Err(problem) => failures.lock().unwrap_or_else(PoisonError::into_inner).push(problem),
        }
    }
    // The producer gives up on a record by itself (message.timeout.ms), so this ends.
    while producer.in_flight_count() > 0 {
        let _ = producer.flush(Duration::from_secs(1));
    }
    bar.finish_and_clear();
    drop(producer);

    let failures = std::mem::take(&mut *failures.lock().unwrap_or_else(PoisonError::into_inner));
    let undelivered = failures.iter().filter(|failure| failure.in_delivery).count();
    say::line(format_args!("{} of {} files published to {topic}", published - undelivered, files.len()));
    for failure in &failures {
        say::problem(format_args!("{}: {}", failure.file, failure.reason));
    }
    if failures.is_empty() { Ok(()) } else { Err(CommandError::Said) }
}

struct Failure {
    file: String,
    reason: String,
    /// It was taken by the producer, and lost later.
    in_delivery: bool,
}

fn publish(
    producer: &ThreadedProducer<Deliveries>,
    topic: &str,
    file: &Path,
    key: Option<&str>,
) -> Result<(), Failure> {
    let name = file.display().to_string();
    let failure = |reason: String| Failure { file: name.clone(), reason, in_delivery: false };
    let bytes = std::fs::read(file).map_err(|e| failure(format!("cannot be read: {e}")))?;
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let key = key.map(str::to_owned).or(stem).unwrap_or_else(|| name.clone());
    let mut record = BaseRecord::with_opaque_to(topic, Box::new(name.clone())).key(&key).payload(&bytes);
    if let Some(media_type) = media_type(file) {
        record = record.headers(OwnedHeaders::new().insert(Header { key: "content-type", value: Some(media_type) }));
    }
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                // The queue is bounded; this waits for room in it.
                let _ = producer.flush(Duration::from_millis(100));
                record = back;
            }
            Err((error, _)) => return Err(failure(format!("cannot be published: {error}"))),
        }
    }
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

/// Moves the bar as the broker confirms records, and notes those it did not take.
struct Deliveries {
    bar: ProgressBar,
    failures: Arc<Mutex<Vec<Failure>>>,
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
    type DeliveryOpaque = Box<String>;

    fn delivery(&self, result: &DeliveryResult<'_>, file: Box<String>) {
        match result {
            Ok(message) => self.bar.inc(message.payload_len() as u64),
            Err((error, _)) => self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(Failure {
                file: *file,
                reason: format!("was not taken by the broker: {error}"),
                in_delivery: true,
            }),
        }
    }
}
