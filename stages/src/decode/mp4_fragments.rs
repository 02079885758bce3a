//! Samples of fragmented MP4 (ISO 14496-12 §8.8): `moof` and `mdat` boxes after `moov`.

use std::collections::VecDeque;

use super::{
    Fault, corrupt,
    fields::Fields,
    mp4::atoms,
    mp4_samples::{Sample, slice},
    unsupported,
};

/// What `trex` says of samples of which a fragment says nothing.
#[derive(Clone, Copy, Default)]
pub struct TrackDefaults {
    duration: u32,
    size: u32,
}

impl TrackDefaults {
    pub fn read(trex: &[u8]) -> Option<Self> {
        Some(Self { duration: trex.be32(12)?, size: trex.be32(16)? })
    }
}

/// A `trun` box, partly used.
#[derive(Clone)]
struct Run<'a> {
    left: u32,
    flags: u32,
    entries: &'a [u8],
    offset: u64,
    defaults: TrackDefaults,
}

/// Movie fragments (ISO 14496-12 §8.8): `moof` and `mdat` boxes after `moov`.
#[derive(Clone)]
pub struct Fragments<'a> {
    bytes: &'a [u8],
    at: usize,
    track: u32,
    defaults: TrackDefaults,
    runs: VecDeque<Run<'a>>,
    found: u64,
}

impl<'a> Fragments<'a> {
    pub fn new(bytes: &'a [u8], track: u32, defaults: TrackDefaults) -> Self {
        Self { bytes, at: 0, track, defaults, runs: Default::default(), found: 0 }
    }

    pub fn next(&mut self) -> Result<Option<Sample<'a>>, Fault> {
        let found = self.found;
        let cut = move || corrupt(format!("MP4 is cut short within a fragment, after {found} samples"));
        loop {
            let Some(run) = self.runs.front_mut() else {
                let Some(atom) = atoms(self.bytes, self.at).next() else { return Ok(None) };
                if atom.cut && matches!(&atom.kind, b"moof" | b"mdat") {
                    return Err(cut());
                }
                self.at = atom.end;
                if &atom.kind == b"moof" {
                    self.read_moof(atom.body, atom.start as u64)?;
                }
                continue;
            };
            if run.left == 0 {
                self.runs.pop_front();
                continue;
            }
            let mut field = |bit: u32, default: u32| {
                if run.flags & bit == 0 {
                    return Some(default);
                }
                let (value, rest) = run.entries.split_first_chunk::<4>()?;
                run.entries = rest;
                Some(u32::from_be_bytes(*value))
            };
            // Duration, size, flags, composition offset.
            let duration = field(0x100, run.defaults.duration).ok_or_else(cut)?;
            let size = field(0x200, run.defaults.size).ok_or_else(cut)?;
            field(0x400, 0).and(field(0x800, 0)).ok_or_else(cut)?;
            let data = slice(self.bytes, run.offset, size).ok_or_else(cut)?;
            run.offset += u64::from(size);
            run.left -= 1;
            self.found += 1;
            return Ok(Some(Sample { data, duration }));
        }
    }

    fn read_moof(&mut self, moof: &'a [u8], moof_start: u64) -> Result<(), Fault> {
        let broken = || corrupt("MP4 has a fragment whose boxes are cut short");
        for traf in atoms(moof, 0).filter(|atom| &atom.kind == b"traf") {
            let tfhd = atoms(traf.body, 0).find(|atom| &atom.kind == b"tfhd").ok_or_else(broken)?.body;
            let flags = tfhd.be32(0).ok_or_else(broken)? & 0xFF_FFFF;
            if tfhd.be32(4) != Some(self.track) {
                continue;
            }
            let mut at = 8;
            let mut field = |bit: u32, bytes: usize| {
                let here = at;
                at += if flags & bit != 0 { bytes } else { 0 };
                (flags & bit != 0).then_some(here)
            };
            let base = field(1, 8).map_or(Some(moof_start), |at| tfhd.be64(at)).ok_or_else(broken)?;
            if field(2, 4).and_then(|at| tfhd.be32(at)).is_some_and(|description| description != 1) {
                return Err(unsupported("MP4 with several sample descriptions in a track is not decoded; with 1 is"));
            }
            let mut defaults = self.defaults;
            if let Some(at) = field(8, 4) {
                defaults.duration = tfhd.be32(at).ok_or_else(broken)?;
            }
            if let Some(at) = field(0x10, 4) {
                defaults.size = tfhd.be32(at).ok_or_else(broken)?;
            }
            let mut offset = base;
            for trun in atoms(traf.body, 0).filter(|atom| &atom.kind == b"trun").map(|atom| atom.body) {
                let (flags, left) = (trun.be32(0).ok_or_else(broken)? & 0xFF_FFFF, trun.be32(4).ok_or_else(broken)?);
                let mut at = 8;
                if flags & 1 != 0 {
                    let relative = trun.be32(at).ok_or_else(broken)? as i32;
                    offset = base.checked_add_signed(relative.into()).ok_or_else(broken)?;
                    at += 4;
                }
                at += if flags & 4 != 0 { 4 } else { 0 };
                let entries = trun.get(at..).ok_or_else(broken)?;
                self.runs.push_back(Run { left, flags, entries, offset, defaults });
                if flags & 0x200 == 0 {
                    offset = offset.saturating_add(u64::from(left) * u64::from(defaults.size));
                } else {
                    let fields = [0x100, 0x200, 0x400, 0x800].map(|bit| usize::from(flags & bit != 0) * 4);
                    let stride = fields.iter().sum::<usize>().max(4);
                    let sizes = (0..left as usize).map_while(|i| entries.be32(i * stride + fields[0]));
                    offset = offset.saturating_add(sizes.map(u64::from).sum());
                }
            }
        }
        Ok(())
    }
}
