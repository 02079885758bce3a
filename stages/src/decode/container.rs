//! Which container the bytes are: by their first bytes, never by a name or a content type.

use super::{Fault, Opened, aac, aiff, flac, mp3, mp4, ogg, tags, unsupported, wav};
use tonearm_schemas::reject::RejectClass;

pub fn open<'a>(bytes: &'a [u8], content_type_hint: Option<&str>) -> Result<Opened<'a>, Fault> {
    if bytes.is_empty() {
        let message = "the record has a value of 0 bytes; encoded audio is expected".into();
        return Err(Fault { class: RejectClass::EmptyRecord, message });
    }
    let at = tags::skip_leading(bytes);
    let rest = &bytes[at..];
    match rest {
        [b'R', b'I', b'F', b'F' | b'X', _, _, _, _, b'W', b'A', b'V', b'E', ..]
        | [b'R' | b'B', b'F' | b'W', b'6', b'4', _, _, _, _, b'W', b'A', b'V', b'E', ..] => wav::open(rest),
        [b'F', b'O', b'R', b'M', _, _, _, _, b'A', b'I', b'F', b'F' | b'C', ..] => aiff::open(rest),
        [b'f', b'L', b'a', b'C', ..] => flac::open(bytes, at),
        [b'O', b'g', b'g', b'S', ..] => ogg::open(bytes, at),
        // Offsets in MP4 count from the start of the file.
        _ if mp4::is_mp4(bytes, at) && at == 0 => mp4::open(bytes),
        _ if aac::is_adts(bytes, at) => aac::open_adts(bytes, at),
        _ => match known_but_refused(rest) {
            Some(name) => Err(unsupported(format!("{name} is not decoded"))),
            None => match (mp3::find(bytes, at), aac::find(bytes, at)) {
                (Some(mp3), aac) if aac.is_none_or(|aac| mp3 < aac) => mp3::open(bytes, at, mp3),
                (_, Some(aac)) => aac::open_adts(bytes, aac),
                _ => Err(mp3::refused(bytes, at).unwrap_or_else(|| unknown(rest, content_type_hint))),
            },
        },
    }
}

/// Formats that a catalogue may hold by mistake or habit, by their first bytes.
fn known_but_refused(bytes: &[u8]) -> Option<&'static str> {
    const FORMATS: [(usize, &[u8], &str); 31] = [
        (0, b"\x1A\x45\xDF\xA3", "Matroska or WebM"),
        (0, b"caff", "Apple Core Audio Format (CAF)"),
        (0, b"\x30\x26\xB2\x75\x8E\x66\xCF\x11", "Windows Media (ASF)"),
        (0, b"wvpk", "WavPack"),
        (0, b"MAC ", "Monkey's Audio"),
        (0, b"MPCK", "Musepack"),
        (0, b"MP+", "Musepack"),
        (0, b"TTA1", "True Audio"),
        (0, b"TTA2", "True Audio"),
        (0, b"OFR ", "OptimFROG"),
        (0, b"tBaK", "TAK"),
        (0, b"DSD ", "DSD (DSF)"),
        (0, b"FRM8", "DSD (DFF)"),
        (0, b"ADIF", "AAC in ADIF"),
        (0, b"\x0B\x77", "AC-3"),
        (0, b"\x7F\xFE\x80\x01", "DTS"),
        (0, b"MThd", "MIDI"),
        (0, b"#!AMR", "AMR"),
        (0, b".snd", "Sun audio (AU)"),
        (0, b".RMF", "RealMedia"),
        (0, b"FLV\x01", "Flash video"),
        (0, b"riff\x2E\x91\xCF\x11", "Sony Wave64"),
        (8, b"AVI ", "AVI"),
        (0, b"\x00\x00\x01\xBA", "an MPEG program stream"),
        (0, b"\x89PNG", "a PNG picture"),
        (0, b"\xFF\xD8\xFF", "a JPEG picture"),
        (0, b"GIF8", "a GIF picture"),
        (0, b"%PDF", "a PDF document"),
        (0, b"PK\x03\x04", "a ZIP archive"),
        (0, b"\x1F\x8B", "a gzip archive"),
        (0, b"8SVX", "Amiga 8SVX"),
    ];
    let starts = |(at, magic, _): &&(usize, &[u8], &str)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    let is_mpeg_ts = (0..3).all(|packet| bytes.get(packet * 188) == Some(&0x47));
    let is_latm = matches!(bytes, [0x56, 0xE0..=0xFF, ..]);
    FORMATS
        .iter()
        .find(starts)
        .map(|&(_, _, name)| name)
        .or(is_mpeg_ts.then_some("an MPEG transport stream"))
        .or(is_latm.then_some("AAC in LATM"))
}

fn unknown(bytes: &[u8], content_type_hint: Option<&str>) -> Fault {
    let first = bytes[..bytes.len().min(8)].escape_ascii();
    let hint = content_type_hint.map_or(String::new(), |hint| format!(", content-type {}", hint.escape_debug()));
    unsupported(format!(
        "{} bytes that start with \"{first}\"{hint} are no audio that is known; MP3, AAC (ADTS, MP4), ALAC, FLAC, Vorbis, \
         WAV and AIFF are decoded",
        bytes.len()
    ))
}
