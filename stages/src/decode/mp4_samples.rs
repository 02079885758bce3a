//! The samples (codec packets) of one MP4 track: where they lie, and which decoded frames edits cut away, as ffmpeg's
//! `mov.c` does.

use std::borrow::Cow;

use super::{
    Fault, Packet, Source, aac, corrupt, fields::Fields, flac, mp4::atoms, mp4_fragments::Fragments, unsupported,
};

/// One codec packet; times in the track's time scale.
pub struct Sample<'a> {
    pub data: &'a [u8],
    pub duration: u32,
}

#[derive(Clone)]
pub enum Samples<'a> {
    /// By tables in `moov`.
    Listed(Tables<'a>),
    /// By tables in every fragment.
    Fragmented(Fragments<'a>),
}

impl<'a> Samples<'a> {
    pub fn next(&mut self, bytes: &'a [u8]) -> Result<Option<Sample<'a>>, Fault> {
        match self {
            Self::Listed(tables) => tables.next(bytes),
            Self::Fragmented(fragments) => fragments.next(),
        }
    }
}

/// The tables of a `stbl` box, read while they are used: nothing is copied, whatever they claim.
#[derive(Clone)]
pub struct Tables<'a> {
    count: u32,
    /// Bits of a size in `sizes`; 0: every sample has `fixed_size`.
    size_bits: u32,
    fixed_size: u32,
    sizes: &'a [u8],
    chunks: &'a [u8],
    chunk_bytes: usize,
    to_chunk: &'a [u8],
    to_time: &'a [u8],
    // Where the next sample is.
    sample: u32,
    chunk: u32,
    left_in_chunk: u32,
    to_chunk_at: usize,
    offset: u64,
    time_left: u32,
    time_delta: u32,
}

impl<'a> Tables<'a> {
    pub fn read(stbl: &'a [u8]) -> Result<Self, Fault> {
        let table = |kind: &[u8; 4]| atoms(stbl, 0).find(|atom| &atom.kind == kind).map(|atom| atom.body);
        let entries = |kind: &[u8; 4], bytes: usize| -> Result<&'a [u8], Fault> {
            let Some(body) = table(kind) else { return Ok(&[]) };
            let count = body.be32(4).unwrap_or(0) as usize;
            body.get(8..8 + count.saturating_mul(bytes)).ok_or_else(|| {
                let kind = kind.escape_ascii();
                corrupt(format!("MP4 box '{kind}' states {count} entries, more than it has room for"))
            })
        };
        let (count, size_bits, fixed_size, sizes) = match (table(b"stsz"), table(b"stz2")) {
            (Some(stsz), _) => {
                let fixed = stsz.be32(4).unwrap_or(0);
                (stsz.be32(8).unwrap_or(0), if fixed == 0 { 32 } else { 0 }, fixed, stsz)
            }
            (_, Some(stz2)) => (stz2.be32(8).unwrap_or(0), stz2.be32(4).unwrap_or(0) & 0xFF, 0, stz2),
            _ => (0, 0, 0, &[][..]),
        };
        let sizes = sizes.get(12..).unwrap_or(&[]);
        if !matches!(size_bits, 0 | 4 | 8 | 16 | 32)
            || (sizes.len() as u64) < u64::from(count) * u64::from(size_bits) / 8
        {
            return Err(corrupt(format!("MP4 states {count} samples of an audio track, and has room for fewer sizes")));
        }
        let long = table(b"co64").is_some();
        Ok(Self {
            count,
            size_bits,
            fixed_size,
            sizes,
            chunks: if long { entries(b"co64", 8)? } else { entries(b"stco", 4)? },
            chunk_bytes: if long { 8 } else { 4 },
            to_chunk: entries(b"stsc", 12)?,
            to_time: entries(b"stts", 8)?,
            sample: 0,
            chunk: 0,
            left_in_chunk: 0,
            to_chunk_at: 0,
            offset: 0,
            time_left: 0,
            time_delta: 0,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn next(&mut self, bytes: &'a [u8]) -> Result<Option<Sample<'a>>, Fault> {
        if self.sample == self.count {
            return Ok(None);
        }
        let lost = |what: &str| corrupt(format!("MP4 sample {} of {} has no {what}", self.sample + 1, self.count));
        while self.left_in_chunk == 0 {
            let at = self.chunk as usize * self.chunk_bytes;
            let offset = match self.chunk_bytes {
                8 => self.chunks.be64(at),
                _ => self.chunks.be32(at).map(u64::from),
            };
            self.offset = offset.ok_or_else(|| lost("chunk"))?;
            self.chunk += 1;
            // Entries hold from their first chunk (counted from 1) to that of the next entry.
            while self.to_chunk.be32(self.to_chunk_at + 12).is_some_and(|first| first <= self.chunk) {
                self.to_chunk_at += 12;
            }
            self.left_in_chunk = self.to_chunk.be32(self.to_chunk_at + 4).ok_or_else(|| lost("chunk"))?;
            if self.left_in_chunk == 0 && self.to_chunk.len() <= 12 {
                return Err(lost("chunk"));
            }
        }
        while self.time_left == 0 {
            let Some((&[a, b, c, d, e, f, g, h], rest)) = self.to_time.split_first_chunk::<8>() else {
                // Fewer times than samples: the last one goes on.
                self.time_left = u32::MAX;
                break;
            };
            (self.time_left, self.time_delta) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
            self.to_time = rest;
        }
        let index = self.sample as usize;
        let size = match self.size_bits {
            0 => Some(self.fixed_size),
            4 => self.sizes.u8(index / 2).map(|two| u32::from(if index & 1 == 0 { two >> 4 } else { two & 15 })),
            8 => self.sizes.u8(index).map(u32::from),
            16 => self.sizes.be16(index * 2).map(u32::from),
            _ => self.sizes.be32(index * 4),
        };
        let size = size.ok_or_else(|| lost("size"))?;
        let data = slice(bytes, self.offset, size).ok_or_else(|| {
            let (sample, count) = (self.sample, self.count);
            corrupt(format!("MP4 is cut short: {count} samples are declared, {sample} are there"))
        })?;
        self.offset += u64::from(size);
        self.sample += 1;
        self.left_in_chunk -= 1;
        self.time_left -= 1;
        Ok(Some(Sample { data, duration: self.time_delta }))
    }
}

/// A sample's bytes, if they are all there and there are any.
pub fn slice(bytes: &[u8], offset: u64, size: u32) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(size as usize)?).filter(|data| !data.is_empty())
}

/// The one edit of a track that is heard, in the track's time scale.
#[derive(Clone, Copy)]
pub struct Edit {
    start: u64,
    /// `None`: to the end.
    end: Option<u64>,
}

impl Edit {
    pub fn read(elst: &[u8], movie_scale: u32, timescale: u32) -> Result<Option<Self>, Fault> {
        let broken = || corrupt("MP4 has an 'elst' box that is cut short");
        let count = elst.be32(4).ok_or_else(broken)? as usize;
        let long = elst.u8(0) == Some(1);
        let mut edit = None;
        for index in 0..count {
            let (duration, start) = if long {
                let at = 8 + index * 20;
                (elst.be64(at).ok_or_else(broken)?, elst.be64(at + 8).ok_or_else(broken)? as i64)
            } else {
                let at = 8 + index * 12;
                let start = elst.be32(at + 4).ok_or_else(broken)? as i32;
                (elst.be32(at).ok_or_else(broken)?.into(), start.into())
            };
            // −1: silence before the track, which is no part of its samples.
            let Ok(start) = u64::try_from(start) else { continue };
            if edit.is_some() {
                return Err(unsupported(format!("MP4 with {count} edits in a track is not decoded; with 1 is")));
            }
            let scale = u128::from(movie_scale.max(1));
            let length = (u128::from(duration) * u128::from(timescale) + scale / 2) / scale;
            let length = u64::try_from(length).unwrap_or(u64::MAX);
            edit = Some(Self { start, end: (length > 0).then(|| start.saturating_add(length)) });
        }
        Ok(edit)
    }
}

/// What a packet is checked for before it is decoded.
#[derive(Clone, Copy)]
pub enum Form {
    Aac,
    Flac(flac::StreamInfo),
    Other,
}

/// The packets of a track.
pub struct Track<'a> {
    bytes: &'a [u8],
    samples: Samples<'a>,
    edit: Option<Edit>,
    priming: Option<u32>,
    timescale: u32,
    sample_rate_hz: u32,
    form: Form,
    time: u64,
    /// Frames to leave out, of packets that gave none.
    skip: u32,
    started: bool,
    ended: bool,
}

impl<'a> Track<'a> {
    pub fn new(
        bytes: &'a [u8],
        samples: Samples<'a>,
        edit: Option<Edit>,
        priming: Option<u32>,
        timescale: u32,
        sample_rate_hz: u32,
        form: Form,
    ) -> Self {
        Self {
            bytes,
            samples,
            edit,
            priming,
            timescale,
            sample_rate_hz,
            form,
            time: 0,
            skip: 0,
            started: false,
            ended: false,
        }
    }

    fn frames(&self, time: u64) -> u32 {
        let frames = u128::from(time) * u128::from(self.sample_rate_hz) / u128::from(self.timescale);
        frames.min(u32::MAX.into()) as u32
    }
}

impl<'a> Source<'a> for Track<'a> {
    fn next(&mut self) -> Result<Option<Packet<'a>>, Fault> {
        loop {
            if self.ended {
                return Ok(None);
            }
            let Some(sample) = self.samples.next(self.bytes)? else { return Ok(None) };
            let time = self.time;
            let next = time.saturating_add(sample.duration.into());
            self.time = next;
            let mut skip = 0;
            let mut drop = false;
            if let Some(edit) = self.edit {
                // A codec needs the packets before the edit to come into step; ffmpeg gives it one second of them.
                if next <= edit.start.saturating_sub(self.timescale.into()) {
                    continue;
                }
                drop = next <= edit.start && next > time;
                if !self.started {
                    skip = self.frames(edit.start.saturating_sub(time));
                }
                self.ended = edit.end.is_some_and(|end| next >= end);
            }
            if !self.started {
                self.started = true;
                skip = self.priming.unwrap_or(skip);
            }
            skip += std::mem::take(&mut self.skip);
            match self.form {
                Form::Flac(info) => info.check_frame(sample.data)?,
                Form::Aac if !aac::has_audio(sample.data) => {
                    self.skip = skip;
                    continue;
                }
                Form::Aac => skip = aac::faac_delay(sample.data).unwrap_or(skip),
                Form::Other => {}
            }
            return Ok(Some(Packet { data: Cow::Borrowed(sample.data), skip, discard: 0, drop }));
        }
    }
}
