//! AAC: which forms are decoded (Low Complexity, one or two channels, 1024 samples), and the ADTS stream of frames
//! (ISO 13818-7 §6.2).

use std::borrow::Cow;

use symphonia::core::codecs::audio::well_known::CODEC_ID_AAC;

use super::{
    Codec, Fault, Opened, Packet, Source, corrupt,
    fields::{Bits, Fields},
    tags, unsupported,
};

/// How far into the bytes the first frame may start, after ID3v2 tags.
const MAX_LEADING_JUNK: usize = 64 * 1024;

/// ISO 14496-3 table 1.18.
const RATES_HZ: [u32; 13] =
    [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350];
/// Blocks looked at to find SBR that no header tells of. HE-AAC carries it in every block.
const SBR_PROBE_BLOCKS: usize = 16;

/// Which AAC an AudioSpecificConfig describes (ISO 14496-3 §1.6.2.1).
pub struct Config {
    pub sample_rate_hz: u32,
    pub channels: u32,
}

impl Config {
    /// The configuration, if it is one that is decoded right.
    pub fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let mut bits = Bits::new(bytes);
        let object = object_type(&mut bits);
        let sample_rate_hz = sample_rate(&mut bits)?;
        let channel_config = bits.read(4);
        match object {
            2 => {}
            5 => return Err(unsupported("HE-AAC (SBR) is not decoded: its upper band would be missing; AAC-LC is")),
            29 => return Err(unsupported("HE-AAC v2 (SBR and PS) is not decoded; AAC-LC is")),
            42 => return Err(unsupported("xHE-AAC (USAC) is not decoded; AAC-LC is")),
            object => return Err(unsupported(format!("AAC of object type {object} is not decoded; 2, AAC-LC, is"))),
        }
        if bits.read(1) == 1 {
            return Err(unsupported("AAC with 960 samples in a frame is not decoded; 1024 are"));
        }
        let channels = channels(channel_config)?;
        if bits.read(1) == 1 {
            bits.read(14);
        }
        bits.read(1);
        if bits.overrun() {
            return Err(corrupt(format!("AAC configuration of {} bytes is cut short", bytes.len())));
        }
        // Backward compatible signalling of SBR.
        if bits.left() >= 16 && bits.read(11) == 0x2B7 && object_type(&mut bits) == 5 && bits.read(1) == 1 {
            return Err(unsupported("HE-AAC (SBR) is not decoded: its upper band would be missing; AAC-LC is"));
        }
        Ok(Self { sample_rate_hz, channels })
    }
}

fn object_type(bits: &mut Bits<'_>) -> u32 {
    match bits.read(5) {
        31 => 32 + bits.read(6),
        object => object,
    }
}

fn sample_rate(bits: &mut Bits<'_>) -> Result<u32, Fault> {
    match bits.read(4) {
        15 => Ok(bits.read(24)),
        index => rate(index),
    }
}

fn rate(index: u32) -> Result<u32, Fault> {
    RATES_HZ
        .get(index as usize)
        .copied()
        .ok_or_else(|| corrupt(format!("AAC has sample rate index {index}, 0 to 12 are defined")))
}

fn channels(config: u32) -> Result<u32, Fault> {
    match config {
        1 | 2 => Ok(config),
        0 => Err(unsupported("AAC with its own channel table (program config) is not decoded; mono and stereo are")),
        config => {
            let count = if config == 7 { 8 } else { config };
            Err(unsupported(format!("AAC with {count} channels is not decoded; 1 and 2 are")))
        }
    }
}

/// Whether the first blocks end in SBR payloads, which only HE-AAC has. A block may look so by chance; most do not.
pub fn carry_sbr<'a>(blocks: impl Iterator<Item = &'a [u8]>) -> bool {
    let (seen, with_sbr) = blocks
        .filter(|block| has_audio(block))
        .take(SBR_PROBE_BLOCKS)
        .fold((0, 0), |(seen, with_sbr), block| (seen + 1, with_sbr + usize::from(ends_in_sbr(block))));
    seen > 0 && with_sbr * 4 >= seen * 3
}

/// Fill elements stand last in a raw data block, so they are found from its end: `… ID_FIL count payload ID_END pad`.
/// (What stands before them cannot be skipped without decoding it.)
fn ends_in_sbr(block: &[u8]) -> bool {
    let bits = block.len() * 8;
    // ID_END, then up to 7 zero bits.
    let is_end = |&end: &usize| field(block, end, 3) == 0b111 && (end + 3..bits).all(|at| field(block, at, 1) == 0);
    let mut ends: Vec<usize> = (3..=10.min(bits)).map(|back| bits - back).filter(is_end).collect();
    // Padding in fill elements of its own may follow the SBR payload.
    for _ in 0..4 {
        let mut before = Vec::new();
        for end in ends {
            for count in 0..=14 + 255 {
                let head = if count < 15 { 7 } else { 15 };
                let Some(start) = end.checked_sub(count * 8 + head) else { break };
                let is_fill = field(block, start, 3) == 0b110
                    && match count {
                        0..15 => field(block, start + 3, 4) == count as u32,
                        _ => field(block, start + 3, 4) == 15 && field(block, start + 7, 8) == count as u32 - 14,
                    };
                // EXT_SBR_DATA, EXT_SBR_DATA_CRC.
                if is_fill && count > 0 && matches!(field(block, start + head, 4), 0b1101 | 0b1110) {
                    return true;
                }
                if is_fill {
                    before.push(start);
                }
            }
        }
        ends = before;
    }
    false
}

/// Bits of a block from bit `at` on; past the end they read as zero.
fn field(block: &[u8], at: usize, count: usize) -> u32 {
    let bit = |at: usize| block.get(at / 8).map_or(0, |byte| u32::from(byte >> (7 - at % 8) & 1));
    (at..at + count).fold(0, |value, at| value << 1 | bit(at))
}

/// Frames that ffmpeg leaves out because of what this block says: faac signs its first one in a fill element.
pub fn faac_delay(block: &[u8]) -> Option<u32> {
    // ID_FIL, its count, EXT_FILL and 13 bits come before the text.
    let head = if field(block, 3, 4) == 15 { 4 } else { 3 };
    let signed = field(block, 0, 3) == 6 && block.get(head..).is_some_and(|text| text.starts_with(b"libfaac "));
    signed.then_some(1024)
}

/// Whether a raw data block holds channels at all. One that does not gives no frames in ffmpeg.
pub fn has_audio(block: &[u8]) -> bool {
    let mut at = 0;
    while at + 3 <= block.len() * 8 {
        let element = field(block, at, 3);
        match element {
            // ID_DSE: tag (4), align (1), count (8), escape (8).
            4 => {
                let align = field(block, at + 7, 1) == 1;
                let mut count = field(block, at + 8, 8) as usize;
                at += 16;
                if count == 255 {
                    count += field(block, at, 8) as usize;
                    at += 8;
                }
                at = if align { at.next_multiple_of(8) } else { at } + count * 8;
            }
            // ID_FIL: count (4), escape (8).
            6 => {
                let mut count = field(block, at + 3, 4) as usize;
                at += 7;
                if count == 15 {
                    count += field(block, at, 8) as usize - usize::from(count > 0);
                    at += 8;
                }
                at += count * 8;
            }
            // ID_END.
            7 => return false,
            _ => return true,
        }
    }
    false
}

pub fn refuse_sbr() -> Fault {
    unsupported("HE-AAC (SBR within the stream) is not decoded: its upper band would be missing; AAC-LC is")
}

pub fn codec(sample_rate_hz: u32, channels: u32) -> Result<Codec, Fault> {
    Codec::symphonia(CODEC_ID_AAC, sample_rate_hz, channels, None)
}

/// An ADTS frame's header.
#[derive(Clone, Copy, PartialEq)]
struct Header {
    profile: u32,
    rate_index: u32,
    channel_config: u32,
    bytes: usize,
    header_bytes: usize,
    blocks: u32,
}

fn header(bytes: &[u8], at: usize) -> Option<Header> {
    let word = u64::from(bytes.be32(at)?) << 24 | u64::from(bytes.be32(at + 3)? & 0xFF_FFFF);
    let field = |from: u32, count: u32| (word >> (56 - from - count) & ((1 << count) - 1)) as u32;
    // 12 bits of sync, MPEG version, 2 bits of layer (always 0).
    if field(0, 12) != 0xFFF || field(13, 2) != 0 {
        return None;
    }
    let header_bytes = if field(15, 1) == 1 { 7 } else { 9 };
    let header = Header {
        profile: field(16, 2),
        rate_index: field(18, 4),
        channel_config: field(23, 3),
        bytes: field(30, 13) as usize,
        header_bytes,
        blocks: field(54, 2) + 1,
    };
    (header.bytes >= header_bytes && header.rate_index < 13).then_some(header)
}

/// Whether ADTS frames start at `at`: three in a row, or as many as there are.
pub fn is_adts(bytes: &[u8], at: usize) -> bool {
    run_of(bytes, at, 3)
}

/// Where the first frame starts after junk: five in a row, so that noise is not taken for music.
pub fn find(bytes: &[u8], from: usize) -> Option<usize> {
    let last = from.saturating_add(MAX_LEADING_JUNK).min(bytes.len());
    let has_next = |at| header(bytes, at).is_some_and(|first| at + first.bytes < bytes.len());
    (from..last).find(|&at| bytes[at] == 0xFF && has_next(at) && run_of(bytes, at, 5))
}

fn run_of(bytes: &[u8], mut at: usize, count: usize) -> bool {
    for frame in 0..count {
        match header(bytes, at) {
            Some(this) => at += this.bytes,
            None => return frame > 0 && at >= bytes.len(),
        }
    }
    true
}

pub fn open_adts(bytes: &[u8], at: usize) -> Result<Opened<'_>, Fault> {
    let audio = &bytes[..tags::skip_trailing(bytes).max(at)];
    let first = header(audio, at).ok_or_else(|| corrupt("ADTS is cut short within its first frame"))?;
    match first.profile {
        1 => {}
        profile => {
            let name = ["Main", "LC", "SSR", "LTP"][profile as usize];
            return Err(unsupported(format!("AAC of profile {name} is not decoded; LC is")));
        }
    }
    let sample_rate_hz = rate(first.rate_index)?;
    let channels = channels(first.channel_config)?;
    let frames = Frames { audio, at, first };
    let mut probe = Frames { audio, at, first };
    let blocks = std::iter::from_fn(|| probe.next_frame().ok().flatten());
    if carry_sbr(blocks) {
        return Err(refuse_sbr());
    }
    Ok(Opened {
        codec_name: "aac".into(),
        sample_rate_hz,
        channels,
        codec: codec(sample_rate_hz, channels)?,
        source: Box::new(frames),
        declared_frames: None,
    })
}

struct Frames<'a> {
    audio: &'a [u8],
    at: usize,
    first: Header,
}

impl<'a> Source<'a> for Frames<'a> {
    fn next(&mut self) -> Result<Option<Packet<'a>>, Fault> {
        loop {
            match self.next_frame()? {
                Some(frame) if !has_audio(frame) => continue,
                frame => {
                    return Ok(frame.map(|frame| Packet {
                        skip: faac_delay(frame).unwrap_or(0),
                        ..Packet::of(Cow::Borrowed(frame))
                    }));
                }
            }
        }
    }
}

impl<'a> Frames<'a> {
    /// The raw data block of the next frame.
    fn next_frame(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        loop {
            if self.at >= self.audio.len() {
                return Ok(None);
            }
            let Some(this) = header(self.audio, self.at) else {
                match tags::any(self.audio, self.at) {
                    Some(length) => self.at = self.at.saturating_add(length),
                    None => return self.junk(),
                }
                continue;
            };
            let same = |a: Header, b: Header| {
                (a.profile, a.rate_index, a.channel_config) == (b.profile, b.rate_index, b.channel_config)
            };
            if !same(this, self.first) {
                return Err(corrupt("ADTS changes profile, sample rate or channels within the stream"));
            }
            if this.blocks != 1 {
                return Err(unsupported(format!("ADTS frames of {} blocks are not decoded; of 1 are", this.blocks)));
            }
            let start = self.at;
            self.at += this.bytes;
            // No length is declared anywhere: a last frame that is cut off ends the stream.
            return Ok(self.audio.get(start + this.header_bytes..self.at));
        }
    }

    /// Junk at the end is tolerated; junk before more frames is damage.
    fn junk(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        let start = std::mem::replace(&mut self.at, self.audio.len());
        let more = (start..self.audio.len()).find(|&at| self.audio[at] == 0xFF && is_adts(self.audio, at));
        match more {
            Some(next) => Err(corrupt(format!("ADTS has {} bytes that are no frame at byte {start}", next - start))),
            None => Ok(None),
        }
    }
}
