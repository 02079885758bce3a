//! `tonearm tail`

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use clap::Args;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::{BorrowedMessage, Headers},
};
use tonearm_schemas::{prediction::Prediction, reject::header};

use super::{CommandError, CommandResult, Global, paint, say, signals};
use crate::{
    config::Config,
    kafka::{self, Access, FIRST_ANSWER, Logged},
    telemetry::log,
};

/// After this long without a record it is worth saying where they are looked for.
const SILENCE: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tonearm tail\n  \
    tonearm tail --from-beginning --count 10\n  \
    tonearm tail --json | jq .labels[0]")]
pub struct TailArgs {
    /// The predictions as they are in the topic, one per line; no rejects
    #[arg(long)]
    json: bool,
    /// Start with the oldest instead of the next
    #[arg(long)]
    from_beginning: bool,
    /// End after this many predictions and rejects
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

pub fn main(global: &Global, args: &TailArgs) -> CommandResult {
    let config = global.config([])?;
    log::init(if global.log.is_some() { &config.log.level } else { "warn" }, config.log.json);
    let stop = signals::stop_on_signals()?;

    let topics: &[&str] =
        if args.json { &[&config.topics.predictions] } else { &[&config.topics.predictions, &config.topics.rejected] };
    let start = if args.from_beginning { Offset::Beginning } else { Offset::End };
    let consumer = follow(&config, topics, start)?;
    let (names, began) = (topics.join(" and "), Instant::now());
    let mut silence = Some(if args.from_beginning {
        format!("nothing is in {names} yet; what comes is shown")
    } else {
        format!("showing {names} from now on; --from-beginning shows what is there")
    });
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 && !stop.load(Ordering::Relaxed) {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                if args.json {
                    say::bytes(&[message.payload().unwrap_or_default(), b"\n"].concat())?;
                } else {
                    say::text(pretty(&config, &message))?;
                }
                silence = None;
                left -= 1;
            }
            Some(Err(error)) => kafka::log_error(&error, "still reading"),
            None => {
                if began.elapsed() > SILENCE
                    && let Some(silence) = silence.take()
                {
                    say::problem(silence);
                }
            }
        }
    }
    Ok(())
}

/// A consumer of all partitions of `topics`, outside any group, that sees what is committed.
pub fn follow(config: &Config, topics: &[&str], start: Offset) -> Result<BaseConsumer<Logged>, CommandError> {
    kafka::reach_topics(&config.kafka, Access::Read, topics)?;
    let mut client = kafka::client_config(&config.kafka);
    client
        // librdkafka wants a name; without subscriptions and commits no group comes of it.
        .set("group.id", "tonearm-tail")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "50")
        .set("receive.message.max.bytes", kafka::MAX_RESPONSE_BYTES);
    let consumer: BaseConsumer<Logged> =
        kafka::with_properties(client, &config.kafka).create_with_context(Logged).map_err(CommandError::failed)?;
    let mut assignment = TopicPartitionList::new();
    for topic in topics {
        let partitions = kafka::partitions(consumer.client(), &config.kafka, topic)?;
        for partition in 0..partitions as i32 {
            // An end that is known now cannot move on with the first result, as one that is looked up later would.
            let start = if start == Offset::End { end(&consumer, topic, partition)? } else { start };
            assignment.add_partition_offset(topic, partition, start).map_err(CommandError::failed)?;
        }
    }
    consumer.assign(&assignment).map_err(CommandError::failed)?;
    Ok(consumer)
}

/// The offset of the next record of a partition. One that was just made may have no leader for a moment.
fn end(consumer: &BaseConsumer<Logged>, topic: &str, partition: i32) -> Result<Offset, CommandError> {
    let asked = Instant::now();
    loop {
        match consumer.fetch_watermarks(topic, partition, FIRST_ANSWER) {
            Ok((_, end)) => return Ok(Offset::Offset(end)),
            Err(_) if asked.elapsed() < FIRST_ANSWER => std::thread::sleep(Duration::from_millis(50)),
            Err(e) => return Err(CommandError::Failed(format!("the end of {topic}, partition {partition}: {e}"))),
        }
    }
}

/// A prediction or reject for people.
pub fn pretty(config: &Config, message: &BorrowedMessage<'_>) -> String {
    if message.topic() == config.topics.predictions {
        match serde_json::from_slice::<Prediction>(message.payload().unwrap_or_default()) {
            Ok(prediction) => paint::prediction(&prediction),
            Err(e) => format!(
                "{} {}: not a prediction: {}\n",
                message.partition(),
                message.offset(),
                paint::plain(&e.to_string())
            ),
        }
    } else {
        let header = |name: &str| {
            let headers = message.headers()?;
            let found = headers.iter().filter(|header| header.key == name).last()?;
            Some(String::from_utf8_lossy(found.value?).into_owned())
        };
        let key = message.key().map(|key| String::from_utf8_lossy(key).into_owned());
        paint::reject(
            &key.unwrap_or_else(|| format!("partition {} offset {}", message.partition(), message.offset())),
            &header(header::CLASS).unwrap_or_default(),
            &header(header::MESSAGE).unwrap_or_default(),
        )
    }
}
