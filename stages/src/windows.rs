//! Frames of features → windows, the model's input.

use tonearm_schemas::manifest::{Short, Tail, WindowSpec};
use tonearm_schemas::reject::{Reject, RejectClass, Stage};

/// One input of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// The window's first frame, counted from the track's.
    pub start_frame: u64,
    /// `[frames × bands]`, row by row.
    pub values: Vec<f32>,
}

/// Cuts the frames of one track into windows, piece by piece. Keeps less than one window.
pub struct Windows {
    spec: WindowSpec,
    bands: usize,
    seconds_per_frame: f64,
    /// The next window as far as it is known.
    values: Vec<f32>,
    start_frame: u64,
}

impl Windows {
    /// `seconds_per_frame` is for messages only.
    pub fn new(spec: &WindowSpec, bands: usize, seconds_per_frame: f64) -> Self {
        let values = Vec::with_capacity(spec.frames * bands);
        Self { spec: spec.clone(), bands, seconds_per_frame, values, start_frame: 0 }
    }

    /// Takes the next `frames: [n × bands]` and appends the windows they complete to `out`.
    pub fn push(&mut self, mut frames: &[f32], out: &mut Vec<Window>) {
        let whole = self.spec.frames * self.bands;
        while !frames.is_empty() {
            let (now, later) = frames.split_at(frames.len().min(whole - self.values.len()));
            self.values.extend_from_slice(now);
            frames = later;
            if self.values.len() == whole {
                out.push(self.take());
            }
        }
    }

    /// Whether no window is whole yet: a track that ends here is shorter than one window.
    pub fn is_short(&self) -> bool {
        self.start_frame == 0
    }

    /// Frames that must follow a track that ends here, so that its last window is whole; 0 if the rest is dropped.
    ///
    /// # Errors
    /// The track is shorter than one window, and the manifest rejects such tracks.
    pub fn missing(&self) -> Result<usize, Reject> {
        let WindowSpec { frames, hop, tail, short } = self.spec;
        let known = self.values.len() / self.bands;
        let missing = frames - known;
        if self.is_short() {
            return if short == Short::Pad { Ok(missing) } else { Err(self.too_short(known)) };
        }
        // With overlap the first `frames - hop` of them are in the last window already: only more need another.
        let in_no_window = known - (frames - hop);
        Ok(if tail == Tail::Pad && in_no_window > 0 { missing } else { 0 })
    }

    /// The window, which is whole; what the next shares with it stays.
    fn take(&mut self) -> Window {
        let shared = self.values[self.spec.hop * self.bands..].to_vec();
        let values = std::mem::replace(&mut self.values, shared);
        let start_frame = self.start_frame;
        self.start_frame += self.spec.hop as u64;
        Window { start_frame, values }
    }

    fn too_short(&self, found: usize) -> Reject {
        let needed = self.spec.frames;
        let seconds = |frames: usize| frames as f64 * self.seconds_per_frame;
        let message = format!(
            "the track has {found} frames of features ({:.2} s), the model needs {needed} ({:.2} s)",
            seconds(found),
            seconds(needed)
        );
        Reject::new(Stage::Features, RejectClass::TooShort, message)
    }
}
