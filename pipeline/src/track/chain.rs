//! The stages behind the one that reads: PCM or windows go in piece by piece, blocks or a prediction come out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tonearm_schemas::{
    block::{self, BlockHead, BlockTrack, TrackEnd},
    manifest::FeatureSpec,
    prediction::{Audio, Timing},
    reject::{Reject, RejectClass, Stage},
};
use tonearm_stages::{features::Features, windows::Window};

use super::{Block, Failure, Made, Origin, Tagger, ms, scores::Scores};
use crate::{telemetry::metrics, workers::Pool};

/// Where the blocks of a track go.
pub trait Sink {
    /// False where the track is of no use any more.
    fn goes_on(&self) -> bool;

    /// Takes a block away, once there is room for it. False where the track is of no use any more.
    fn take(&self, block: Block) -> bool;
}

/// Values in a block, so that it stays below Kafka's default limit of 1 MiB for a record. Windows larger than this are
/// a block of their own.
pub const BLOCK_VALUES: usize = 1 << 17;

/// One track. Its blocks are cut at the same samples and windows however it came in.
pub struct Chain {
    tagger: Arc<Tagger>,
    origin: Origin,
    /// When this process began to work on it.
    started: Instant,
    /// None where another process computes them.
    features: Option<Features>,
    scores: Arc<Scores>,
    /// PCM or windows on their way into a block.
    pcm: Vec<f32>,
    windows: Vec<Window>,
    /// Blocks made.
    blocks: u64,
    featuring: Duration,
}

impl Chain {
    pub fn new(tagger: Arc<Tagger>, origin: Origin) -> Self {
        let started = Instant::now();
        metrics::waited(tagger.stages.first(), started - origin.received);
        let features = tagger.stages.has(Stage::Features).then(|| Features::new(&tagger.manifest));
        Self {
            tagger,
            origin,
            started,
            features,
            scores: Arc::default(),
            pcm: Vec::new(),
            windows: Vec::new(),
            blocks: 0,
            featuring: Duration::ZERO,
        }
    }

    /// Takes the next PCM, mono at the model's rate.
    ///
    /// # Errors
    /// [`Failure::Abandoned`]
    pub fn pcm(&mut self, pool: &Pool<'_>, samples: &[f32], sink: &dyn Sink) -> Result<(), Failure> {
        let Some(features) = &mut self.features else {
            self.pcm.extend_from_slice(samples);
            return self.emit_pcm(sink);
        };
        let started = Instant::now();
        features.push(samples, &mut self.windows);
        self.featuring += started.elapsed();
        self.go_on(pool, sink)
    }

    /// Takes the next windows.
    ///
    /// # Errors
    /// [`Failure::Abandoned`]
    pub fn windows(&mut self, pool: &Pool<'_>, windows: Vec<Window>, sink: &dyn Sink) -> Result<(), Failure> {
        self.windows.extend(windows);
        self.go_on(pool, sink)
    }

    /// Windows are scored or go out.
    fn go_on(&mut self, pool: &Pool<'_>, sink: &dyn Sink) -> Result<(), Failure> {
        let Some(model) = &self.tagger.model else { return self.emit_windows(sink) };
        self.scores.score(pool, model, &mut self.windows);
        if sink.goes_on() { Ok(()) } else { Err(Failure::Abandoned) }
    }

    fn emit_pcm(&mut self, sink: &dyn Sink) -> Result<(), Failure> {
        let mut done = 0;
        // What fills a block exactly may be the last of it, which says how the track ended.
        while self.pcm.len() - done > BLOCK_VALUES {
            let value = block::write_pcm(&self.pcm[done..done + BLOCK_VALUES]);
            done += BLOCK_VALUES;
            let block = self.block(value, None);
            if !sink.take(block) {
                return Err(Failure::Abandoned);
            }
        }
        self.pcm.drain(..done);
        Ok(())
    }

    fn emit_windows(&mut self, sink: &dyn Sink) -> Result<(), Failure> {
        let per_block = (BLOCK_VALUES / self.tagger.manifest.window_len()).max(1);
        while self.windows.len() > per_block {
            let windows: Vec<Window> = self.windows.drain(..per_block).collect();
            let value = self.features_value(&windows);
            let block = self.block(value, None);
            if !sink.take(block) {
                return Err(Failure::Abandoned);
            }
        }
        Ok(())
    }

    /// Ends the track. `earlier` is the time spent on it before it came to this process.
    pub fn end(mut self, pool: &Pool<'_>, mut audio: Audio, earlier: Timing, sink: &dyn Sink) -> Option<Made> {
        if let Some(features) = self.features.take() {
            let started = Instant::now();
            let padded = features.finish(&mut self.windows);
            self.featuring += started.elapsed();
            metrics::worked(Stage::Features, self.featuring);
            match padded {
                Ok(padded) => audio.padded = padded,
                Err(reject) => return self.fail(pool, reject.into()),
            }
            if let Err(failure) = self.go_on(pool, sink) {
                return self.fail(pool, failure);
            }
        }
        // Sums of 64-bit floats that went through JSON are not safe to the bit; these are.
        audio.duration_s = audio.frames as f64 / f64::from(audio.sample_rate_hz);
        let timing = Timing {
            queue: earlier.queue + ms(self.started - self.origin.received),
            features: earlier.features + ms(self.featuring),
            ..earlier
        };
        if self.tagger.model.is_none() {
            let total = earlier.total + ms(self.origin.received.elapsed());
            return Some(Made::Block(
                self.last_block(TrackEnd::Whole { audio, timing_ms: Timing { total, ..timing } }),
            ));
        }
        match self.scores.wait(pool) {
            Ok((windows, spent)) => {
                metrics::worked(Stage::Infer, spent);
                metrics::predicted(&audio);
                let total = earlier.total + ms(self.origin.received.elapsed());
                let timing = Timing { infer: ms(spent), total, ..timing };
                Some(Made::Prediction(Box::new(self.tagger.prediction(self.origin, audio, windows, timing))))
            }
            Err((window, error)) => {
                let message = format!("window {window}: {error}");
                self.fail(pool, Reject::new(Stage::Infer, RejectClass::ModelFailure, message).into())
            }
        }
    }

    /// Ends a track that failed; the next stage is told where it has blocks of it.
    pub fn fail(mut self, pool: &Pool<'_>, failure: Failure) -> Option<Made> {
        // Windows given away must not outlive their track.
        let _ = self.scores.wait(pool);
        let Failure::Reject(reject) = failure else { return None };
        self.pcm.clear();
        self.windows.clear();
        let last = (self.blocks > 0).then(|| self.last_block(TrackEnd::Rejected));
        Some(Made::Reject { reject, last })
    }

    /// Ends a track that an earlier stage rejected, and that has its reject: only the next stage may have to know.
    pub fn drop_rejected(mut self, pool: &Pool<'_>) -> Option<Block> {
        let _ = self.scores.wait(pool);
        self.pcm.clear();
        self.windows.clear();
        (self.blocks > 0).then(|| self.last_block(TrackEnd::Rejected))
    }

    /// What no block has yet.
    fn last_block(&mut self, end: TrackEnd) -> Block {
        let value = match self.tagger.stages.last() {
            Stage::Decode => block::write_pcm(&self.pcm),
            Stage::Features | Stage::Infer => self.features_value(&self.windows),
        };
        self.block(value, Some(end))
    }

    fn features_value(&self, windows: &[Window]) -> Vec<u8> {
        let FeatureSpec::LogMel(mel) = &self.tagger.manifest.features;
        let starts: Vec<u64> = windows.iter().map(|window| window.start_frame).collect();
        let values: Vec<f32> = windows.iter().flat_map(|window| &window.values).copied().collect();
        block::write_features(&values, &starts, self.tagger.manifest.windows.frames, mel.bands)
    }

    fn block(&mut self, value: Vec<u8>, end: Option<TrackEnd>) -> Block {
        let track = BlockTrack {
            id: self.origin.id.clone(),
            source: self.origin.source.clone(),
            front_end: self.tagger.front_end(self.tagger.stages.last()),
            end,
        };
        let index = self.blocks;
        self.blocks += 1;
        Block { head: BlockHead { index, track }, value }
    }
}
