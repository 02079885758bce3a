//! AIFF and AIFF-C with uncompressed samples.

use super::{
    Codec, Fault, Opened, corrupt,
    fields::Fields,
    pcm::{Pcm, Sample},
    unsupported,
    wav::Blocks,
};

pub fn open(bytes: &[u8]) -> Result<Opened<'_>, Fault> {
    let is_c = bytes.get(8..12) == Some(b"AIFC");
    let mut at = 12;
    let mut format = None;
    let mut sound = None;
    while let (Some(id), Some(size)) = (bytes.array::<4>(at), bytes.be32(at + 4)) {
        let size = size as usize;
        let body = at + 8;
        let end = body.saturating_add(size);
        match &id {
            b"COMM" if format.is_none() => {
                format = Some(read_common(&bytes[body..end.min(bytes.len())], is_c)?);
            }
            b"SSND" if sound.is_none() => {
                let Some(offset) = bytes.be32(body) else { break };
                let start = body.saturating_add(8).saturating_add(offset as usize);
                sound = Some((start, end.saturating_sub(start)));
            }
            _ => {}
        }
        at = end.saturating_add(size & 1);
    }
    let Some((pcm, sample_rate_hz)) = format else {
        return Err(corrupt(format!("AIFF of {} bytes has no 'COMM' chunk", bytes.len())));
    };
    let Some((start, length)) = sound else {
        return Err(super::no_audio("AIFF has no 'SSND' chunk: no samples"));
    };
    let data = bytes.get(start..).unwrap_or(&[]);
    Ok(Opened {
        codec_name: pcm.codec(),
        sample_rate_hz,
        channels: pcm.channels as u32,
        codec: Codec::Pcm(pcm),
        source: Box::new(Blocks::new("AIFF 'SSND' chunk", data, Some(length as u64), pcm)?),
        declared_frames: None,
    })
}

fn read_common(chunk: &[u8], is_c: bool) -> Result<(Pcm, u32), Fault> {
    let (Some(channels), Some(bits), Some(exponent), Some(mantissa)) =
        (chunk.be16(0), chunk.be16(6), chunk.be16(8), chunk.be64(10))
    else {
        return Err(corrupt(format!("AIFF 'COMM' chunk has {} bytes, 18 are the least", chunk.len())));
    };
    let channels = super::check_channels("AIFF", channels.into())?;
    let rate = extended(exponent, mantissa).ok_or_else(|| corrupt("AIFF has a sample rate that is no number"))?;
    super::check_rate("AIFF", rate)?;
    let kind = if is_c { chunk.array::<4>(18).unwrap_or(*b"NONE") } else { *b"NONE" };
    let bytes = usize::from(bits.div_ceil(8));
    let (sample, big_endian) = match &kind {
        b"NONE" | b"twos" => (Sample::signed(bytes)?, true),
        b"sowt" => (Sample::signed(bytes)?, false),
        b"raw " => (Sample::U8, true),
        b"in24" => (Sample::S24, true),
        b"in32" => (Sample::S32, true),
        b"fl32" | b"FL32" => (Sample::F32, true),
        b"fl64" | b"FL64" => (Sample::F64, true),
        b"ulaw" | b"ULAW" => (Sample::MuLaw, true),
        b"alaw" | b"ALAW" => (Sample::ALaw, true),
        kind => {
            let kind = kind.escape_ascii();
            return Err(unsupported(format!("AIFF-C holds '{kind}'; PCM, float, A-law and µ-law are decoded")));
        }
    };
    Ok((Pcm { sample, big_endian, channels }, rate))
}

/// An 80-bit IEEE 754 extended number, rounded to a whole one.
fn extended(exponent: u16, mantissa: u64) -> Option<u32> {
    // Value = mantissa × 2^(exponent − 16383 − 63).
    let shift = (16383 + 63u32).checked_sub(u32::from(exponent))?;
    let rounded = match shift {
        0 => u128::from(mantissa),
        1..=64 => (u128::from(mantissa) + (1 << (shift - 1))) >> shift,
        _ => 0,
    };
    u32::try_from(rounded).ok()
}
