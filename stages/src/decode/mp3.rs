//! MPEG audio Layer III as a plain stream of frames (ISO 11172-3, 13818-3): where frames start, and which of the
//! decoded frames the encoder added. Delay and padding are those of ffmpeg's `mp3dec.c`.

use std::borrow::Cow;

use symphonia::core::codecs::audio::well_known::CODEC_ID_MP3;

use super::{Codec, Fault, Opened, Packet, Source, corrupt, fields::Fields, tags, unsupported};

/// Samples by which any Layer III decoder is late (528), and one more, as LAME counts them.
const DECODER_DELAY: i64 = 528 + 1;
/// How far into the bytes the first frame may start, after ID3v2 tags. ffmpeg's limit.
const MAX_LEADING_JUNK: usize = 64 * 1024;

/// Bits of a header that stay the same through a stream: sync, version, layer, sample rate.
const SAME_STREAM: u32 = 0xFFFE_0C00;
/// The same, and mode, copyright, original and emphasis: what ffmpeg wants of two neighbours before it trusts them.
const SAME_FRAMES: u32 = 0xFFFE_0CCF;

/// A frame's header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    word: u32,
    pub sample_rate_hz: u32,
    pub channels: u32,
    /// Bytes of the whole frame.
    bytes: usize,
    /// Frames of PCM that it decodes to.
    samples: u32,
    /// MPEG-2 and 2.5: half as many samples, shorter side information.
    low_rate: bool,
}

/// What a 32-bit word says as a frame header.
enum Word {
    Layer3(Header),
    OtherLayer(u32),
    FreeFormat,
    None,
}

fn word(bytes: &[u8], at: usize) -> Word {
    // ISO 11172-3 §2.4.2.3; kbit/s of MPEG-1, then of MPEG-2 and 2.5.
    const KBIT: [[usize; 15]; 2] = [
        [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
        [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
    ];
    let Some(word) = bytes.be32(at) else { return Word::None };
    let version = word >> 19 & 3;
    let layer = 4 - (word >> 17 & 3);
    let (rate, bitrate) = (word >> 10 & 3, (word >> 12 & 15) as usize);
    if word >> 21 != 0x7FF || version == 1 || layer == 4 || rate == 3 || bitrate == 15 {
        return Word::None;
    }
    if layer != 3 {
        return Word::OtherLayer(layer);
    }
    if bitrate == 0 {
        return Word::FreeFormat;
    }
    let sample_rate_hz = [44_100, 48_000, 32_000][rate as usize] >> [2, 0, 1, 0][version as usize];
    let low_rate = version != 3;
    let samples = if low_rate { 576 } else { 1152 };
    let padding = (word >> 9 & 1) as usize;
    let size = samples as usize / 8 * KBIT[usize::from(low_rate)][bitrate] * 1000 / sample_rate_hz as usize + padding;
    let channels = if word >> 6 & 3 == 3 { 1 } else { 2 };
    Word::Layer3(Header { word, sample_rate_hz, channels, bytes: size, samples, low_rate })
}

fn header(bytes: &[u8], at: usize) -> Option<Header> {
    match word(bytes, at) {
        Word::Layer3(header) => Some(header),
        _ => None,
    }
}

/// Whether a Layer III frame starts at `at` and `count` − 1 like it follow, or the bytes end with one of them.
fn run_of(bytes: &[u8], mut at: usize, count: usize, same: u32) -> bool {
    let Some(first) = header(bytes, at) else { return false };
    for _ in 1..count {
        let Some(this) = header(bytes, at) else { return false };
        at += this.bytes;
        if at >= bytes.len() {
            return true;
        }
        if header(bytes, at).is_none_or(|next| (next.word ^ first.word) & same != 0) {
            return false;
        }
    }
    true
}

/// Where the first frame starts, if these bytes look like MPEG audio.
pub fn find(bytes: &[u8], from: usize) -> Option<usize> {
    if run_of(bytes, from, 2, SAME_STREAM) {
        return Some(from);
    }
    // Junk first: three frames in a row, so that text and noise are not taken for music.
    let last = from.saturating_add(MAX_LEADING_JUNK).min(bytes.len());
    (from..last).find(|&at| bytes[at] == 0xFF && run_of(bytes, at, 3, SAME_FRAMES) && header_room(bytes, at))
}

/// Whether the run that was found is a real one, not a frame cut off by the end of the bytes.
fn header_room(bytes: &[u8], at: usize) -> bool {
    header(bytes, at).is_some_and(|first| header(bytes, at + first.bytes).is_some())
}

/// What stands at `at` if it is MPEG audio of a kind that is not decoded.
pub fn refused(bytes: &[u8], at: usize) -> Option<Fault> {
    match word(bytes, at) {
        Word::OtherLayer(layer) => {
            let name = ["", "I", "II"][layer as usize];
            Some(unsupported(format!("MPEG audio Layer {name} is not decoded (Layer III, MP3, is)")))
        }
        Word::FreeFormat => Some(unsupported("MP3 of free bit rate is not decoded")),
        _ => None,
    }
}

/// What the first frame says about the rest, when it is a Xing, Info or VBRI frame.
#[derive(Default)]
struct Tag {
    /// Whether it takes the place of audio.
    is_frame: bool,
    /// Audio frames (of 1152 or 576 samples) that follow.
    frames: Option<u32>,
    /// Samples added before and after the music: encoder's delay, encoder's padding.
    added: Option<(i64, i64)>,
}

/// ffmpeg's `mp3_parse_vbr_tags`. `frame`: the bytes from the first frame to the end.
fn read_tag(frame: &[u8], first: Header) -> Tag {
    read_xing(frame, first).or_else(|| read_vbri(frame)).unwrap_or_default()
}

fn read_xing(frame: &[u8], first: Header) -> Option<Tag> {
    let side_info = match (first.low_rate, first.channels) {
        (false, 2) => 32,
        (true, 1) => 9,
        _ => 17,
    };
    let mut at = 4 + side_info;
    if !matches!(&frame.array::<4>(at)?, b"Xing" | b"Info") {
        return None;
    }
    let flags = frame.be32(at + 4)?;
    at += 8;
    let mut field = |bit: u32, bytes: usize| {
        let here = at;
        let is_there = flags & bit != 0;
        at += if is_there { bytes } else { 0 };
        is_there.then_some(here)
    };
    let mut frames = field(1, 4).and_then(|at| frame.be32(at)).filter(|&frames| frames > 0);
    let size = field(2, 4).and_then(|at| frame.be32(at)).filter(|&size| size > 0);
    field(4, 100);
    field(8, 4);
    let is_frame = frames.is_some() || size.is_some();
    if let Some(size) = size.map(|size| size as usize)
        && frame.len() > size
        && frame.len() - size > size >> 4
    {
        // Much longer than the tag says: files written one after the other. The count is that of the first.
        frames = None;
    }
    // Encoder's name (9), revision, low-pass, peak (4), gains (2 + 2), flags, bit rate; then twice 12 bits.
    let encoder = frame.array::<4>(at)?;
    let delays = frame.be32(at + 20)? & 0xFF_FFFF;
    let added =
        matches!(&encoder, b"LAME" | b"Lavf" | b"Lavc").then_some((i64::from(delays >> 12), i64::from(delays & 0xFFF)));
    Some(Tag { is_frame, frames, added })
}

fn read_vbri(frame: &[u8]) -> Option<Tag> {
    let at = 4 + 32;
    if &frame.array::<4>(at)? != b"VBRI" || frame.be16(at + 4)? != 1 {
        return None;
    }
    let size = frame.be32(at + 10)?;
    let frames = frame.be32(at + 14)?;
    Some(Tag { is_frame: size > 0 || frames > 0, frames: Some(frames).filter(|&f| f > 0), added: None })
}

pub fn open(bytes: &[u8], from: usize, at: usize) -> Result<Opened<'_>, Fault> {
    let audio = &bytes[..tags::skip_trailing(bytes).max(at)];
    let first = header(audio, at).ok_or_else(|| corrupt("MP3 is cut short within its first frame"))?;
    // Like ffmpeg: a tag frame counts as one only if no junk stands before it.
    let tag = if at == from { read_tag(&audio[at..], first) } else { Tag::default() };
    let (mut skip, mut discard) = (0, None);
    if let Some((delay, padding)) = tag.added {
        skip = delay + DECODER_DELAY;
        discard = tag.frames.map(|frames| {
            let end = i64::from(frames) * i64::from(first.samples);
            (end - padding + DECODER_DELAY, end)
        });
    }
    Ok(Opened {
        codec_name: "mp3".into(),
        sample_rate_hz: first.sample_rate_hz,
        channels: first.channels,
        codec: Codec::symphonia(CODEC_ID_MP3, first.sample_rate_hz, first.channels, None)?,
        source: Box::new(Frames {
            audio,
            at: if tag.is_frame { at + first.bytes } else { at },
            first,
            declared: tag.frames.map(u64::from),
            found: 0,
            position: 0,
            skip: skip as u32,
            discard,
            drop_next: false,
        }),
        declared_frames: None,
    })
}

struct Frames<'a> {
    audio: &'a [u8],
    at: usize,
    first: Header,
    declared: Option<u64>,
    found: u64,
    /// Of the next frame, in samples before any trimming.
    position: i64,
    skip: u32,
    /// Decoded samples from `.0` on are padding; frames that start at `.1` or later are not.
    discard: Option<(i64, i64)>,
    drop_next: bool,
}

impl<'a> Source<'a> for Frames<'a> {
    fn next(&mut self) -> Result<Option<Packet<'a>>, Fault> {
        loop {
            let Some(frame) = self.next_frame()? else { return Ok(None) };
            let samples = i64::from(self.first.samples);
            let end = self.position + samples;
            let discard = match self.discard {
                Some((from, to)) if end >= from && self.position < to => (end - from).min(samples),
                _ => 0,
            };
            self.position = end;
            if std::mem::take(&mut self.drop_next) {
                continue;
            }
            let skip = std::mem::take(&mut self.skip);
            return Ok(Some(Packet { skip, discard: discard as u32, ..Packet::of(frame) }));
        }
    }
}

impl<'a> Frames<'a> {
    fn next_frame(&mut self) -> Result<Option<Cow<'a, [u8]>>, Fault> {
        loop {
            if self.at >= self.audio.len() {
                return self.finish(false);
            }
            match header(self.audio, self.at) {
                Some(this) if (this.word ^ self.first.word) & SAME_STREAM == 0 => {
                    if this.channels != self.first.channels {
                        let (was, is) = (self.first.channels, this.channels);
                        return Err(corrupt(format!("MP3 changes from {was} to {is} channels within the stream")));
                    }
                    let start = self.at;
                    self.at += this.bytes;
                    if let Some(frame) = self.audio.get(start..self.at) {
                        self.found += 1;
                        return Ok(Some(Cow::Borrowed(frame)));
                    }
                    self.finish(true)?;
                    // Without a declared length the stream ends where it ends: ffmpeg decodes what is there of a frame.
                    let mut frame = self.audio[start..].to_vec();
                    frame.resize(this.bytes, 0);
                    return Ok(Some(Cow::Owned(frame)));
                }
                _ => {
                    if !self.resync()? {
                        return self.finish(false);
                    }
                }
            }
        }
    }

    /// Goes past tags between frames. `false`: only junk is left. Unknown bytes between frames are damage.
    fn resync(&mut self) -> Result<bool, Fault> {
        if let Some(this) = header(self.audio, self.at)
            && run_of(self.audio, self.at, 3, SAME_STREAM)
            && header_room(self.audio, self.at)
        {
            let (was, is) = (self.first.sample_rate_hz, this.sample_rate_hz);
            return Err(corrupt(format!("MP3 changes from {was} Hz to {is} Hz within the stream")));
        }
        let start = self.at;
        while self.audio.get(self.at) == Some(&0) {
            self.at += 1;
        }
        while let Some(length) = tags::any(self.audio, self.at) {
            self.at = self.at.saturating_add(length);
            // ffmpeg loses the frame after a tag. It is the Xing frame of the next file, nearly always.
            self.drop_next = true;
        }
        if self.at > start {
            return Ok(true);
        }
        let is_frame = |at: &usize| {
            self.audio[*at] == 0xFF
                && run_of(self.audio, *at, 2, SAME_STREAM)
                && header(self.audio, *at).is_some_and(|this| {
                    (this.word ^ self.first.word) & SAME_STREAM == 0 && *at + this.bytes <= self.audio.len()
                })
        };
        match (start..self.audio.len()).find(is_frame) {
            Some(next) => {
                Err(corrupt(format!("MP3 has {} bytes that are no frame at byte {start} of the audio", next - start)))
            }
            None => Ok(false),
        }
    }

    fn finish(&mut self, cut: bool) -> Result<Option<Cow<'a, [u8]>>, Fault> {
        let Some(declared) = self.declared else { return Ok(None) };
        // Some encoders count the tag's own frame.
        let missing = declared.saturating_sub(self.found);
        if missing > 1 || (missing == 1 && cut) {
            return Err(corrupt(format!("MP3 is cut short: {declared} frames are declared, {} are there", self.found)));
        }
        Ok(None)
    }
}
