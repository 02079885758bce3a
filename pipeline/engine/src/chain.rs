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

use crate::{
    catalogue::Catalogue,
    events,
    job::{BLOCK_VALUES, Block, Client, Failure, Origin, Outcome},
    pool::{Pool, Tag},
    prediction,
    scores::Scores,
};

/// One track. Its blocks are cut at the same samples and windows however it came in.
pub struct Chain {
    catalogue: Arc<Catalogue>,
    pool: Pool,
    tag: Arc<Tag>,
    origin: Origin,
    /// When this process began to work on it.
    started: Instant,
    /// `None` if another process computes them.
    features: Option<Features>,
    scores: Arc<Scores>,
    pending: Pending,
    featuring: Duration,
}

/// What is on its way into a block.
#[derive(Default)]
struct Pending {
    pcm: Vec<f32>,
    windows: Vec<Window>,
    /// Blocks made.
    blocks: u64,
}

impl Chain {
    pub fn new(catalogue: Arc<Catalogue>, pool: Pool, tag: Arc<Tag>, origin: Origin) -> Self {
        let started = Instant::now();
        events::waited(catalogue.stages().first(), started - origin.received);
        let features = catalogue.stages().has(Stage::Features).then(|| Features::new(&catalogue.manifest));
        Self {
            catalogue,
            pool,
            tag,
            origin,
            started,
            features,
            scores: Arc::default(),
            pending: Pending::default(),
            featuring: Duration::ZERO,
        }
    }

    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Takes the next PCM, mono at the model's rate.
    ///
    /// # Errors
    /// [`Failure::Cancelled`]
    pub async fn pcm(&mut self, samples: &[f32], client: &dyn Client) -> Result<(), Failure> {
        let Some(features) = &mut self.features else {
            self.pending.pcm.extend_from_slice(samples);
            return self.emit_pcm(client).await;
        };
        self.tag.at(Stage::Features);
        let started = Instant::now();
        features.push(samples, &mut self.pending.windows);
        self.featuring += started.elapsed();
        self.go_on(client).await
    }

    /// Takes the next windows.
    ///
    /// # Errors
    /// [`Failure::Cancelled`]
    pub async fn windows(&mut self, windows: Vec<Window>, client: &dyn Client) -> Result<(), Failure> {
        self.pending.windows.extend(windows);
        self.go_on(client).await
    }

    /// Windows are scored or go out.
    async fn go_on(&mut self, client: &dyn Client) -> Result<(), Failure> {
        let Some(model) = &self.catalogue.model else { return self.emit_windows(client).await };
        self.scores.score(&self.pool, &self.tag, model, &mut self.pending.windows);
        if client.is_wanted() { Ok(()) } else { Err(Failure::Cancelled) }
    }

    async fn emit_pcm(&mut self, client: &dyn Client) -> Result<(), Failure> {
        // What fills a block exactly may be the last of it, which says how the track ended.
        while self.pending.pcm.len() > BLOCK_VALUES {
            let value = block::write_pcm(&self.pending.pcm[..BLOCK_VALUES]);
            self.pending.pcm.drain(..BLOCK_VALUES);
            self.emit(value, client).await?;
        }
        if client.is_wanted() { Ok(()) } else { Err(Failure::Cancelled) }
    }

    async fn emit_windows(&mut self, client: &dyn Client) -> Result<(), Failure> {
        let per_block = (BLOCK_VALUES / self.catalogue.manifest.window_len()).max(1);
        while self.pending.windows.len() > per_block {
            let windows: Vec<Window> = self.pending.windows.drain(..per_block).collect();
            let value = self.features_value(&windows);
            self.emit(value, client).await?;
        }
        if client.is_wanted() { Ok(()) } else { Err(Failure::Cancelled) }
    }

    async fn emit(&mut self, value: Vec<u8>, client: &dyn Client) -> Result<(), Failure> {
        let block = self.block(value, None);
        if !client.room(block.bytes()).await {
            return Err(Failure::Cancelled);
        }
        client.take(block);
        Ok(())
    }

    /// Ends the track. `earlier` is the time spent on it before it came to this process. `None` if it is cancelled.
    pub async fn end(&mut self, mut audio: Audio, earlier: Timing, client: &dyn Client) -> Option<Outcome> {
        if let Some(features) = self.features.take() {
            self.tag.at(Stage::Features);
            let started = Instant::now();
            let padded = features.finish(&mut self.pending.windows);
            self.featuring += started.elapsed();
            events::worked(Stage::Features, self.featuring);
            match padded {
                Ok(padded) => audio.padded = padded,
                Err(reject) => return self.fail(reject.into()),
            }
            if let Err(failure) = self.go_on(client).await {
                return self.fail(failure);
            }
        }
        // Sums of 64-bit floats that went through JSON are not safe to the bit; these are.
        audio.duration_s = audio.frames as f64 / f64::from(audio.sample_rate_hz);
        let timing = Timing {
            queue: earlier.queue + ms(self.started - self.origin.received),
            features: earlier.features + ms(self.featuring),
            ..earlier
        };
        let Some(model) = self.catalogue.model.clone() else {
            let total = earlier.total + ms(self.origin.received.elapsed());
            let end = TrackEnd::Whole { audio, timing_ms: Timing { total, ..timing } };
            return Some(Outcome::Block(self.last_block(end)));
        };
        match self.scores.all().await {
            Ok((windows, spent)) => {
                events::worked(Stage::Infer, spent);
                let total = earlier.total + ms(self.origin.received.elapsed());
                let timing = Timing { infer: ms(spent), total, ..timing };
                let origin = self.origin.clone();
                Some(Outcome::Prediction(Box::new(prediction::of(
                    &self.catalogue,
                    &*model,
                    origin,
                    audio,
                    windows,
                    timing,
                ))))
            }
            Err((window, error)) => {
                let message = format!("window {window}: {error}");
                self.fail(Reject::new(Stage::Infer, RejectClass::ModelFailure, message).into())
            }
        }
    }

    /// Ends a track that failed; the next stage is told if it has blocks of it. `None` if it is cancelled.
    pub fn fail(&mut self, failure: Failure) -> Option<Outcome> {
        let Failure::Reject(reject) = failure else { return None };
        Some(Outcome::Reject { reject, last: self.stop() })
    }

    /// Ends a track that an earlier stage rejected, and that has its reject: only the next stage may have to know.
    pub fn stop(&mut self) -> Option<Block> {
        self.pending.pcm.clear();
        self.pending.windows.clear();
        (self.pending.blocks > 0).then(|| self.last_block(TrackEnd::Rejected))
    }

    /// What no block has yet.
    fn last_block(&mut self, end: TrackEnd) -> Block {
        let value = match self.catalogue.stages().last() {
            Stage::Decode => block::write_pcm(&self.pending.pcm),
            Stage::Features | Stage::Infer => self.features_value(&self.pending.windows),
        };
        self.block(value, Some(end))
    }

    fn features_value(&self, windows: &[Window]) -> Vec<u8> {
        let FeatureSpec::LogMel(mel) = &self.catalogue.manifest.features;
        let starts: Vec<u64> = windows.iter().map(|window| window.start_frame).collect();
        let values: Vec<f32> = windows.iter().flat_map(|window| &window.values).copied().collect();
        block::write_features(&values, &starts, self.catalogue.manifest.windows.frames, mel.bands)
    }

    fn block(&mut self, value: Vec<u8>, end: Option<TrackEnd>) -> Block {
        let track = BlockTrack {
            id: self.origin.id.clone(),
            source: self.origin.source.clone(),
            front_end: self.catalogue.front_end(self.catalogue.stages().last()),
            end,
        };
        let index = self.pending.blocks;
        self.pending.blocks += 1;
        Block { head: BlockHead { index, track }, value }
    }
}

pub(crate) fn ms(duration: Duration) -> f64 {
    // Microseconds are as fine as anyone reads.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
