//! WAV: RIFF, RIFX (big-endian), RF64 and BW64 with uncompressed samples.

use std::borrow::Cow;

use super::{
    Codec, Fault, Opened, Packet, Source, corrupt,
    fields::Fields,
    pcm::{Pcm, Sample},
    unsupported,
};

/// Frames in one piece.
const PIECE_FRAMES: usize = 4096;
/// Writers into a pipe cannot go back to fill in the length: 0 and all ones (ffmpeg), 0x7FFFF000 and above (sox).
pub const UNKNOWN_LENGTH: u32 = 0x7FFF_F000;

pub fn open(bytes: &[u8]) -> Result<Opened<'_>, Fault> {
    let big_endian = bytes.starts_with(b"RIFX");
    let is_64 = bytes.starts_with(b"RF64") || bytes.starts_with(b"BW64");
    let u32_at = |at| if big_endian { bytes.be32(at) } else { bytes.le32(at) };
    let mut at = 12;
    let mut size_64 = None;
    let mut format = None;
    while let (Some(id), Some(size)) = (bytes.array::<4>(at), u32_at(at + 4)) {
        let body = at + 8;
        match &id {
            b"ds64" if is_64 => size_64 = bytes.le64(body + 8),
            b"fmt " if format.is_none() => {
                let end = body.saturating_add(size as usize).min(bytes.len());
                format = Some(read_format(&bytes[body..end], big_endian)?);
            }
            b"data" => {
                let Some((pcm, sample_rate_hz)) = format else {
                    return Err(corrupt("WAV has no 'fmt ' chunk before its 'data' chunk"));
                };
                let left = bytes.len() - body.min(bytes.len());
                let declared = match (is_64, size_64, size) {
                    (true, Some(size), _) => Some(size),
                    (_, _, 0) => None,
                    (_, _, size) if size >= UNKNOWN_LENGTH && size as usize > left => None,
                    (_, _, size) => Some(u64::from(size)),
                };
                let data = bytes.get(body..).unwrap_or(&[]);
                return Ok(Opened {
                    codec_name: pcm.codec(),
                    sample_rate_hz,
                    channels: pcm.channels as u32,
                    codec: Codec::Pcm(pcm),
                    source: Box::new(Blocks::new("WAV 'data' chunk", data, declared, pcm)?),
                    declared_frames: None,
                });
            }
            _ => {}
        }
        // Chunks are padded to even lengths.
        at = body.saturating_add(size as usize).saturating_add(size as usize & 1);
    }
    Err(corrupt(format!("WAV of {} bytes ends before its 'data' chunk", bytes.len())))
}

/// The `fmt ` chunk: WAVEFORMATEX or WAVEFORMATEXTENSIBLE.
fn read_format(chunk: &[u8], big_endian: bool) -> Result<(Pcm, u32), Fault> {
    let u16_at = |at| if big_endian { chunk.be16(at) } else { chunk.le16(at) };
    let u32_at = |at| if big_endian { chunk.be32(at) } else { chunk.le32(at) };
    let (Some(mut tag), Some(channels), Some(rate), Some(align)) = (u16_at(0), u16_at(2), u32_at(4), u16_at(12)) else {
        return Err(corrupt(format!("WAV 'fmt ' chunk has {} bytes, 14 are the least", chunk.len())));
    };
    let bits = u16_at(14).unwrap_or(8);
    if tag == 0xFFFE {
        // The sub-format GUID starts with the tag.
        tag = u16_at(24).ok_or_else(|| corrupt("WAV 'fmt ' chunk ends within its sub-format"))?;
    }
    let channels = super::check_channels("WAV", channels.into())?;
    super::check_rate("WAV", rate)?;
    // The container of a sample: 24 valid bits may stand in 32.
    let bytes = match usize::from(align) {
        0 => usize::from(bits.div_ceil(8)),
        align if align % channels == 0 => align / channels,
        align => return Err(corrupt(format!("WAV block of {align} bytes does not hold {channels} channels"))),
    };
    if usize::from(bits) > bytes * 8 {
        return Err(corrupt(format!("WAV has samples of {bits} bits in {bytes} bytes")));
    }
    let sample = match (tag, bytes) {
        (1, 1) => Sample::U8,
        (1, _) => Sample::signed(bytes)?,
        (3, 4) => Sample::F32,
        (3, 8) => Sample::F64,
        (6, 1) => Sample::ALaw,
        (7, 1) => Sample::MuLaw,
        _ => {
            let name = match tag {
                1 | 3 | 6 | 7 => "samples of this size",
                2 => "Microsoft ADPCM",
                0x11 => "IMA ADPCM",
                0x31 => "GSM 6.10",
                0x50 => "MPEG audio Layer II",
                0x55 => "MP3",
                0x160..=0x163 => "Windows Media Audio",
                0xFF | 0x1600..=0x1610 => "AAC",
                0x2000 | 0x92 => "AC-3",
                _ => "an unknown codec",
            };
            return Err(unsupported(format!(
                "WAV holds {name} (format tag {tag:#06x}, {bits} bits); PCM, float, A-law and µ-law are decoded"
            )));
        }
    };
    Ok((Pcm { sample, big_endian, channels }, rate))
}

/// A run of whole frames, given in pieces.
pub struct Blocks<'a> {
    data: &'a [u8],
    piece_bytes: usize,
}

impl<'a> Blocks<'a> {
    /// `declared`: the length in bytes that the container states, if it does.
    pub fn new(what: &str, data: &'a [u8], declared: Option<u64>, pcm: Pcm) -> Result<Self, Fault> {
        let frame = pcm.frame_bytes();
        let found = data.len() / frame;
        let frames = match declared {
            Some(declared) if declared / frame as u64 > found as u64 => {
                let declared = declared / frame as u64;
                return Err(corrupt(format!("{what} is cut short: {declared} frames are declared, {found} are there")));
            }
            Some(declared) => declared as usize / frame,
            None => found,
        };
        Ok(Self { data: &data[..frames * frame], piece_bytes: PIECE_FRAMES * frame })
    }
}

impl<'a> Source<'a> for Blocks<'a> {
    fn next(&mut self) -> Result<Option<Packet<'a>>, Fault> {
        if self.data.is_empty() {
            return Ok(None);
        }
        let (piece, rest) = self.data.split_at(self.piece_bytes.min(self.data.len()));
        self.data = rest;
        Ok(Some(Packet::of(Cow::Borrowed(piece))))
    }
}
