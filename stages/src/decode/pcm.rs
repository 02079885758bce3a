//! Uncompressed samples, interleaved → mono f32.

use super::{Fault, unsupported};

/// How one sample of one channel is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    U8,
    S8,
    S16,
    S24,
    S32,
    F32,
    F64,
    MuLaw,
    ALaw,
}

impl Sample {
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::S8 | Self::MuLaw | Self::ALaw => 1,
            Self::S16 => 2,
            Self::S24 => 3,
            Self::S32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Signed integers of 1 to 4 bytes.
    pub fn signed(bytes: usize) -> Result<Self, Fault> {
        match bytes {
            1 => Ok(Self::S8),
            2 => Ok(Self::S16),
            3 => Ok(Self::S24),
            4 => Ok(Self::S32),
            _ => Err(unsupported(format!("PCM samples of {bytes} bytes are not decoded (1 to 4 are)"))),
        }
    }
}

/// Interleaved samples of `channels` channels.
#[derive(Clone, Copy, Debug)]
pub struct Pcm {
    pub sample: Sample,
    pub big_endian: bool,
    pub channels: usize,
}

impl Pcm {
    pub fn frame_bytes(&self) -> usize {
        self.sample.bytes() * self.channels
    }

    /// ffmpeg's name.
    pub fn codec(&self) -> String {
        let end = if self.big_endian { "be" } else { "le" };
        match self.sample {
            Sample::U8 => "pcm_u8".into(),
            Sample::S8 => "pcm_s8".into(),
            Sample::S16 => format!("pcm_s16{end}"),
            Sample::S24 => format!("pcm_s24{end}"),
            Sample::S32 => format!("pcm_s32{end}"),
            Sample::F32 => format!("pcm_f32{end}"),
            Sample::F64 => format!("pcm_f64{end}"),
            Sample::MuLaw => "pcm_mulaw".into(),
            Sample::ALaw => "pcm_alaw".into(),
        }
    }

    /// Appends the mean over channels of whole frames. Integers become x / 2^(bits − 1).
    pub fn append(&self, data: &[u8], mono: &mut Vec<f32>) -> usize {
        let before = mono.len();
        match (self.sample, self.big_endian) {
            (Sample::U8, _) => self.mean::<1>(data, mono, |[b]| (f32::from(b) - 128.0) / 128.0),
            (Sample::S8, _) => self.mean::<1>(data, mono, |b| f32::from(i8::from_ne_bytes(b)) / 128.0),
            (Sample::S16, false) => self.mean(data, mono, |b| f32::from(i16::from_le_bytes(b)) / 32768.0),
            (Sample::S16, true) => self.mean(data, mono, |b| f32::from(i16::from_be_bytes(b)) / 32768.0),
            (Sample::S24, false) => self.mean(data, mono, |[a, b, c]| from_i32(i32::from_le_bytes([0, a, b, c]))),
            (Sample::S24, true) => self.mean(data, mono, |[a, b, c]| from_i32(i32::from_be_bytes([a, b, c, 0]))),
            (Sample::S32, false) => self.mean(data, mono, |b| from_i32(i32::from_le_bytes(b))),
            (Sample::S32, true) => self.mean(data, mono, |b| from_i32(i32::from_be_bytes(b))),
            (Sample::F32, false) => self.mean(data, mono, f32::from_le_bytes),
            (Sample::F32, true) => self.mean(data, mono, f32::from_be_bytes),
            (Sample::F64, false) => self.mean(data, mono, |b| f64::from_le_bytes(b) as f32),
            (Sample::F64, true) => self.mean(data, mono, |b| f64::from_be_bytes(b) as f32),
            (Sample::MuLaw, _) => self.mean::<1>(data, mono, |[b]| f32::from(mu_law(b)) / 32768.0),
            (Sample::ALaw, _) => self.mean::<1>(data, mono, |[b]| f32::from(a_law(b)) / 32768.0),
        }
        mono.len() - before
    }

    fn mean<const N: usize>(&self, data: &[u8], mono: &mut Vec<f32>, value: impl Fn([u8; N]) -> f32) {
        let (samples, _) = data.as_chunks::<N>();
        match self.channels {
            1 => mono.extend(samples.iter().map(|&s| value(s))),
            2 => mono.extend(samples.as_chunks::<2>().0.iter().map(|&[l, r]| (value(l) + value(r)) / 2.0)),
            channels => mono.extend(
                samples
                    .chunks_exact(channels)
                    .map(|frame| frame.iter().fold(0.0, |sum, &s| sum + value(s)) / channels as f32),
            ),
        }
    }
}

fn from_i32(x: i32) -> f32 {
    x as f32 / 2_147_483_648.0
}

/// ITU-T G.711, table 2b, at 16 bits.
fn mu_law(byte: u8) -> i16 {
    let byte = !byte;
    let magnitude = ((i16::from(byte & 0x0F) << 3) + 0x84) << (byte >> 4 & 7);
    if byte & 0x80 != 0 { 0x84 - magnitude } else { magnitude - 0x84 }
}

/// ITU-T G.711, table 1b, at 16 bits.
fn a_law(byte: u8) -> i16 {
    let byte = byte ^ 0x55;
    let (step, exponent) = (i16::from(byte & 0x0F), byte >> 4 & 7);
    let magnitude = match exponent {
        0 => (step << 4) + 8,
        _ => ((step << 4) + 0x108) << (exponent - 1),
    };
    if byte & 0x80 != 0 { magnitude } else { -magnitude }
}
