//! Rates without a short common unit of time.
//!
//! Blocks filter the track and bring it to a rate that is a power of two times its own, two to four times the lower
//! rate of the pair. The output's samples lie anywhere between those, and are read with rubato's interpolator. Nothing
//! is left above half the lower rate, and the images begin at one and a half times the lower rate at least: a sinc of
//! 32 samples is long enough to be flat below and silent above.

use std::sync::LazyLock;

use rubato::{
    WindowFunction,
    sinc_interpolator::{AnyInterpolator, SincInterpolator, make_interpolator},
};

use super::blocks::{Blocks, Rates};

/// Samples that one between them is made of. The sidelobes of the window, BlackmanHarris2, are below -180 dB, and its
/// transition ±8 / `TAPS` of the rate: from a quarter of the rate to three quarters.
const TAPS: usize = 32;
/// Places between two samples for which rubato has the sinc. What lies between two places is on the line between their
/// values: at a quarter of the rate, (π / 2 / `PLACES`)² / 8 = 3e-7 off, -130 dB.
const PLACES: usize = 1024;
/// Samples for the blocks at a time, so that those waiting to be read are few.
const PIECE: usize = 1 << 14;

/// The same for all rates. In f32 its gain would be off by 3e-5.
static SINC: LazyLock<AnyInterpolator<f64>> =
    LazyLock::new(|| make_interpolator(TAPS, 1.0, Some(1.0), PLACES, WindowFunction::BlackmanHarris2));

pub struct Between {
    blocks: Blocks,
    /// What the blocks have just given.
    fresh: Vec<f32>,
    /// Of the higher rate, from half a sinc before the next output sample on.
    samples: Vec<f64>,
    next: Position,
    step: Position,
    /// Parts of a place: positions are exact however long the track is.
    parts: u64,
}

/// A time in `samples`.
#[derive(Clone, Copy)]
struct Position {
    /// Whole places: sample × `PLACES` + place.
    place: usize,
    /// Parts of a place beyond, fewer than a whole one has.
    part: u64,
}

impl Between {
    pub fn new(in_hz: u32, out_hz: u32) -> Self {
        let low_hz = in_hz.min(out_hz);
        let (unit_in, unit_out) = match in_hz / (2 * low_hz) {
            0 => (1, 2),
            times => (1 << times.ilog2(), 1),
        };
        let parts = u64::from(out_hz) * unit_in;
        let step = u64::from(in_hz) * unit_out * PLACES as u64;
        let rates = Rates {
            unit_in: unit_in as usize,
            unit_out: unit_out as usize,
            in_per_low: f64::from(in_hz) / f64::from(low_hz),
        };
        Self {
            blocks: Blocks::new(&rates, TAPS / 2),
            fresh: Vec::new(),
            samples: Vec::new(),
            // rubato counts places from one behind the sample: its last is the sample after.
            next: Position { place: PLACES - 1, part: 0 },
            step: Position { place: (step / parts) as usize, part: step % parts },
            parts,
        }
    }

    pub fn push(&mut self, mono: &[f32], out: &mut Vec<f32>) {
        for piece in mono.chunks(PIECE) {
            self.blocks.push(piece, &mut self.fresh);
            self.read(out);
        }
    }

    pub fn push_silence(&mut self, out: &mut Vec<f32>) {
        self.blocks.push_silence(&mut self.fresh);
        self.read(out);
    }

    fn read(&mut self, out: &mut Vec<f32>) {
        self.samples.extend(self.fresh.drain(..).map(f64::from));
        let sinc = &*SINC;
        let at = |place| sinc.get_sinc_interpolated(&self.samples, place / PLACES, place % PLACES);
        let places = self.samples.len().saturating_sub(TAPS) * PLACES;
        while self.next.place + 1 < places {
            let (before, behind) = (at(self.next.place), at(self.next.place + 1));
            let part = self.next.part as f64 / self.parts as f64;
            out.push((before + (behind - before) * part) as f32);
            self.next.place += self.step.place;
            self.next.part += self.step.part;
            if self.next.part >= self.parts {
                self.next.part -= self.parts;
                self.next.place += 1;
            }
        }
        let read = self.next.place / PLACES;
        self.samples.drain(..read);
        self.next.place -= read * PLACES;
    }
}
