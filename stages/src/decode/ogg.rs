//! Ogg (RFC 3533): pages → packets of the first audio stream, with every page's checksum and order checked.

use std::borrow::Cow;

use symphonia::core::{checksum::Crc32, io::Monitor};

use super::{Fault, Opened, Packet, Source, corrupt, fields::Fields, flac, no_audio, tags, unsupported, vorbis};

/// One page. `lacing` and `body` borrow the record's bytes.
#[derive(Clone, Copy)]
struct Page<'a> {
    continued: bool,
    first: bool,
    last: bool,
    granule: i64,
    serial: u32,
    number: u32,
    lacing: &'a [u8],
    body: &'a [u8],
}

/// A packet, and what its page says about it.
pub struct OggPacket<'a> {
    pub data: Cow<'a, [u8]>,
    /// Frames from the start to the end of the last packet that ends on this page. −1: none does.
    pub granule: i64,
    /// No further packet ends on this page.
    pub ends_page: bool,
    /// Its page is the stream's last.
    pub on_last_page: bool,
}

/// The packets of one logical stream.
#[derive(Clone)]
pub struct Packets<'a> {
    bytes: &'a [u8],
    at: usize,
    serial: u32,
    page: Option<Page<'a>>,
    /// In the page: the next lacing value, the next byte.
    lacing_at: usize,
    body_at: usize,
    number: Option<u32>,
    data_started: bool,
}

/// The page at `at` and where it ends. `None`: no page starts there.
fn page(bytes: &[u8], at: usize) -> Result<Option<(Page<'_>, usize)>, Fault> {
    if bytes.get(at..at + 4) != Some(b"OggS") {
        return Ok(None);
    }
    let read = || {
        let flags = bytes.u8(at + 5)?;
        let body = at + 27 + usize::from(bytes.u8(at + 26)?);
        let lacing = bytes.get(at + 27..body)?;
        let end = body + lacing.iter().map(|&l| usize::from(l)).sum::<usize>();
        let page = Page {
            continued: flags & 1 != 0,
            first: flags & 2 != 0,
            last: flags & 4 != 0,
            granule: bytes.le64(at + 6)? as i64,
            serial: bytes.le32(at + 14)?,
            number: bytes.le32(at + 18)?,
            lacing,
            body: bytes.get(body..end)?,
        };
        Some((page, end))
    };
    let (page, end) = read().ok_or_else(|| corrupt("Ogg is cut short within a page"))?;
    // The checksum is computed with its own field as zeros.
    let mut crc = Crc32::new(0);
    crc.process_buf_bytes(&bytes[at..at + 22]);
    crc.process_buf_bytes(&[0; 4]);
    crc.process_buf_bytes(&bytes[at + 26..end]);
    if Some(crc.crc()) != bytes.le32(at + 22) {
        return Err(corrupt(format!("Ogg page {} has a wrong checksum", page.number)));
    }
    Ok(Some((page, end)))
}

pub fn open(bytes: &[u8], at: usize) -> Result<Opened<'_>, Fault> {
    let bytes = &bytes[..tags::skip_trailing(bytes).max(at)];
    let mut others = Vec::new();
    let mut next = at;
    // Every stream's first page stands before any other page.
    while let Some((page, end)) = page(bytes, next)?.filter(|(page, _)| page.first) {
        let packets = || Packets {
            bytes,
            at: next,
            serial: page.serial,
            page: None,
            lacing_at: 0,
            body_at: 0,
            number: None,
            data_started: false,
        };
        match page.body {
            [0x01, b'v', b'o', b'r', b'b', b'i', b's', ..] => return vorbis::open(packets()),
            [0x7F, b'F', b'L', b'A', b'C', ..] => return open_flac(packets()),
            [b'O', b'p', b'u', b's', b'H', b'e', b'a', b'd', ..] => {
                return Err(unsupported("Opus is not decoded (in Ogg)"));
            }
            [b'S', b'p', b'e', b'e', b'x', ..] => return Err(unsupported("Speex is not decoded (in Ogg)")),
            [0x80, b't', b'h', b'e', b'o', b'r', b'a', ..] => others.push("Theora video"),
            [b'f', b'i', b's', b'h', b'e', b'a', b'd', ..] => {}
            _ => others.push("an unknown codec"),
        }
        next = end;
    }
    if others.is_empty() {
        return Err(corrupt("Ogg does not start with a stream's first page"));
    }
    Err(no_audio(format!("Ogg holds no audio stream that is known, only {}", others.join(", "))))
}

impl<'a> Packets<'a> {
    pub fn next(&mut self) -> Result<Option<OggPacket<'a>>, Fault> {
        let mut parts: Option<Vec<u8>> = None;
        loop {
            let Some(page) = self.page else {
                if !self.next_page(parts.is_some())? {
                    return Ok(None);
                }
                continue;
            };
            let from = self.body_at;
            let mut whole = false;
            while let Some(&length) = page.lacing.get(self.lacing_at) {
                self.lacing_at += 1;
                self.body_at += usize::from(length);
                if length < 255 {
                    whole = true;
                    break;
                }
            }
            let part = &page.body[from..self.body_at];
            let rest = &page.lacing[self.lacing_at..];
            if rest.is_empty() {
                self.page = None;
            }
            if !whole {
                if !part.is_empty() {
                    parts.get_or_insert_default().extend_from_slice(part);
                }
                continue;
            }
            let data = match parts.take() {
                Some(mut parts) => {
                    parts.extend_from_slice(part);
                    Cow::Owned(parts)
                }
                None => Cow::Borrowed(part),
            };
            let ends_page = rest.iter().all(|&length| length == 255);
            return Ok(Some(OggPacket { data, granule: page.granule, ends_page, on_last_page: page.last }));
        }
    }

    /// Takes the stream's next page. `inside`: a packet has begun and waits for its rest.
    fn next_page(&mut self, inside: bool) -> Result<bool, Fault> {
        loop {
            let Some((page, end)) = page(self.bytes, self.at)? else {
                let rest = self.bytes.get(self.at..).unwrap_or(&[]);
                if rest.windows(5).any(|five| five == b"OggS\0") {
                    return Err(corrupt(format!("Ogg has bytes that are no page at byte {}", self.at)));
                }
                if inside {
                    return Err(corrupt("Ogg is cut short within a packet"));
                }
                return Ok(false);
            };
            self.at = end;
            if page.first && self.data_started {
                return Err(unsupported("chained Ogg (one stream after another) is not decoded"));
            }
            self.data_started |= !page.first;
            if page.serial != self.serial {
                continue;
            }
            if self.number.is_some_and(|number| page.number != number.wrapping_add(1)) {
                return Err(corrupt(format!("Ogg pages are missing before page {}", page.number)));
            }
            if page.continued != inside {
                return Err(corrupt(format!("Ogg page {} does not continue the page before it", page.number)));
            }
            self.number = Some(page.number);
            (self.page, self.lacing_at, self.body_at) = (Some(page), 0, 0);
            return Ok(true);
        }
    }

    /// A header packet: there must be one.
    pub fn header(&mut self, what: &str) -> Result<Cow<'a, [u8]>, Fault> {
        let packet = self.next()?.ok_or_else(|| corrupt(format!("Ogg is cut short before the {what} header")))?;
        Ok(packet.data)
    }
}

/// FLAC in Ogg (RFC 9639 §10.1).
fn open_flac(mut packets: Packets<'_>) -> Result<Opened<'_>, Fault> {
    let first = packets.header("FLAC")?;
    // 0x7F "FLAC", version (2), headers (2), "fLaC", block header (4), STREAMINFO.
    let block = first.get(17..).unwrap_or(&[]);
    let info = flac::StreamInfo::read(block)?;
    let headers = first.be16(7).unwrap_or(0);
    if headers > 0 {
        for _ in 0..headers {
            packets.header("FLAC")?;
        }
    } else {
        // Their number is unknown: they end with the block that is marked as the last.
        while packets.header("FLAC")?.first().is_some_and(|head| head & 0x80 == 0) {}
    }
    Ok(Opened {
        codec_name: "flac".into(),
        sample_rate_hz: info.sample_rate_hz,
        channels: info.channels,
        codec: info.codec(block)?,
        source: Box::new(FlacPackets { packets, info }),
        declared_frames: info.frames,
    })
}

struct FlacPackets<'a> {
    packets: Packets<'a>,
    info: flac::StreamInfo,
}

impl<'a> Source<'a> for FlacPackets<'a> {
    fn next(&mut self) -> Result<Option<Packet<'a>>, Fault> {
        loop {
            let Some(packet) = self.packets.next()? else { return Ok(None) };
            // ffmpeg ends a stream with an empty packet.
            if !packet.data.is_empty() {
                self.info.check_frame(&packet.data)?;
                return Ok(Some(Packet::of(packet.data)));
            }
        }
    }
}
