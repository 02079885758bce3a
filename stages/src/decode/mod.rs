//! Encoded bytes → mono PCM at the file's own rate, piece by piece: never a whole track in memory.
//!
//! Containers are read here, straight from the record's bytes, because whether a file is whole, which of its frames
//! count and what cannot be decoded right is known only there. Codecs are symphonia's. Frame counts are ffmpeg's.

mod aac;
mod aiff;
mod container;
mod fields;
mod flac;
mod mono;
mod mp3;
mod mp4;
mod mp4_fragments;
mod mp4_samples;
mod ogg;
mod pcm;
mod tags;
mod vorbis;
mod vorbis_setup;
mod wav;

use std::borrow::Cow;

use symphonia::core::{
    audio::{Channels, GenericAudioBufferRef},
    codecs::audio::{AudioCodecId, AudioCodecParameters, AudioDecoder, AudioDecoderOptions},
    errors::Error,
    packet::PacketRef,
    units::{Duration, Timestamp},
};
use tonearm_schemas::reject::{Reject, RejectClass, Stage};

/// What the decoder found in the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AudioInfo {
    /// ffmpeg's name of the codec: `mp3`, `aac`, `flac`, `pcm_s16le`, …
    pub codec: String,
    pub sample_rate_hz: u32,
    pub channels: u32,
}

/// Decodes one record's bytes, which it borrows.
pub struct Decoder<'a> {
    source: Box<dyn Source<'a> + Send + 'a>,
    codec: Codec,
    info: AudioInfo,
    declared_frames: Option<u64>,
    /// Decoded frames still to be left out.
    skip: usize,
    frames: u64,
}

impl<'a> Decoder<'a> {
    /// Finds the container, its audio track and the codec. The bytes decide; the hint only names what is not known.
    pub fn open(bytes: &'a [u8], content_type_hint: Option<&str>) -> Result<Self, Reject> {
        let opened = container::open(bytes, content_type_hint).map_err(Reject::from)?;
        Ok(Self {
            source: opened.source,
            codec: opened.codec,
            info: AudioInfo {
                codec: opened.codec_name,
                sample_rate_hz: opened.sample_rate_hz,
                channels: opened.channels,
            },
            declared_frames: opened.declared_frames,
            skip: 0,
            frames: 0,
        })
    }

    pub fn info(&self) -> &AudioInfo {
        &self.info
    }

    /// Appends the next piece to `mono`: [frames], the mean over channels, −1..=1. A piece may be empty.
    /// `false`: there is no more.
    pub fn next(&mut self, mono: &mut Vec<f32>) -> Result<bool, Reject> {
        let seconds = self.frames as f64 / f64::from(self.info.sample_rate_hz);
        self.next_piece(mono).map_err(|mut fault| {
            if fault.class == RejectClass::CorruptAudio {
                fault.message.push_str(&format!(" (at {seconds:.3} s)"));
            }
            fault.into()
        })
    }

    /// Frames given so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    fn next_piece(&mut self, mono: &mut Vec<f32>) -> Result<bool, Fault> {
        let Some(packet) = self.source.next()? else {
            self.check_length()?;
            return Ok(false);
        };
        let before = mono.len();
        match &mut self.codec {
            Codec::Pcm(pcm) => {
                pcm.append(&packet.data, mono);
            }
            Codec::Lewton(codec) => {
                let planes = codec.decode(&packet.data)?;
                let decoded = planes.first().map_or(0, Vec::len);
                mono::append_planes(&planes, kept(&packet, decoded, &mut self.skip), mono);
            }
            Codec::Symphonia(codec) => {
                let packet_ref = PacketRef::new(0, Timestamp::ZERO, Duration::ZERO, &packet.data);
                let buffer = codec.decode_ref(&packet_ref).map_err(|error| decode_fault(&self.info, error))?;
                check_form(&self.info, &buffer)?;
                let frames = kept(&packet, buffer.frames(), &mut self.skip);
                mono::append(&buffer, frames, mono);
            }
        }
        self.frames += (mono.len() - before) as u64;
        Ok(true)
    }

    fn check_length(&self) -> Result<(), Fault> {
        let codec = &self.info.codec;
        match self.declared_frames {
            Some(declared) if self.frames < declared => {
                Err(corrupt(format!("{codec} is cut short: {declared} frames are declared, {} are there", self.frames)))
            }
            _ if self.frames == 0 => Err(no_audio(format!("the {codec} track holds not one frame"))),
            _ => Ok(()),
        }
    }
}

/// Decodes everything and keeps no samples: what is in the bytes, and exactly how many frames.
pub fn inspect(bytes: &[u8], content_type_hint: Option<&str>) -> Result<(AudioInfo, u64), Reject> {
    let mut decoder = Decoder::open(bytes, content_type_hint)?;
    let mut piece = Vec::new();
    while decoder.next(&mut piece)? {
        piece.clear();
    }
    Ok((decoder.info, decoder.frames))
}

/// A container's audio track, ready to be decoded.
struct Opened<'a> {
    codec_name: String,
    sample_rate_hz: u32,
    channels: u32,
    codec: Codec,
    source: Box<dyn Source<'a> + Send + 'a>,
    /// Frames that the stream says it has.
    declared_frames: Option<u64>,
}

/// The packets of one track in order.
trait Source<'a> {
    fn next(&mut self) -> Result<Option<Packet<'a>>, Fault>;
}

/// One codec packet, and what its decoded frames mean to ffmpeg (`AV_PKT_DATA_SKIP_SAMPLES`, `AV_PKT_FLAG_DISCARD`).
struct Packet<'a> {
    data: Cow<'a, [u8]>,
    /// Frames to leave out from here on, over as many packets as it takes.
    skip: u32,
    /// Frames to leave out at this packet's end.
    discard: u32,
    /// Decode it for what follows, and leave all of it out.
    drop: bool,
}

impl<'a> Packet<'a> {
    fn of(data: Cow<'a, [u8]>) -> Self {
        Self { data, skip: 0, discard: 0, drop: false }
    }
}

/// Which of a packet's decoded frames count.
fn kept(packet: &Packet<'_>, decoded: usize, skip: &mut usize) -> std::ops::Range<usize> {
    *skip += packet.skip as usize;
    let start = decoded.min(*skip);
    *skip -= start;
    let left = decoded - start;
    if packet.drop || left == 0 {
        return 0..0;
    }
    // ffmpeg ignores a discard that is longer than what is left.
    let discard = if packet.discard as usize <= left { packet.discard as usize } else { 0 };
    start..decoded - discard
}

enum Codec {
    Pcm(pcm::Pcm),
    Symphonia(Box<dyn AudioDecoder>),
    Lewton(Box<vorbis::Lewton>),
}

impl Codec {
    fn symphonia(id: AudioCodecId, rate: u32, channels: u32, extra: Option<&[u8]>) -> Result<Self, Fault> {
        let mut params = AudioCodecParameters::new();
        params.for_codec(id).with_sample_rate(rate).with_channels(Channels::Discrete(channels as u16));
        if let Some(extra) = extra {
            params.with_extra_data(extra.into());
        }
        symphonia::default::get_codecs()
            .make_audio_decoder(&params, &AudioDecoderOptions::default())
            .map(Self::Symphonia)
            .map_err(|error| match error {
                Error::Unsupported(what) => unsupported(format!("the decoder does not take this stream: {what}")),
                error => corrupt(format!("the decoder does not take this stream's configuration: {error}")),
            })
    }
}

fn decode_fault(info: &AudioInfo, error: Error) -> Fault {
    let codec = &info.codec;
    match error {
        Error::Unsupported(what) => unsupported(format!("{codec} uses what is not decoded: {what}")),
        Error::IoError(_) => corrupt(format!("{codec} has a packet that ends early")),
        error => corrupt(format!("{codec} has a packet that cannot be decoded: {error}")),
    }
}

fn check_form(info: &AudioInfo, buffer: &GenericAudioBufferRef<'_>) -> Result<(), Fault> {
    let (rate, channels) = (buffer.spec().rate(), buffer.num_planes());
    if rate == info.sample_rate_hz && channels == info.channels as usize {
        return Ok(());
    }
    let AudioInfo { codec, sample_rate_hz, channels: was } = info;
    Err(corrupt(format!("{codec} changes from {sample_rate_hz} Hz, {was} channels to {rate} Hz, {channels} channels")))
}

/// Why bytes are rejected.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Fault {
    class: RejectClass,
    message: String,
}

impl From<Fault> for Reject {
    fn from(fault: Fault) -> Self {
        Reject::new(Stage::Decode, fault.class, fault.message)
    }
}

fn corrupt(message: impl Into<String>) -> Fault {
    Fault { class: RejectClass::CorruptAudio, message: message.into() }
}

fn unsupported(message: impl Into<String>) -> Fault {
    Fault { class: RejectClass::UnsupportedFormat, message: message.into() }
}

fn no_audio(message: impl Into<String>) -> Fault {
    Fault { class: RejectClass::NoAudioTrack, message: message.into() }
}

fn check_channels(what: &str, channels: u32) -> Result<usize, Fault> {
    match channels {
        0 => Err(corrupt(format!("{what} states 0 channels"))),
        1..=8 => Ok(channels as usize),
        _ => Err(unsupported(format!("{what} has {channels} channels; 1 to 8 are decoded"))),
    }
}

fn check_rate(what: &str, rate: u32) -> Result<(), Fault> {
    match rate {
        0 => Err(corrupt(format!("{what} states a sample rate of 0 Hz"))),
        _ => Ok(()),
    }
}
