//! One track: encoded bytes → prediction, or the reason why not.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tonearm_schemas::{
    manifest::Manifest,
    prediction::{self, Audio, Label, Prediction, Source, Timing},
    reject::{Reject, RejectClass, Stage},
};
use tonearm_stages::{
    decode::Decoder,
    features::Features,
    infer::{ForwardError, Model},
    resample::Resampler,
    windows::Window,
};

use crate::{
    config::{Limits, Output},
    run::Lease,
    telemetry::metrics,
    workers::{Pool, Task},
};

/// Why a track has no prediction.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Reject(#[from] Reject),
    /// The partition it came from was given up.
    #[error("abandoned")]
    Abandoned,
}

/// Everything a prediction needs besides the track; shared by all workers.
pub struct Tagger {
    model: Arc<dyn Model>,
    manifest: Manifest,
    output: Output,
    limits: Limits,
}

/// Which track it is.
pub struct Track<'a> {
    pub bytes: &'a [u8],
    /// A hint; the bytes decide.
    pub content_type: Option<&'a str>,
    pub id: String,
    pub key: Option<String>,
    pub source: Source,
    /// When it was read, for the time it waited.
    pub received: Instant,
}

impl Tagger {
    pub fn new(model: Arc<dyn Model>, manifest: Manifest, output: Output, limits: Limits) -> Self {
        Self { model, manifest, output, limits }
    }

    /// Predicts one track; windows are scored on `pool`'s idle workers as well as on this thread.
    ///
    /// # Errors
    /// The track cannot be decoded, is outside the limits, or the model fails; a panic in a decoder is caught. Or the
    /// lease ended before the track did.
    pub fn predict<'env>(&self, pool: &Pool<'env>, track: Track<'_>, lease: &Lease) -> Result<Prediction, Failure> {
        let started = Instant::now();
        let queue = started - track.received;
        if track.bytes.len() > self.limits.max_record_bytes {
            return Err(Reject::new(
                Stage::Decode,
                RejectClass::TooLarge,
                format!(
                    "the record has {} bytes, limits.max_record_mib allows {}",
                    track.bytes.len(),
                    self.limits.max_record_bytes
                ),
            )
            .into());
        }

        let blake3 = blake3::hash(track.bytes).to_hex().to_string();
        let scores = Arc::new(Scores::default());
        let front = catch_unwind(AssertUnwindSafe(|| self.compute(pool, &track, lease, &scores)));
        // Also after an error: pieces given away must not outlive their record.
        let scored = scores.wait(pool);
        let front = front.unwrap_or_else(|panic| {
            let message = format!("the decoder panicked: {}", text(&*panic));
            Err(Reject::new(Stage::Decode, RejectClass::DecoderCrash, message).into())
        })?;
        let (windows, infer) = scored.map_err(|(window, error)| {
            Reject::new(Stage::Infer, RejectClass::ModelFailure, format!("window {window}: {error}"))
        })?;

        let timing = Timing {
            queue: ms(queue),
            decode: ms(front.decode),
            features: ms(front.features),
            infer: ms(infer),
            total: ms(track.received.elapsed()),
        };
        metrics::track_done(queue, front.decode, front.features, infer, &front.audio);
        Ok(self.prediction(track, front, windows, blake3, timing))
    }

    /// Decode, resample and features; windows go to `scores` as they come.
    fn compute<'env>(
        &self,
        pool: &Pool<'env>,
        track: &Track<'_>,
        lease: &Lease,
        scores: &Arc<Scores>,
    ) -> Result<Front, Failure> {
        let mut clock = Clock::start();
        let mut decoder = Decoder::open(track.bytes, track.content_type)?;
        let info = decoder.info().clone();
        let model_rate = self.manifest.audio.sample_rate_hz;
        let mut resampler = Resampler::new(info.sample_rate_hz, model_rate)
            .map_err(|e| Reject::new(Stage::Decode, RejectClass::UnsupportedFormat, e.to_string()))?;
        let mut features = Features::new(&self.manifest);

        let (mut decode, mut featuring) = (Duration::ZERO, Duration::ZERO);
        let (mut mono, mut pcm, mut windows) = (Vec::new(), Vec::new(), Vec::new());
        let max_frames = self.limits.max_duration.as_secs().saturating_mul(info.sample_rate_hz.into());
        while decoder.next(&mut mono)? {
            if !lease.may_go_on() {
                return Err(Failure::Abandoned);
            }
            if decoder.frames() > max_frames {
                return Err(Reject::new(
                    Stage::Decode,
                    RejectClass::TooLong,
                    format!("the audio is longer than limits.max_duration_s = {}", self.limits.max_duration.as_secs()),
                )
                .into());
            }
            resampler.push(&mono, &mut pcm);
            decode += clock.lap();
            features.push(&pcm, &mut windows);
            featuring += clock.lap();
            self.score(pool, scores, &mut windows);
            clock.lap();
            mono.clear();
            pcm.clear();
        }
        if decoder.frames() == 0 {
            return Err(Reject::new(Stage::Decode, RejectClass::NoAudioTrack, "the audio track has no frames").into());
        }
        resampler.finish(&mut pcm);
        decode += clock.lap();
        features.push(&pcm, &mut windows);
        let padded = features.finish(&mut windows)?;
        featuring += clock.lap();
        self.score(pool, scores, &mut windows);

        let frames = decoder.frames();
        Ok(Front {
            audio: Audio {
                codec: info.codec,
                sample_rate_hz: info.sample_rate_hz,
                channels: info.channels,
                frames,
                duration_s: frames as f64 / f64::from(info.sample_rate_hz),
                blake3: String::new(),
                padded,
            },
            decode,
            features: featuring,
        })
    }

    /// Scores windows on idle workers, or here where there is none.
    fn score<'env>(&self, pool: &Pool<'env>, scores: &Arc<Scores>, windows: &mut Vec<Window>) {
        for window in windows.drain(..) {
            let index = scores.expect_one(window.start_frame);
            let model = Arc::clone(&self.model);
            let scores = Arc::clone(scores);
            let piece: Task<'env> = Box::new(move |_| {
                let started = Instant::now();
                let result = catch_unwind(AssertUnwindSafe(|| model.forward(&window.values)))
                    .unwrap_or_else(|panic| Err(ForwardError::Panic(text(&*panic))));
                scores.put(index, result, started.elapsed());
            });
            if let Err(piece) = pool.offer(piece) {
                piece(pool);
            }
        }
    }

    fn prediction(
        &self,
        track: Track<'_>,
        front: Front,
        windows: Vec<(u64, Vec<f32>)>,
        blake3: String,
        timing_ms: Timing,
    ) -> Prediction {
        let labels = &self.manifest.output.labels;
        let mut means = vec![0f64; labels.len()];
        for (_, scores) in &windows {
            means.iter_mut().zip(scores).for_each(|(mean, score)| *mean += f64::from(*score));
        }
        let mut ranked: Vec<Label> = means
            .iter()
            .zip(labels)
            .map(|(sum, label)| Label { label: label.clone(), score: (sum / windows.len().max(1) as f64) as f32 })
            .collect();
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        ranked.truncate(self.output.labels.map_or(usize::MAX, Into::into));

        let second = self.manifest.seconds_per_frame();
        let length = self.manifest.windows.frames as u64;
        let windows = self.output.windows.then(|| {
            windows
                .into_iter()
                .map(|(start, scores)| prediction::Window {
                    start_s: start as f64 * second,
                    end_s: (start + length) as f64 * second,
                    scores,
                })
                .collect()
        });
        Prediction {
            schema: prediction::SCHEMA.to_owned(),
            id: track.id,
            track: track.key,
            source: track.source,
            audio: Audio { blake3, ..front.audio },
            model: prediction::Model {
                name: self.manifest.name.clone(),
                version: self.manifest.version.to_string(),
                sha256: self.manifest.sha256.clone(),
                precision: self.model.precision().as_str().to_owned(),
            },
            labels: ranked,
            windows,
            timing_ms,
            produced_by: concat!("tonearm ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// What is known of a track once all its windows are on their way.
struct Front {
    audio: Audio,
    decode: Duration,
    features: Duration,
}

/// The scores of one track's windows, filled in by whichever worker has them.
#[derive(Default)]
struct Scores {
    state: Mutex<ScoresState>,
    all_done: Condvar,
}

#[derive(Default)]
struct ScoresState {
    /// Start frame and scores of each window, in time order; no scores until they are computed.
    windows: Vec<(u64, Option<Vec<f32>>)>,
    pending: usize,
    /// The earliest window that failed.
    failure: Option<(usize, ForwardError)>,
    busy: Duration,
}

impl Scores {
    fn lock(&self) -> MutexGuard<'_, ScoresState> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect_one(&self, start_frame: u64) -> usize {
        let mut state = self.lock();
        state.pending += 1;
        state.windows.push((start_frame, None));
        state.windows.len() - 1
    }

    fn put(&self, index: usize, result: Result<Vec<f32>, ForwardError>, busy: Duration) {
        let mut state = self.lock();
        state.busy += busy;
        match result {
            Ok(scores) => state.windows[index].1 = Some(scores),
            Err(error) if state.failure.as_ref().is_none_or(|(earliest, _)| index < *earliest) => {
                state.failure = Some((index, error));
            }
            Err(_) => {}
        }
        state.pending -= 1;
        if state.pending == 0 {
            self.all_done.notify_all();
        }
    }

    /// Waits for every expected window, working on queued pieces meanwhile.
    #[allow(clippy::type_complexity)]
    fn wait(&self, pool: &Pool<'_>) -> Result<(Vec<(u64, Vec<f32>)>, Duration), (usize, ForwardError)> {
        while self.lock().pending > 0 && pool.help() {}
        let mut state = self.lock();
        while state.pending > 0 {
            state = self.all_done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match state.failure.take() {
            Some(failure) => Err(failure),
            None => {
                let windows = std::mem::take(&mut state.windows);
                let windows = windows.into_iter().filter_map(|(start, scores)| Some((start, scores?))).collect();
                Ok((windows, state.busy))
            }
        }
    }
}

/// Splits time between two activities that take turns.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the last lap.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}

fn ms(duration: Duration) -> f64 {
    // Microseconds are as fine as anyone reads.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
