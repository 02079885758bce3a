//! How a run begins and ends: clients, topics, threads, and then the loop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{bounded, unbounded};
use rdkafka::consumer::Consumer;
use tonearm_engine::Engine;
use tonearm_schemas::block::BlockKind;

use super::{
    commit::{
        outbox::Outbox,
        output::Routes,
        transaction::{Settings, TransactionsError},
    },
    error::RunError,
    intake::{blocks::BlockWork, originals::Originals},
    partitions::{
        assignment::Partitions,
        input::Input,
        membership,
        positions::Coordinates,
        recover::{self, Results},
        unpacker::Unpacker,
        watch::watch,
        whereabouts::{Counts, Whereabouts},
        window::Window,
    },
    turns::{Intake, Loop, News, TICK, Times},
};
use crate::{
    config::{Config, GroupProtocol},
    kafka::{self, ClientError, Cluster},
    telemetry::health::{Check, Health},
};

/// What librdkafka reads ahead of each partition, within these bounds.
const LEAST_READ_AHEAD: usize = 64 << 10;
const MOST_READ_AHEAD: usize = 1 << 20;
/// Between two questions for a right that was withdrawn.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Works until `stop` is set, then drains and leaves the group.
///
/// # Errors
/// Kafka cannot be reached at the start, topics are missing or do not fit, or another process took this instance's
/// place.
pub fn run(config: &Config, engine: &Arc<Engine>, health: &Health, stop: &AtomicBool) -> Result<(), RunError> {
    kafka::packed::keep_packed();
    let mut protocol = config.kafka.group_protocol;
    loop {
        if protocol == GroupProtocol::Auto {
            protocol = known_protocol(config)?;
        }
        let ended = run_as(protocol, config, engine, health, stop);
        health.ended();
        match ended {
            Err(RunError::Expelled { .. }) => wait_to_be_admitted(config, health, stop),
            ended => return ended,
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// The protocol of groups that the brokers have; the one that all have if they do not tell.
fn known_protocol(config: &Config) -> Result<GroupProtocol, RunError> {
    match Cluster::connect(&config.kafka)?.has_consumer_groups() {
        Some(true) => Ok(GroupProtocol::Consumer),
        Some(false) => {
            tracing::info!(
                "the brokers have no groups of protocol \"consumer\" (Kafka 4.0 and later): \"classic\" it is"
            );
            Ok(GroupProtocol::Classic)
        }
        None => {
            tracing::info!(
                "this user may not see the brokers' settings: the group's protocol is \"classic\", which all brokers have; \
                 kafka.group_protocol chooses another"
            );
            Ok(GroupProtocol::Classic)
        }
    }
}

/// Waits until the right is back to read as a member of the group, which was there before.
fn wait_to_be_admitted(config: &Config, health: &Health, stop: &AtomicBool) {
    let admits = || Cluster::connect(&config.kafka)?.admits(&config.kafka.group_id);
    let mut asked: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        if asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) {
            std::thread::sleep(TICK);
            continue;
        }
        match admits() {
            Ok(()) => return,
            Err(error) => {
                if asked.is_none() {
                    tracing::error!("the process left the group, and waits until it may join it again: {error}");
                }
                health.report(vec![Check::new("group", false, || error.to_string())]);
            }
        }
        asked = Some(Instant::now());
    }
}

fn run_as(
    protocol: GroupProtocol,
    config: &Config,
    engine: &Arc<Engine>,
    health: &Health,
    stop: &AtomicBool,
) -> Result<(), RunError> {
    let topic = config.input_topic();
    let at =
        Coordinates { topic: topic.to_owned(), id: "".into(), fingerprint: engine.catalogue().fingerprint().into() };
    let outbox = Outbox::open(Settings {
        kafka: config.kafka.clone(),
        delivery: config.runtime.delivery,
        transactional_id: config.transactional_id(),
        commit_interval: config.runtime.commit_interval,
        topics: [config.output_topic().to_owned(), config.topics.rejected.clone()],
    })
    .map_err(|error| match error {
        TransactionsError::Client(ClientError::Unreachable { source, .. }) | TransactionsError::Fatal(source) => {
            kafka::why_no_transactions(&config.kafka, &config.transactional_id(), source).into()
        }
        error => RunError::from(error),
    })?;
    let counts = Counts {
        inputs: outbox.partitions(&config.kafka, topic)?,
        outputs: outbox.partitions(&config.kafka, config.output_topic())?,
        rejected: outbox.partitions(&config.kafka, &config.topics.rejected)?,
    };
    let routes = Arc::new(routes(config, counts)?);
    // A quarter for what is read ahead, so that as much again is left for the largest record of each partition.
    let half = config.runtime.in_flight_bytes / 2;
    let read_ahead = (half / 2 / counts.inputs.max(1)).clamp(LEAST_READ_AHEAD, MOST_READ_AHEAD);
    let (wake, woken) = bounded(1);
    let mut consumer = membership::consumer(&config.kafka, protocol, read_ahead, wake.clone())?;
    consumer.set_nonempty_callback({
        let wake = wake.clone();
        move || _ = wake.try_send(())
    });
    let consumer = Arc::new(consumer);
    consumer.subscribe(&[topic]).map_err(RunError::Consumer)?;
    tracing::info!(
        group = config.kafka.group_id,
        instance = config.kafka.instance_id,
        stages = %config.runtime.stages,
        topic,
        partitions = counts.inputs,
        workers = config.runtime.workers,
        "joining the group"
    );

    let (questions, asked) = unbounded();
    let (answer, answers) = unbounded();
    let topics = [(&routes.output, routes.output_keeps_partition), (&routes.rejected, routes.rejected_keeps_partition)];
    let whereabouts = Whereabouts {
        consumer: Arc::clone(&consumer),
        at: at.clone(),
        topics: topics.map(|(topic, _)| topic.to_string()),
        missing: config.kafka.missing_offsets,
        results: Results {
            client: recover::client(&config.kafka),
            input: topic.to_owned(),
            topics: topics.map(|(topic, keeps_partition)| (topic.to_string(), keeps_partition)).to_vec(),
        },
    };
    let asking = std::thread::Builder::new()
        .name("whereabouts".to_owned())
        .spawn(move || whereabouts.answer(&asked, &answer))?;
    let (watching, until) = bounded::<()>(0);
    let watched = {
        let (consumer, kafka, topic) = (Arc::clone(&consumer), config.kafka.clone(), topic.to_owned());
        std::thread::Builder::new().name("watch".to_owned()).spawn(move || watch(&consumer, &kafka, &topic, &until))?
    };
    let originals = Originals::start(&config.kafka)?;
    let reads = config.runtime.stages.reads().map(|kind| {
        let (engine, routes) = (Arc::clone(engine), Arc::clone(&routes));
        BlockWork { engine, routes, originals: originals.clone(), kind }
    });
    let keep = config.limits.max_record_bytes + kafka::OVERHEAD_BYTES;
    let unpacker = Unpacker::start(topic, keep, wake.clone())?;
    let (reports_in, reports) = unbounded();
    let (reread_in, reread) = unbounded();

    let mut work = Loop {
        config,
        health,
        at,
        counts,
        input: Input::new(Arc::clone(&consumer), unpacker, wake, Window::new(half, read_ahead)),
        partitions: Partitions::new(questions, answers),
        intake: Intake { engine: Arc::clone(engine), routes, reads, originals, reports: reports_in, reread: reread_in },
        outbox,
        news: News { reports, reread, woken },
        times: Times {
            stopping: None,
            pulse: Instant::now(),
            turn: Instant::now(),
            more: false,
            stuck: None,
            void: String::new(),
        },
    };
    let result = work.work(stop);
    work.leave();
    drop(work);
    drop(watching);
    // Both hold the consumer: they end with the questions, and with who watches.
    let _ = (asking.join(), watched.join());
    drop(consumer);
    tracing::info!("left the group");
    result
}

/// # Errors
/// Blocks need topics with as many partitions.
fn routes(config: &Config, counts: Counts) -> Result<Routes, RunError> {
    let Counts { inputs, outputs, rejected } = counts;
    let writes = config.runtime.stages.writes();
    if writes.is_some() && outputs != inputs {
        let (input, output) = (config.input_topic().to_owned(), config.output_topic().to_owned());
        return Err(RunError::Partitions { input, inputs, output, outputs });
    }
    Ok(Routes {
        output: config.output_topic().into(),
        output_keeps_partition: outputs == inputs,
        rejected: config.topics.rejected.as_str().into(),
        rejected_keeps_partition: rejected == inputs,
        blocks: writes.unwrap_or(BlockKind::Pcm),
        pass_headers: config.pass_headers.clone().into(),
    })
}
