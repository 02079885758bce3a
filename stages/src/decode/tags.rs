//! Tags that stand before or after the audio of any format: ID3v2, ID3v1, APEv2, Lyrics3.

use super::fields::Fields;

/// The length of the ID3v2 tag (any version) that starts at `at`. ID3v2.4 structure §3.1.
pub fn id3v2(bytes: &[u8], at: usize) -> Option<usize> {
    let [b'I', b'D', b'3', major, minor, flags, sizes @ ..] = bytes.array::<10>(at)? else { return None };
    if major == 0xFF || minor == 0xFF || sizes.iter().any(|&b| b >= 0x80) {
        return None;
    }
    let size = sizes.iter().fold(0usize, |size, &b| size << 7 | usize::from(b));
    let footer = if flags & 0x10 != 0 { 10 } else { 0 };
    Some(10 + size + footer)
}

/// Where the bytes after all leading ID3v2 tags start.
pub fn skip_leading(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(length) = id3v2(bytes, at) {
        at += length;
    }
    at.min(bytes.len())
}

/// Any tag that starts at `at`, as found between two files written one after the other.
pub fn any(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    if rest.starts_with(b"TAG") && rest.len() >= 128 {
        return Some(128);
    }
    if rest.starts_with(b"APETAGEX") {
        // APEv2: with its header first, `size` counts everything but the header.
        let size = rest.le32(12)? as usize;
        let is_header = rest.le32(20)? & 0x2000_0000 != 0;
        return Some(if is_header { 32 + size } else { 32 });
    }
    id3v2(bytes, at)
}

/// Where trailing ID3v1, APEv2 and Lyrics3v2 tags start: the end of the audio.
pub fn skip_trailing(bytes: &[u8]) -> usize {
    let mut end = bytes.len();
    loop {
        let rest = &bytes[..end];
        let tag = if end >= 128 && rest[end - 128..].starts_with(b"TAG") {
            128
        } else if end >= 32 && rest[end - 32..].starts_with(b"APETAGEX") {
            let size = rest.le32(end - 20).unwrap_or(0) as usize;
            let has_header = rest.le32(end - 12).unwrap_or(0) & 0x8000_0000 != 0;
            size.saturating_add(if has_header { 32 } else { 0 }).max(32)
        } else if end >= 15 && rest[end - 9..] == *b"LYRICS200" {
            // Six decimal digits: the tag's length without themselves and the end mark.
            let digits = std::str::from_utf8(&rest[end - 15..end - 9]).unwrap_or("");
            digits.parse::<usize>().map_or(0, |size| size + 15)
        } else {
            0
        };
        if tag == 0 || tag > end {
            return end;
        }
        end -= tag;
    }
}
