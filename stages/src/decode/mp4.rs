//! MP4, M4A and QuickTime (ISO 14496-12): the boxes that describe the first audio track, and its codec.

use symphonia::core::codecs::audio::well_known::CODEC_ID_ALAC;

use super::{
    Codec, Fault, Opened, aac, corrupt,
    fields::Fields,
    flac,
    mp4_fragments::{Fragments, TrackDefaults},
    mp4_samples::{Edit, Form, Samples, Tables, Track},
    no_audio, unsupported,
};

/// One box: its type, where its body is, and whether the bytes end before it does.
#[derive(Clone, Copy)]
pub struct Atom<'a> {
    pub kind: [u8; 4],
    /// Of its header, in the bytes that were walked.
    pub start: usize,
    pub body: &'a [u8],
    /// Where the next box is, in the bytes that were walked.
    pub end: usize,
    pub cut: bool,
}

/// The boxes that follow one another in `bytes`, from `at`.
pub fn atoms(bytes: &[u8], mut at: usize) -> impl Iterator<Item = Atom<'_>> {
    std::iter::from_fn(move || {
        let start = at;
        let kind = bytes.array::<4>(start + 4)?;
        let (head, size) = match bytes.be32(start)? {
            0 => (8, bytes.len() - start),
            1 => (16, usize::try_from(bytes.be64(start + 8)?).unwrap_or(usize::MAX)),
            size => (8, size as usize),
        };
        if size < head {
            return None;
        }
        let end = start.saturating_add(size);
        at = end;
        let body = bytes.get(start + head..end.min(bytes.len()))?;
        Some(Atom { kind, start, body, end, cut: end > bytes.len() })
    })
}

/// The body of the first box at the end of a path of types.
fn find<'a>(bytes: &'a [u8], path: &[&[u8; 4]]) -> Option<&'a [u8]> {
    path.iter().try_fold(bytes, |inside, kind| atoms(inside, 0).find(|atom| &atom.kind == *kind).map(|atom| atom.body))
}

/// Whether these bytes start with a box that MP4 files start with.
pub fn is_mp4(bytes: &[u8], at: usize) -> bool {
    let kind = bytes.array::<4>(at + 4);
    let size = bytes.be32(at).unwrap_or(0);
    kind.is_some_and(|kind| match &kind {
        b"ftyp" | b"moov" | b"mdat" | b"moof" | b"styp" | b"pnot" => size != 0 || &kind == b"mdat",
        b"wide" | b"free" | b"skip" => size >= 8 && is_mp4(bytes, at.saturating_add(size as usize)),
        _ => false,
    })
}

pub fn open(bytes: &[u8]) -> Result<Opened<'_>, Fault> {
    let Some(moov) = atoms(bytes, 0).find(|atom| &atom.kind == b"moov") else {
        let length = bytes.len();
        return Err(corrupt(format!(
            "MP4 of {length} bytes has no 'moov' box: it is cut short, or was never finished"
        )));
    };
    if moov.cut {
        return Err(corrupt("MP4 is cut short within its 'moov' box"));
    }
    let moov = moov.body;
    let mut kinds = Vec::new();
    for trak in atoms(moov, 0).filter(|atom| &atom.kind == b"trak") {
        match find(trak.body, &[b"mdia", b"hdlr"]).and_then(|hdlr| hdlr.array::<4>(8)) {
            Some(kind) if &kind == b"soun" => return open_track(bytes, moov, trak.body),
            Some(kind) => kinds.push(kind.escape_ascii().to_string()),
            None => kinds.push("?".into()),
        }
    }
    Err(no_audio(match kinds.is_empty() {
        true => "MP4 holds no tracks".to_owned(),
        false => format!("MP4 holds no audio track, only: {}", kinds.join(", ")),
    }))
}

fn open_track<'a>(bytes: &'a [u8], moov: &'a [u8], trak: &'a [u8]) -> Result<Opened<'a>, Fault> {
    let missing = |what: &str| corrupt(format!("MP4 has an audio track without a whole '{what}' box"));
    let stbl = find(trak, &[b"mdia", b"minf", b"stbl"]).ok_or_else(|| missing("stbl"))?;
    let stsd = find(stbl, &[b"stsd"]).ok_or_else(|| missing("stsd"))?;
    let mdhd = find(trak, &[b"mdia", b"mdhd"]).ok_or_else(|| missing("mdhd"))?;
    let timescale = mdhd.be32(if mdhd.u8(0) == Some(1) { 20 } else { 12 }).filter(|&t| t > 0);
    let timescale = timescale.ok_or_else(|| missing("mdhd"))?;
    let entries = stsd.be32(4).unwrap_or(0);
    if entries != 1 {
        return Err(unsupported(format!(
            "MP4 with {entries} sample descriptions in a track is not decoded; with 1 is"
        )));
    }
    let entry = atoms(stsd, 8).next().ok_or_else(|| missing("stsd"))?;
    let description = describe(&entry)?;
    let is_aac = matches!(description.form, Form::Aac);
    let priming = if is_aac { itunes_priming(moov) } else { None };

    let tables = Tables::read(stbl)?;
    let id = find(trak, &[b"tkhd"]).and_then(|tkhd| tkhd.be32(if tkhd.u8(0) == Some(1) { 20 } else { 12 }));
    let mvex = find(moov, &[b"mvex"]);
    let samples = match mvex {
        Some(mvex) if tables.is_empty() => {
            let id = id.ok_or_else(|| missing("tkhd"))?;
            let defaults = atoms(mvex, 0)
                .filter(|atom| &atom.kind == b"trex" && atom.body.be32(4) == Some(id))
                .find_map(|atom| TrackDefaults::read(atom.body))
                .unwrap_or_default();
            Samples::Fragmented(Fragments::new(bytes, id, defaults))
        }
        _ => Samples::Listed(tables),
    };
    let edit = match (&samples, find(trak, &[b"edts", b"elst"])) {
        // ffmpeg, too, does not apply edits to fragments.
        (Samples::Listed(_), Some(elst)) => {
            let movie_scale = find(moov, &[b"mvhd"])
                .and_then(|mvhd| mvhd.be32(if mvhd.u8(0) == Some(1) { 20 } else { 12 }))
                .ok_or_else(|| corrupt("MP4 has no whole 'mvhd' box"))?;
            Edit::read(elst, movie_scale, timescale)?
        }
        _ => None,
    };
    if is_aac {
        let mut probe = samples.clone();
        if aac::carry_sbr(std::iter::from_fn(|| probe.next(bytes).ok().flatten().map(|sample| sample.data))) {
            return Err(aac::refuse_sbr());
        }
    }
    let rate = description.sample_rate_hz;
    Ok(Opened {
        source: Box::new(Track::new(bytes, samples, edit, priming, timescale, rate, description.form)),
        codec_name: description.codec_name.into(),
        sample_rate_hz: rate,
        channels: description.channels,
        codec: description.codec,
        declared_frames: None,
    })
}

struct Description {
    codec_name: &'static str,
    sample_rate_hz: u32,
    channels: u32,
    codec: Codec,
    form: Form,
}

/// The sample description: which codec, and its configuration.
fn describe(entry: &Atom<'_>) -> Result<Description, Fault> {
    // AudioSampleEntry; QuickTime's versions 1 and 2 add fields before the boxes.
    let extra = match entry.body.be16(8) {
        Some(1) => 16,
        Some(2) => 36,
        _ => 0,
    };
    let boxes = entry.body.get(28 + extra..).unwrap_or(&[]);
    let missing = |what: &str| corrupt(format!("MP4 has a sample description without a whole '{what}' box"));
    match &entry.kind {
        b"mp4a" => {
            let esds =
                find(boxes, &[b"esds"]).or_else(|| find(boxes, &[b"wave", b"esds"])).ok_or_else(|| missing("esds"))?;
            let (object, config) = decoder_config(esds).ok_or_else(|| missing("esds"))?;
            match object {
                0x40 | 0x66..=0x68 => {}
                0x69 | 0x6B => return Err(unsupported("MP4 holds MP3; AAC-LC, ALAC and FLAC are decoded in MP4")),
                object => {
                    return Err(unsupported(format!(
                        "MP4 holds audio of object type {object:#04x}; AAC-LC, ALAC and FLAC are decoded in MP4"
                    )));
                }
            }
            let config = aac::Config::read(config)?;
            Ok(Description {
                codec_name: "aac",
                sample_rate_hz: config.sample_rate_hz,
                channels: config.channels,
                codec: aac::codec(config.sample_rate_hz, config.channels)?,
                form: Form::Aac,
            })
        }
        b"alac" => {
            let cookie = find(boxes, &[b"alac"])
                .or_else(|| find(boxes, &[b"wave", b"alac"]))
                .and_then(|body| body.get(4..28))
                .ok_or_else(|| missing("alac"))?;
            let (channels, rate) = (u32::from(cookie[9]), cookie.be32(20).unwrap_or(0));
            super::check_channels("ALAC", channels)?;
            super::check_rate("ALAC", rate)?;
            let codec = Codec::symphonia(CODEC_ID_ALAC, rate, channels, Some(cookie))?;
            Ok(Description { codec_name: "alac", sample_rate_hz: rate, channels, codec, form: Form::Other })
        }
        b"fLaC" => {
            // dfLa: version and flags (4), then metadata blocks, STREAMINFO first.
            let block = find(boxes, &[b"dfLa"]).and_then(|body| body.get(8..)).ok_or_else(|| missing("dfLa"))?;
            let info = flac::StreamInfo::read(block)?;
            Ok(Description {
                codec_name: "flac",
                sample_rate_hz: info.sample_rate_hz,
                channels: info.channels,
                codec: info.codec(block)?,
                form: Form::Flac(info),
            })
        }
        b"enca" | b"drms" | b"p608" => Err(unsupported("MP4 holds encrypted audio (DRM), which is not decoded")),
        b"Opus" => Err(unsupported("Opus is not decoded (in MP4)")),
        b"ac-3" | b"ec-3" | b"ac-4" => {
            Err(unsupported("MP4 holds Dolby audio (AC-3); AAC-LC, ALAC and FLAC are decoded in MP4"))
        }
        kind => {
            let kind = kind.escape_ascii();
            Err(unsupported(format!("MP4 holds '{kind}'; AAC-LC, ALAC and FLAC are decoded in MP4")))
        }
    }
}

/// From an `esds` box, the object type and the decoder's own configuration (ISO 14496-1 §7.2.6).
fn decoder_config(esds: &[u8]) -> Option<(u8, &[u8])> {
    /// A descriptor: its tag and body, if it is whole.
    fn descriptor(bytes: &[u8]) -> Option<(u8, &[u8])> {
        let mut size = 0usize;
        for at in 1..=4 {
            let byte = bytes.u8(at)?;
            size = size << 7 | usize::from(byte & 0x7F);
            if byte & 0x80 == 0 {
                return Some((bytes[0], bytes.get(at + 1..(at + 1 + size).min(bytes.len()))?));
            }
        }
        None
    }
    let (3, stream) = descriptor(esds.get(4..)?)? else { return None };
    let flags = stream.u8(2)?;
    let mut at = 3;
    at += if flags & 0x80 != 0 { 2 } else { 0 };
    at += if flags & 0x40 != 0 { 1 + usize::from(stream.u8(at)?) } else { 0 };
    at += if flags & 0x20 != 0 { 2 } else { 0 };
    let (4, decoder) = descriptor(stream.get(at..)?)? else { return None };
    let object = decoder.u8(0)?;
    match descriptor(decoder.get(13..)?) {
        Some((5, config)) => Some((object, config)),
        _ => Some((object, &[])),
    }
}

/// Samples that the encoder added at the start, as iTunes writes them: `iTunSMPB` = ` 00000000 PRIMING REST LENGTH …`.
fn itunes_priming(moov: &[u8]) -> Option<u32> {
    // `meta` is a full box: 4 bytes of version and flags before its boxes.
    let meta = find(moov, &[b"udta", b"meta"])?.get(4..)?;
    let text = atoms(find(meta, &[b"ilst"])?, 0).filter(|atom| &atom.kind == b"----").find_map(|item| {
        let name = find(item.body, &[b"name"])?.get(4..)?;
        let data = find(item.body, &[b"data"])?.get(8..)?;
        (name == b"iTunSMPB").then(|| std::str::from_utf8(data).ok()).flatten()
    })?;
    let mut words = text.split_ascii_whitespace().skip(1).map(|word| u32::from_str_radix(word, 16).ok());
    let priming = words.next()??;
    // ffmpeg wants all three numbers, and a priming that can be one.
    words.next()??;
    u64::from_str_radix(text.split_ascii_whitespace().nth(3)?, 16).ok()?;
    (1..16384).contains(&priming).then_some(priming)
}
