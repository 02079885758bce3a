//! `tonearm publish`

mod courier;
mod journal;
mod outcome;
mod parcels;
mod tally;
mod transactions;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use clap::Args;
use rdkafka::{
    admin::AdminClient,
    producer::{Producer, PurgeConfig},
};

use self::{
    courier::{Courier, Refusal},
    journal::Journal,
    parcels::{Limit, Packing, Parcel},
    tally::Tally,
    transactions::Transactions,
};
use super::{CommandError, CommandResult, Global, files, flag, say, signals};
use crate::{
    kafka::{self, Access, Logged},
    telemetry::log,
};

/// After Ctrl-C, how long records that the broker may have already are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tonearm publish song.mp3                  the track id is the file's name without its ending: song\n  \
    tonearm publish --key track-1 song.mp3\n  \
    tonearm publish --recursive ~/Music       track ids are paths below ~/Music: album/song\n  \
    tonearm publish --resume done.jsonl *.flac   goes on where the last run with done.jsonl ended\n\n\
    Files that would have the same track id have their whole path, as it was given, as theirs.\n\n\
    With --resume, files go out in Kafka transactions. They need the right to WRITE transactional ids that begin with\n\
    tonearm-publish-, and after a crash the right to READ the topic.\n\n\
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
    let journal = args.resume.as_deref().map(|path| Journal::open(path, topic)).transpose();
    let journal = journal.map_err(CommandError::failed)?;

    kafka::reach_topics(&config.kafka, Access::Write, &[topic])?;
    let client = kafka::with_properties(kafka::client_config(&config.kafka), &config.kafka);
    let admin: AdminClient<Logged> = client.create_with_context(Logged).map_err(CommandError::failed)?;
    let limit = Limit::of(&admin, &config);
    let mut tally = Tally::new(files.len());
    let packing = Packing { key: args.key.as_deref(), limit, for_journal: journal.is_some() };
    let mut parcels = Vec::new();
    for packed in packing.pack(&files) {
        match packed {
            Ok(parcel) => parcels.push(parcel),
            Err((file, reason)) => tally.fail(&file.path, reason),
        }
    }
    let largest = parcels.iter().map(|parcel| parcel.bytes).max().unwrap_or(0);
    let ended = match journal {
        Some(journal) => {
            let mut transactions = Transactions::begin(&config, &admin, journal, largest, &stop)?;
            transactions.settle(&mut parcels, &mut tally)?;
            transactions.publish(parcels, &mut tally)
        }
        None => {
            let courier = Courier::new(courier::client(&config, largest), &config)?;
            publish(courier, parcels, &mut tally, &stop);
            Ok(())
        }
    };
    tally.end();

    let Tally { total, published, before, failed, unanswered, .. } = tally;
    let earlier = if before > 0 { format!(", {before} before") } else { String::new() };
    say::line(format_args!("{published} of {total} files published to {topic}{earlier}"))?;
    if let Err(error) = &ended {
        say::problem(error);
    }
    let left = tally.left();
    if left > 0 {
        let maybe = if unanswered > 0 { format!(", {unanswered} of them perhaps are") } else { String::new() };
        let goes_on = match (&ended, &args.resume) {
            (Err(CommandError::NeedsAPerson(_)), _) => "",
            (_, Some(_)) => "; the same command goes on",
            (_, None) => "; --resume FILE makes a run that goes on",
        };
        say::problem(format_args!("stopped: {left} files are not published{maybe}{goes_on}"));
    }
    match ended {
        Err(CommandError::NeedsAPerson(_)) => Err(CommandError::SaidToAPerson),
        Err(_) => Err(CommandError::Said),
        Ok(()) if left > 0 || failed > 0 => Err(CommandError::Said),
        Ok(()) => Ok(()),
    }
}

/// Publishes without a journal: each record for itself.
fn publish(mut courier: Courier, parcels: Vec<Parcel>, tally: &mut Tally, stop: &AtomicBool) {
    tally.expect(&parcels);
    for parcel in parcels {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        tally.show(&parcel.path);
        match courier.hand_over(parcel, stop) {
            Ok(()) | Err((_, Refusal::Stopped)) => {}
            Err((parcel, Refusal::File(reason))) => tally.fail(&parcel.path, reason),
            Err((parcel, Refusal::Producer(error))) => {
                tally.fail(&parcel.path, format_args!("cannot be published: {error}"));
            }
        }
        while let Some(answer) = courier.answer(Duration::ZERO) {
            answer.tell(tally);
        }
    }
    let mut deadline = None;
    // Without a signal the producer gives a record up by itself (message.timeout.ms), so this ends.
    while courier.unanswered() > 0 {
        if stop.load(Ordering::Relaxed) {
            if deadline.is_none() {
                courier.producer.purge(PurgeConfig::default().queue());
            }
            if Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + LAST_ANSWERS) {
                break;
            }
        }
        if let Some(answer) = courier.answer(Duration::from_millis(100)) {
            answer.tell(tally);
        }
    }
    tally.unanswered = courier.unanswered();
}
