//! One track on its way through the stages of this process: encoded bytes → PCM → windows → prediction, from where this
//! process takes it to where it hands it on.

mod chain;
mod prediction;
mod scores;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use tonearm_schemas::{
    block::{BlockHead, FrontEnd},
    manifest::{FeatureSpec, Manifest},
    prediction::{Audio, Prediction, Source, Timing},
    reject::{Reject, RejectClass, Stage},
};
use tonearm_stages::{decode::Decoder, infer::Model, resample::Resampler};

pub use self::chain::{Chain, Sink};
use crate::{
    config::{Limits, Output, Stages},
    telemetry::metrics,
    workers::Pool,
};

/// Why a track does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Reject(#[from] Reject),
    /// The partition it came from was given up.
    #[error("abandoned")]
    Abandoned,
}

/// How a track ends in this process.
pub enum Made {
    Prediction(Box<Prediction>),
    /// The track's last block, for the next stage.
    Block(Block),
    Reject {
        reject: Reject,
        /// Tells the next stage, where it has blocks of the track.
        last: Option<Block>,
    },
}

/// A block, as the next stage reads it.
pub struct Block {
    pub head: BlockHead,
    pub value: Vec<u8>,
}

/// Everything the stages need besides the track; shared by all workers.
pub struct Tagger {
    stages: Stages,
    /// None where this process does not infer.
    model: Option<Arc<dyn Model>>,
    manifest: Manifest,
    output: Output,
    limits: Limits,
}

/// Which track it is.
#[derive(Clone, Debug)]
pub struct Origin {
    pub id: String,
    pub key: Option<String>,
    pub source: Source,
    /// When this process read it, for the time it waited.
    pub received: Instant,
}

impl Tagger {
    /// `model` is needed where `stages` end with infer.
    pub fn new(
        stages: Stages,
        model: Option<Arc<dyn Model>>,
        manifest: Manifest,
        output: Output,
        limits: Limits,
    ) -> Self {
        Self { stages, model, manifest, output, limits }
    }

    pub fn stages(&self) -> Stages {
        self.stages
    }

    /// What of the manifest the values behind `stage` depend on.
    pub fn front_end(&self, stage: Stage) -> FrontEnd {
        let Manifest { audio, features, windows, .. } = &self.manifest;
        let behind_features = stage != Stage::Decode;
        FrontEnd {
            audio: audio.clone(),
            features: behind_features.then(|| features.clone()),
            windows: behind_features.then(|| windows.clone()),
        }
    }

    /// What the values depend on that the first of these stages takes.
    pub fn front_end_before(&self) -> FrontEnd {
        self.front_end(if self.stages.first() == Stage::Infer { Stage::Features } else { Stage::Decode })
    }

    /// Frames and bands of a window.
    pub fn window_shape(&self) -> [usize; 2] {
        let FeatureSpec::LogMel(mel) = &self.manifest.features;
        [self.manifest.windows.frames, mel.bands]
    }

    /// Everything the blocks of a track depend on besides its bytes: two processes that agree in it make the same blocks.
    pub fn fingerprint(&self) -> String {
        let front_end = serde_json::to_string(&self.front_end(Stage::Features)).unwrap_or_default();
        let text = format!("{} {front_end} {:?} {}", env!("CARGO_PKG_VERSION"), self.limits, chain::BLOCK_VALUES);
        blake3::hash(text.as_bytes()).to_hex()[..8].to_owned()
    }

    /// Takes an encoded track through the stages; all blocks but the last go to `sink`. Windows are scored on `pool`'s idle
    /// workers as well as on this thread. None where the track is of no use any more.
    ///
    /// It is rejected where it cannot be decoded, is outside the limits, or the model fails; a panic in a decoder is caught.
    pub fn process<'env>(
        self: &Arc<Self>,
        pool: &Pool<'env>,
        origin: Origin,
        bytes: &[u8],
        content_type: Option<&str>,
        sink: &dyn Sink,
    ) -> Option<Made> {
        let mut chain = Chain::new(Arc::clone(self), origin);
        let audio = catch_unwind(AssertUnwindSafe(|| self.decode(pool, bytes, content_type, &mut chain, sink)));
        let audio = audio.unwrap_or_else(|panic| {
            let message = format!("the decoder panicked: {}", text(&*panic));
            Err(Reject::new(Stage::Decode, RejectClass::DecoderCrash, message).into())
        });
        match audio {
            Ok((audio, decode)) => chain.end(pool, audio, Timing { decode: ms(decode), ..Timing::default() }, sink),
            Err(failure) => chain.fail(pool, failure),
        }
    }

    /// Decodes and resamples; the PCM goes down the chain as it comes.
    fn decode<'env>(
        &self,
        pool: &Pool<'env>,
        bytes: &[u8],
        content_type: Option<&str>,
        chain: &mut Chain,
        sink: &dyn Sink,
    ) -> Result<(Audio, Duration), Failure> {
        if bytes.len() > self.limits.max_record_bytes {
            let (found, allowed) = (bytes.len(), self.limits.max_record_bytes);
            let message = format!("the record has {found} bytes, limits.max_record_mib allows {allowed}");
            return Err(Reject::new(Stage::Decode, RejectClass::TooLarge, message).into());
        }
        let mut clock = Clock::start();
        let blake3 = blake3::hash(bytes).to_hex().to_string();
        let mut decoder = Decoder::open(bytes, content_type)?;
        let info = decoder.info().clone();
        let mut resampler = Resampler::new(info.sample_rate_hz, self.manifest.audio.sample_rate_hz)
            .map_err(|e| Reject::new(Stage::Decode, RejectClass::UnsupportedFormat, e.to_string()))?;

        let mut spent = Duration::ZERO;
        let (mut mono, mut pcm) = (Vec::new(), Vec::new());
        let max_frames = self.limits.max_duration.as_secs().saturating_mul(info.sample_rate_hz.into());
        while decoder.next(&mut mono)? {
            if decoder.frames() > max_frames {
                let allowed = self.limits.max_duration.as_secs();
                let message = format!("the audio is longer than limits.max_duration_s = {allowed}");
                return Err(Reject::new(Stage::Decode, RejectClass::TooLong, message).into());
            }
            resampler.push(&mono, &mut pcm);
            spent += clock.lap();
            chain.pcm(pool, &pcm, sink)?;
            clock.lap();
            mono.clear();
            pcm.clear();
        }
        let frames = decoder.frames();
        if frames == 0 {
            return Err(Reject::new(Stage::Decode, RejectClass::NoAudioTrack, "the audio track has no frames").into());
        }
        resampler.finish(&mut pcm);
        spent += clock.lap();
        chain.pcm(pool, &pcm, sink)?;
        metrics::worked(Stage::Decode, spent);
        let audio = Audio {
            codec: info.codec,
            sample_rate_hz: info.sample_rate_hz,
            channels: info.channels,
            frames,
            duration_s: frames as f64 / f64::from(info.sample_rate_hz),
            blake3,
            padded: false,
        };
        Ok((audio, spent))
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
