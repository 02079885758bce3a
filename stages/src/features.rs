//! PCM at the model's rate → windows of features: the whole front end of a manifest, behind the resampler.

use tonearm_schemas::manifest::{FeatureSpec, Manifest};
use tonearm_schemas::reject::Reject;

use crate::spectrogram::LogMel;
use crate::windows::{Window, Windows};

/// Samples turned into frames at a time, so that the frames of a long piece are never all in memory.
const PIECE: usize = 16_384;

/// The features of one track, piece by piece.
pub struct Features {
    log_mel: LogMel,
    windows: Windows,
    /// Frames on their way from the one to the other, `[n × bands]`.
    frames: Vec<f32>,
}

impl Features {
    pub fn new(manifest: &Manifest) -> Self {
        let FeatureSpec::LogMel(spec) = &manifest.features;
        Self {
            log_mel: LogMel::new(spec, manifest.audio.sample_rate_hz),
            windows: Windows::new(&manifest.windows, spec.bands, manifest.seconds_per_frame()),
            frames: Vec::new(),
        }
    }

    /// Takes the next samples, mono at the model's rate, and appends the windows they complete to `out`.
    pub fn push(&mut self, samples: &[f32], out: &mut Vec<Window>) {
        for piece in samples.chunks(PIECE) {
            self.log_mel.push(piece, &mut self.frames);
            self.windows.push(&self.frames, out);
            self.frames.clear();
        }
    }

    /// Ends the track, and lets it go on in silence if the manifest fills its last window up.
    ///
    /// Returns `true` if the whole track was shorter than one window and was filled up. It is the PCM that is filled
    /// up, not the frames: the first frame behind a track still sees its end, and the logarithm of silence is not 0
    /// unless the manifest's offset is 1.
    ///
    /// # Errors
    /// The track is shorter than the manifest accepts.
    pub fn finish(mut self, out: &mut Vec<Window>) -> Result<bool, Reject> {
        self.log_mel.finish(&mut self.frames);
        self.windows.push(&self.frames, out);
        self.frames.clear();
        let padded = self.windows.is_short();
        self.log_mel.silence(self.windows.missing()?, &mut self.frames);
        self.windows.push(&self.frames, out);
        Ok(padded)
    }
}
