//! The whole of it: records through a real Kafka, beside pipelines in Python that read files.

use std::path::PathBuf;

use serde_json::json;
use tonearm_benches::{DEFAULT_MODEL, MINUTE_S, clock::time, model, music, read};
use tonearm_schemas::manifest::Manifest;
use tonearm_stages::{decode::Decoder, features::Features, infer::Model, resample::Resampler};

use crate::{
    Asked as Options,
    claim::{Asked, Claim, median, ratios},
    contest::rounded,
    peers::Peer,
    program::{AtWork, Backlog, Done},
};

/// How long a run is, about: so long that the first fetches and the commit after the last record hardly count.
const RUN_S: f64 = 20.0;
/// Files of the run that tells how many make [`RUN_S`].
const TRIAL: usize = 16;

const EXACTLY_ONCE: &[(&str, &str)] = &[("runtime.delivery", "exactly-once")];
const AT_LEAST_ONCE: &[(&str, &str)] = &[("runtime.delivery", "at-least-once")];
const ONE_WORKER: &[(&str, &str)] = &[("runtime.workers", "1")];
const TWO_WORKERS: &[(&str, &str)] = &[("runtime.workers", "2")];

pub fn measure(options: &Options) -> Vec<Claim> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(music().join("minute"))
        .expect("the music")
        .map(|entry| entry.expect("the music").path())
        .collect();
    files.sort();
    let backlog = |count: usize| {
        let chosen: Vec<PathBuf> = files.iter().cycle().take(count).cloned().collect();
        (Backlog::publish(chosen.iter().map(|file| read(file)), count as f64 * MINUTE_S), chosen)
    };
    eprintln!("pipeline: a trial run");
    let (trial, _) = backlog(TRIAL);
    let trial_s = AtWork::start(&trial, EXACTLY_ONCE).finish().wall_s;
    let count = ((RUN_S / trial_s).round() as usize).max(1) * TRIAL;
    let (backlog, files) = backlog(count);
    eprintln!("pipeline: {count} files of {MINUTE_S} s");

    let mut claims = beside_peers(options, &backlog, &files);
    claims.extend(deliveries(options, &backlog));
    claims.extend(workers(options, &backlog, &files));
    claims
}

fn run(backlog: &Backlog, settings: &[(&str, &str)]) -> Done {
    AtWork::start(backlog, settings).finish()
}

fn beside_peers(options: &Options, backlog: &Backlog, files: &[PathBuf]) -> Vec<Claim> {
    let Some(python) = &options.python else { return Vec::new() };
    let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    // (pipeline, what is asked of ours over it, the part of the files that it does)
    let mut peers: Vec<(&str, Option<f64>, usize, Peer)> =
        [("tuned", Some(2.5), 4), ("naive", Some(20.0), 24), ("naive-windowed", None, 12)]
            .map(|(kind, over, part)| (kind, over, part, python.start("pipeline.py", &[kind, &cores])))
            .into();
    let mut rate = |at: usize| {
        let (_, _, part, peer) = &mut peers[at];
        // Each codec as often as in all of them.
        let count = (files.len() / *part / 4).max(1) * 4;
        let answer = peer.ask(&json!({ "files": files[..count] }));
        count as f64 * MINUTE_S / answer["wall_s"].as_f64().expect("seconds")
    };
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); 4];
    eprintln!("pipeline: tonearm, tuned, naive, naive-windowed");
    (0..3).for_each(|at| _ = rate(at));
    for _ in 0..options.pipeline_rounds {
        rates[0].push(backlog.audio_s / run(backlog, EXACTLY_ONCE).wall_s);
        (0..3).for_each(|at| rates[at + 1].push(rate(at)));
    }
    let figures =
        |at: usize| format!("{} and {} s of audio per s", rounded(median(&rates[0])), rounded(median(&rates[at])));
    let mut claims = vec![Claim::new("end to end: tonearm, exactly once", None, "× real time", rates[0].clone())];
    for (at, (kind, over, ..)) in peers.iter().enumerate() {
        let what = format!("end to end: tonearm, exactly once, over {kind} Python without Kafka");
        let claim = Claim::new(what, over.map(Asked::AtLeast), "×", ratios(&rates[0], &rates[at + 1]));
        claims.push(claim.figures(figures(at + 1)));
    }
    claims
}

/// What exactly-once costs: in throughput, to which a broker on the same machine belongs, and in CPU time, told apart.
fn deliveries(options: &Options, backlog: &Backlog) -> Vec<Claim> {
    eprintln!("pipeline: exactly once, at least once");
    let (mut exactly, mut at_least): (Vec<Done>, Vec<Done>) = (Vec::new(), Vec::new());
    for round in 0..options.pipeline_rounds {
        // Each goes first as often as the other.
        for turn in [round % 2, 1 - round % 2] {
            match turn {
                0 => exactly.push(run(backlog, EXACTLY_ONCE)),
                _ => at_least.push(run(backlog, AT_LEAST_ONCE)),
            }
        }
    }
    let claim = |what: &str, asked: Option<f64>, unit: &str, figure: &dyn Fn(&Done) -> f64| {
        let [exactly, at_least] = [&exactly, &at_least].map(|done| done.iter().map(figure).collect::<Vec<_>>());
        let figures = format!("{} and {} {unit}", rounded(median(&exactly)), rounded(median(&at_least)));
        let what = format!("exactly once over at least once: {what}");
        Claim::new(what, asked.map(Asked::AtLeast), "×", ratios(&exactly, &at_least)).figures(figures)
    };
    let records = backlog.records as f64;
    vec![
        claim("throughput", Some(0.95), "s of audio per s", &|done| backlog.audio_s / done.wall_s),
        claim("records per CPU second of the process", Some(0.97), "per s", &|done| records / done.cpu_s),
        claim("the broker's CPU time", None, "ms per record", &|done| done.broker_cpu_s * 1e3 / records),
    ]
}

/// How workers add up, and what Kafka and the runtime cost beside the stages.
fn workers(options: &Options, backlog: &Backlog, files: &[PathBuf]) -> Vec<Claim> {
    let (model, manifest) = model(DEFAULT_MODEL, "auto").expect("the default precision");
    let values: Vec<Vec<u8>> = files.iter().map(|file| read(file)).collect();
    let stages = || time(|| values.iter().for_each(|value| whole_track(value, model.as_ref(), &manifest))).cpu_s;
    whole_track(&values[0], model.as_ref(), &manifest);
    eprintln!("pipeline: the stages alone, one worker, two workers, two processes of one worker");
    let (mut cost, mut one, mut two, mut processes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut stages_s, mut cpu_s) = (Vec::new(), Vec::new());
    // Each round takes four runs.
    for _ in 0..options.pipeline_rounds.min(3) {
        let alone = stages();
        let done = run(backlog, ONE_WORKER);
        cost.push(done.cpu_s / alone);
        stages_s.push(alone);
        cpu_s.push(done.cpu_s);
        one.push(backlog.audio_s / done.wall_s);
        two.push(backlog.audio_s / run(backlog, TWO_WORKERS).wall_s);
        // Groups of their own, so both do everything.
        let (first, second) = (AtWork::start(backlog, ONE_WORKER), AtWork::start(backlog, ONE_WORKER));
        let walls_s = std::thread::scope(|scope| {
            let second = scope.spawn(|| second.finish());
            [first.finish().wall_s, second.join().expect("a result").wall_s]
        });
        processes.push(walls_s.iter().map(|wall_s| backlog.audio_s / wall_s).sum());
    }
    let scaling = format!(
        "{} s of audio per s with one worker, {} with two, {} in two processes",
        rounded(median(&one)),
        rounded(median(&two)),
        rounded(median(&processes))
    );
    let cpu = format!("{} and {} s of CPU time", rounded(median(&cpu_s)), rounded(median(&stages_s)));
    vec![
        Claim::new("CPU time: records through Kafka over their stages alone", Some(Asked::AtMost(1.15)), "×", cost)
            .figures(cpu),
        Claim::new(
            "two workers over two processes of one worker",
            Some(Asked::AtLeast(0.95)),
            "×",
            ratios(&two, &processes),
        )
        .figures(scaling),
        Claim::new("two workers over one", None, "×", ratios(&two, &one)),
    ]
}

/// One track through all stages on this thread, as `tonearm run` does it.
fn whole_track(bytes: &[u8], model: &dyn Model, manifest: &Manifest) {
    let mut decoder = Decoder::open(bytes, None).expect("music");
    let rate = decoder.info().sample_rate_hz;
    let mut resampler = Resampler::new(rate, manifest.audio.sample_rate_hz).expect("rates that are allowed");
    let mut features = Features::new(manifest);
    let (mut mono, mut samples, mut windows) = (Vec::new(), Vec::new(), Vec::new());
    while decoder.next(&mut mono).expect("music") {
        resampler.push(&mono, &mut samples);
        features.push(&samples, &mut windows);
        mono.clear();
        samples.clear();
        for window in windows.drain(..) {
            model.forward(&window.values).expect("scores");
        }
    }
    resampler.finish(&mut samples);
    features.push(&samples, &mut windows);
    features.finish(&mut windows).expect("a minute");
    for window in windows {
        model.forward(&window.values).expect("scores");
    }
}
