//! FLAC (RFC 9639): STREAMINFO, and frames found by their checksums in a native file, or given whole by Ogg and MP4.

use std::borrow::Cow;

use symphonia::core::{
    checksum::{Crc8Ccitt, Crc16Ansi},
    codecs::audio::well_known::CODEC_ID_FLAC,
    io::Monitor,
};

use super::{
    Codec, Fault, Opened, Packet, Source, check_rate, corrupt,
    fields::{Bits, Fields},
    tags, unsupported,
    wav::UNKNOWN_LENGTH,
};

/// What STREAMINFO says (RFC 9639 §8.2).
#[derive(Clone, Copy, Debug)]
pub struct StreamInfo {
    pub sample_rate_hz: u32,
    pub channels: u32,
    bits: u32,
    /// Frames of the whole stream, if the encoder knew.
    pub frames: Option<u64>,
}

/// Bytes of a STREAMINFO block.
pub const STREAM_INFO_BYTES: usize = 34;

impl StreamInfo {
    pub fn read(block: &[u8]) -> Result<Self, Fault> {
        let word = block.be64(10).filter(|_| block.len() >= STREAM_INFO_BYTES).ok_or_else(|| {
            corrupt(format!("FLAC STREAMINFO has {} bytes instead of {STREAM_INFO_BYTES}", block.len()))
        })?;
        let (channels, bits) = ((word >> 41 & 7) + 1, (word >> 36 & 31) + 1);
        let frames = word & 0xF_FFFF_FFFF;
        // An encoder that read WAV from a pipe wrote down the length that such WAV makes up: 2 GiB or 4 GiB.
        let is_made_up = frames * channels * bits.div_ceil(8) >= u64::from(UNKNOWN_LENGTH);
        let info = Self {
            sample_rate_hz: (word >> 44) as u32,
            channels: channels as u32,
            bits: bits as u32,
            frames: Some(frames).filter(|&frames| frames > 0 && !is_made_up),
        };
        check_rate("FLAC", info.sample_rate_hz)?;
        if !(8..=24).contains(&info.bits) {
            return Err(unsupported(format!("FLAC of {} bits is not decoded; 8 to 24 are", info.bits)));
        }
        Ok(info)
    }

    pub fn codec(&self, block: &[u8]) -> Result<Codec, Fault> {
        Codec::symphonia(CODEC_ID_FLAC, self.sample_rate_hz, self.channels, Some(&block[..STREAM_INFO_BYTES]))
    }
}

/// What a frame's header says (RFC 9639 §9.1). `None` in a field: as STREAMINFO says.
struct Header {
    sample_rate_hz: Option<u32>,
    channels: u32,
    bits: Option<u32>,
    variable: bool,
}

fn header(bytes: &[u8], at: usize) -> Option<Header> {
    let rest = bytes.get(at..bytes.len().min(at + 16))?;
    let mut bits = Bits::new(rest);
    if bits.read(15) != 0b111_1111_1111_1100 {
        return None;
    }
    let variable = bits.read(1) == 1;
    let (block, rate, assignment, size) = (bits.read(4), bits.read(4), bits.read(4), bits.read(3));
    if block == 0 || rate == 15 || assignment > 10 || size == 3 || bits.read(1) == 1 {
        return None;
    }
    // The frame or sample number: UTF-8 extended to 36 bits.
    let more = match rest.get(4)?.leading_ones() {
        0 => 0,
        ones @ 2..=7 => ones as usize - 1,
        _ => return None,
    };
    let mut end = 5 + more;
    end += match block {
        6 => 1,
        7 => 2,
        _ => 0,
    };
    let rate_bytes = match rate {
        12 => 1,
        13 | 14 => 2,
        _ => 0,
    };
    let sample_rate_hz = match rate {
        0 => None,
        1..=11 => Some(
            [88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000]
                [rate as usize - 1],
        ),
        12 => Some(u32::from(rest.u8(end)?) * 1000),
        13 => Some(rest.be16(end)?.into()),
        _ => Some(u32::from(rest.be16(end)?) * 10),
    };
    end += rate_bytes;
    let mut crc = Crc8Ccitt::new(0);
    crc.process_buf_bytes(rest.get(..end)?);
    (crc.crc() == rest.u8(end)?).then_some(Header {
        sample_rate_hz,
        channels: if assignment < 8 { assignment + 1 } else { 2 },
        bits: [None, Some(8), Some(12), None, Some(16), Some(20), Some(24), Some(32)][size as usize],
        variable,
    })
}

impl StreamInfo {
    /// Refuses a frame that is not of this stream's form.
    fn check(&self, this: &Header) -> Result<(), Fault> {
        let is = (this.sample_rate_hz.unwrap_or(self.sample_rate_hz), this.channels, this.bits.unwrap_or(self.bits));
        let was = (self.sample_rate_hz, self.channels, self.bits);
        if is == was {
            return Ok(());
        }
        let words = |(rate, channels, bits)| format!("{rate} Hz, {channels} channels, {bits} bits");
        Err(corrupt(format!("FLAC has a frame of {} in a stream of {}", words(is), words(was))))
    }

    /// Checks a frame that a container gives whole.
    pub fn check_frame(&self, frame: &[u8]) -> Result<(), Fault> {
        let this = header(frame, 0).ok_or_else(|| corrupt("FLAC has a frame with a broken header"))?;
        self.check(&this)?;
        let mut crc = Crc16Ansi::new(0);
        crc.process_buf_bytes(frame);
        if crc.crc() != 0 {
            return Err(corrupt("FLAC has a frame with a wrong checksum"));
        }
        Ok(())
    }
}

/// A native FLAC file, from its `fLaC` mark on.
pub fn open(bytes: &[u8], at: usize) -> Result<Opened<'_>, Fault> {
    let audio = &bytes[..tags::skip_trailing(bytes).max(at)];
    let mut at = at + 4;
    let mut stream_info = None;
    loop {
        let Some(head) = audio.be32(at) else {
            return Err(corrupt("FLAC is cut short within its metadata"));
        };
        let start = at + 4;
        at = start + (head & 0xFF_FFFF) as usize;
        if head >> 24 & 0x7F == 0 && stream_info.is_none() {
            stream_info = audio.get(start..at);
        }
        if head >> 31 == 1 {
            break;
        }
    }
    let block = stream_info.ok_or_else(|| corrupt("FLAC has no whole STREAMINFO block"))?;
    let info = StreamInfo::read(block)?;
    Ok(Opened {
        codec_name: "flac".into(),
        sample_rate_hz: info.sample_rate_hz,
        channels: info.channels,
        codec: info.codec(block)?,
        source: Box::new(Frames { audio: audio.get(at..).unwrap_or(&[]), info }),
        declared_frames: info.frames,
    })
}

struct Frames<'a> {
    audio: &'a [u8],
    info: StreamInfo,
}

impl<'a> Source<'a> for Frames<'a> {
    /// A frame ends where its CRC-16 comes out as 0 and the next frame's header, with its CRC-8, or nothing follows.
    fn next(&mut self) -> Result<Option<Packet<'a>>, Fault> {
        if self.audio.is_empty() {
            return Ok(None);
        }
        let this = header(self.audio, 0).ok_or_else(|| corrupt("FLAC has bytes that are no frame"))?;
        self.info.check(&this)?;
        let mut crc = Crc16Ansi::new(0);
        let mut checked = 0;
        let mut at = 2;
        let end = loop {
            let sync = self.audio[at..].iter().position(|&b| b == 0xFF).map(|found| at + found);
            let next = sync.unwrap_or(self.audio.len());
            let is_end = sync.is_none() || header(self.audio, next).is_some_and(|next| next.variable == this.variable);
            if is_end {
                crc.process_buf_bytes(&self.audio[checked..next]);
                checked = next;
                if crc.crc() == 0 {
                    break next;
                }
            }
            if sync.is_none() {
                return Err(corrupt("FLAC has a frame that is cut short or has a wrong checksum"));
            }
            at = next + 1;
        };
        let (frame, rest) = self.audio.split_at(end);
        self.audio = rest;
        Ok(Some(Packet::of(Cow::Borrowed(frame))))
    }
}
