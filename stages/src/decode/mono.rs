//! Planar samples of any format → mono f32.

use std::ops::Range;

use symphonia::core::audio::{Audio, AudioBuffer, GenericAudioBufferRef, conv::IntoSample, sample::Sample};

/// Appends the mean over channels of `frames` of `buffer`, −1..=1. Integers become x / 2^(bits − 1).
pub fn append(buffer: &GenericAudioBufferRef<'_>, frames: Range<usize>, mono: &mut Vec<f32>) -> usize {
    match buffer {
        GenericAudioBufferRef::F32(b) => mean(*b, frames, mono),
        GenericAudioBufferRef::S32(b) => mean(*b, frames, mono),
        GenericAudioBufferRef::S24(b) => mean(*b, frames, mono),
        GenericAudioBufferRef::S16(b) => mean(*b, frames, mono),
        GenericAudioBufferRef::S8(b) => mean(*b, frames, mono),
        GenericAudioBufferRef::U32(b) => mean(*b, frames, mono),
        GenericAudioBufferRef::U24(b) => mean(*b, frames, mono),
        GenericAudioBufferRef::U16(b) => mean(*b, frames, mono),
        GenericAudioBufferRef::U8(b) => mean(*b, frames, mono),
        GenericAudioBufferRef::F64(b) => mean(*b, frames, mono),
    }
}

/// The same of planes of floats, which have equal lengths.
pub fn append_planes(planes: &[Vec<f32>], frames: Range<usize>, mono: &mut Vec<f32>) {
    mean_of(planes.iter().map(Vec::as_slice), frames, mono);
}

fn mean<S: Sample + IntoSample<f32>>(buffer: &AudioBuffer<S>, frames: Range<usize>, mono: &mut Vec<f32>) -> usize {
    mean_of(buffer.iter_planes(), frames, mono)
}

fn mean_of<'a, S: Sample + IntoSample<f32> + 'a>(
    mut planes: impl Iterator<Item = &'a [S]>,
    frames: Range<usize>,
    mono: &mut Vec<f32>,
) -> usize {
    let start = mono.len();
    let Some(first) = planes.next() else { return 0 };
    mono.extend(first[frames.clone()].iter().map(|&s| s.into_sample()));
    let mut channels = 1.0f32;
    for plane in planes {
        channels += 1.0;
        for (sum, &s) in mono[start..].iter_mut().zip(&plane[frames.clone()]) {
            *sum += IntoSample::<f32>::into_sample(s);
        }
    }
    if channels > 1.0 {
        // Division, not a product with the reciprocal: the same rounding as a mean anywhere else.
        mono[start..].iter_mut().for_each(|sum| *sum /= channels);
    }
    mono.len() - start
}
