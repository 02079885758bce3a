//! Vorbis I in Ogg: headers, and which decoded frames the last page cuts off, as ffmpeg's `oggparsevorbis.c` does.

use lewton::{
    audio::{PreviousWindowRight, read_audio_packet_generic},
    header::{HeaderReadError, IdentHeader, SetupHeader, read_header_ident, read_header_setup},
};
use symphonia::core::codecs::audio::well_known::CODEC_ID_VORBIS;

use super::{
    Codec, Fault, Opened, Packet, Source, check_channels, check_rate, corrupt,
    fields::Fields,
    ogg::{OggPacket, Packets},
    vorbis_setup::Setup,
};

pub fn open(mut packets: Packets<'_>) -> Result<Opened<'_>, Fault> {
    // Vorbis I §4.2.2.
    let ident = packets.header("Vorbis identification")?;
    let (Some(channels), Some(sample_rate_hz), Some(sizes)) = (ident.u8(11), ident.le32(12), ident.u8(28)) else {
        return Err(corrupt(format!("Vorbis identification header has {} bytes instead of 30", ident.len())));
    };
    let channels = check_channels("Vorbis", channels.into())? as u32;
    check_rate("Vorbis", sample_rate_hz)?;
    packets.header("Vorbis comment")?;
    let setup = packets.header("Vorbis setup")?;
    let exponents = [sizes & 15, sizes >> 4];
    if exponents[0] < 6 || exponents[1] > 13 || exponents[0] > exponents[1] {
        let [short, long] = exponents;
        return Err(corrupt(format!("Vorbis has blocks of 2^{short} and 2^{long} frames; 2^6 to 2^13 are allowed")));
    }
    let blocks = exponents.map(|exponent| 1 << exponent);
    let Setup { modes, symphonia } = Setup::read(&setup, channels, blocks)?;
    let blocks = blocks.map(i64::from);
    let durations = Durations { blocks, modes, previous: blocks[0] };
    let codec = if symphonia {
        Codec::symphonia(CODEC_ID_VORBIS, sample_rate_hz, channels, Some(&[&ident[..], &setup[..]].concat()))?
    } else {
        Codec::Lewton(Box::new(Lewton::new(&ident, &setup)?))
    };
    Ok(Opened {
        codec_name: "vorbis".into(),
        sample_rate_hz,
        channels,
        codec,
        source: Box::new(AudioPackets { packets, durations, at: 0, on_last_page: None }),
        declared_frames: None,
    })
}

/// Decodes the streams of many channels that symphonia 0.6.1 gets wrong; twice as slow.
pub struct Lewton {
    ident: IdentHeader,
    setup: SetupHeader,
    overlap: PreviousWindowRight,
}

impl Lewton {
    fn new(ident: &[u8], setup: &[u8]) -> Result<Self, Fault> {
        let fault = |error: HeaderReadError| corrupt(format!("Vorbis has a header that cannot be read: {error}"));
        let ident = read_header_ident(ident).map_err(fault)?;
        let blocks = (ident.blocksize_0, ident.blocksize_1);
        let setup = read_header_setup(setup, ident.audio_channels, blocks).map_err(fault)?;
        Ok(Self { ident, setup, overlap: PreviousWindowRight::new() })
    }

    /// One packet's frames, `[channels][frames]`; none for the first packet.
    pub fn decode(&mut self, packet: &[u8]) -> Result<Vec<Vec<f32>>, Fault> {
        read_audio_packet_generic(&self.ident, &self.setup, packet, &mut self.overlap)
            .map_err(|error| corrupt(format!("vorbis has a packet that cannot be decoded: {error}")))
    }
}

/// How many frames a packet completes: a quarter of its own block and of the block before it.
struct Durations {
    /// Frames in a short and in a long block.
    blocks: [i64; 2],
    /// For every mode, whether its block is long.
    modes: Vec<bool>,
    previous: i64,
}

impl Durations {
    fn of(&mut self, packet: &[u8]) -> i64 {
        let Some(&byte) = packet.first() else { return 0 };
        if byte & 1 == 1 {
            return 0;
        }
        let mode_bits = usize::BITS - (self.modes.len() - 1).leading_zeros();
        let mode = usize::from(byte >> 1) & ((1 << mode_bits) - 1);
        let Some(&long) = self.modes.get(mode) else { return 0 };
        if long {
            // The packet itself says what was before it.
            self.previous = self.blocks[usize::from(byte >> (1 + mode_bits) & 1)];
        }
        let current = self.blocks[usize::from(long)];
        let duration = (self.previous + current) / 4;
        self.previous = current;
        duration
    }
}

struct AudioPackets<'a> {
    packets: Packets<'a>,
    durations: Durations,
    /// The granule position where the page before the current one ended.
    at: i64,
    /// Frames of the packets on the last page so far.
    on_last_page: Option<i64>,
}

impl<'a> Source<'a> for AudioPackets<'a> {
    fn next(&mut self) -> Result<Option<Packet<'a>>, Fault> {
        loop {
            let Some(packet) = self.packets.next()? else { return Ok(None) };
            let OggPacket { data, granule, ends_page, on_last_page } = packet;
            let duration = self.durations.of(&data);
            let mut discard = 0;
            if on_last_page {
                let sum = self.on_last_page.get_or_insert(0);
                *sum += duration;
                if ends_page {
                    discard = self.at.saturating_add(*sum).saturating_sub(granule).clamp(0, u32::MAX.into()) as u32;
                }
            } else if ends_page && granule != -1 {
                self.at = granule;
            }
            if !data.is_empty() {
                return Ok(Some(Packet { discard, ..Packet::of(data) }));
            }
        }
    }
}
