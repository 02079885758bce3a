//! The decoder against ffmpeg's figures for small files of every form, and against WAV and AIFF written here by hand.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use tonearm_schemas::reject::{Reject, RejectClass};
use tonearm_stages::decode::{AudioInfo, Decoder, inspect};

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/decode").join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn table(name: &str) -> Vec<Vec<String>> {
    let text = String::from_utf8(fixture(name)).unwrap();
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn decode(bytes: &[u8]) -> Result<(AudioInfo, Vec<f32>), Reject> {
    let mut decoder = Decoder::open(bytes, None)?;
    let mut mono = Vec::new();
    while decoder.next(&mut mono)? {}
    assert_eq!(decoder.frames(), mono.len() as u64);
    Ok((decoder.info().clone(), mono))
}

fn rejected(bytes: &[u8]) -> Reject {
    match decode(bytes) {
        Ok((info, mono)) => panic!("decoded {} frames of {}", mono.len(), info.codec),
        Err(reject) => reject,
    }
}

#[test]
fn every_form_has_ffmpegs_frames_and_samples() {
    for row in table("decoded.tsv") {
        let [file, codec, rate, channels, frames, places] = &row[..] else { panic!("{row:?}") };
        let (info, mono) = decode(&fixture(file)).unwrap_or_else(|reject| panic!("{file}: {reject}"));
        assert_eq!(info.codec, *codec, "{file}");
        assert_eq!(info.sample_rate_hz.to_string(), *rate, "{file}");
        assert_eq!(info.channels.to_string(), *channels, "{file}");
        assert_eq!(mono.len().to_string(), *frames, "{file}");
        // Lossy codecs are computed in float in another order than in ffmpeg; the table has 7 digits.
        let tolerance = if matches!(&codec[..], "mp3" | "aac" | "vorbis") { 1e-4 } else { 1e-7 };
        for place in places.split(' ') {
            let (at, value) = place.split_once(':').unwrap();
            let (is, should) = (mono[at.parse::<usize>().unwrap()], value.parse::<f32>().unwrap());
            assert!((is - should).abs() <= tolerance, "{file}: {is} instead of {should} at frame {at}");
        }
    }
}

#[test]
fn what_cannot_be_decoded_right_is_refused_by_name() {
    for row in table("rejected.tsv") {
        let [file, class, words] = &row[..] else { panic!("{row:?}") };
        let reject = rejected(&fixture(file));
        assert_eq!(reject.class.as_str(), class, "{file}: {reject}");
        assert!(reject.message.contains(words), "{file}: {reject}");
    }
}

#[test]
fn inspect_counts_what_decoding_gives() {
    for row in table("decoded.tsv") {
        let bytes = fixture(&row[0]);
        let (info, mono) = decode(&bytes).unwrap();
        assert_eq!(inspect(&bytes, None).unwrap(), (info, mono.len() as u64), "{}", row[0]);
    }
}

#[test]
fn pieces_are_small_whatever_the_length() {
    for row in table("decoded.tsv") {
        let bytes = fixture(&row[0]);
        let mut decoder = Decoder::open(&bytes, None).unwrap();
        let mut piece = Vec::new();
        while decoder.next(&mut piece).unwrap() {
            assert!(piece.len() <= 8192, "{}: a piece of {} frames", row[0], piece.len());
            piece.clear();
        }
    }
}

#[test]
fn nothing_is_an_empty_record_and_noise_is_no_format() {
    assert_eq!(rejected(b"").class, RejectClass::EmptyRecord);
    let mut random = Random(1);
    let noise: Vec<u8> = (0..100_000).map(|_| random.next() as u8).collect();
    let text = "<!DOCTYPE html><html><body>not music</body></html>".repeat(200);
    for bytes in [&noise[..], text.as_bytes(), &[0; 50_000], &[0xFF; 50_000], b"ID3\x03\0\0\0\0\0\0", b"\xFF"] {
        assert_eq!(rejected(bytes).class, RejectClass::UnsupportedFormat);
    }
}

#[test]
fn a_message_shows_the_first_bytes_and_the_content_type() {
    let Err(reject) = Decoder::open(b"plain words", Some("audio/mpeg\n")) else { panic!("opened") };
    assert!(reject.message.contains("\"plain wo\""), "{reject}");
    assert!(reject.message.contains("audio/mpeg\\n"), "{reject}");
}

#[test]
fn a_content_type_never_overrules_the_bytes() {
    let bytes = fixture("flac-16.flac");
    let decoder = Decoder::open(&bytes, Some("audio/mpeg")).unwrap_or_else(|reject| panic!("{reject}"));
    assert_eq!(decoder.info().codec, "flac");
}

/// A WAV file: format tag, channels, bits, bytes of a sample's container, declared length, samples.
fn wav(tag: u16, channels: u16, bits: u16, container: u16, declared: Option<u32>, data: &[u8]) -> Vec<u8> {
    let align = channels * container;
    let mut file = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0".to_vec();
    for field in [tag, channels] {
        file.extend(field.to_le_bytes());
    }
    for field in [32_000, 32_000 * u32::from(align)] {
        file.extend(field.to_le_bytes());
    }
    for field in [align, bits] {
        file.extend(field.to_le_bytes());
    }
    // A chunk of odd length before the data, with its pad byte.
    file.extend(b"junk\x03\0\0\0abc\0data");
    file.extend(declared.unwrap_or(data.len() as u32).to_le_bytes());
    file.extend(data);
    file
}

#[test]
fn wav_samples_are_exact_in_every_width() {
    let floats: Vec<u8> = [0.1f32, -1.5, 0.0, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let doubles: Vec<u8> = [0.25f64, -1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let shorts: Vec<u8> = [1i16, -32768, 32767, 0].iter().flat_map(|x| x.to_le_bytes()).collect();
    // Format tag, bits, bytes of a sample, samples as stored, samples as decoded.
    type Case<'a> = (u16, u16, u16, &'a [u8], &'a [f32]);
    let cases: [Case<'_>; 8] = [
        (1, 8, 1, &[0, 128, 255], &[-1.0, 0.0, 127.0 / 128.0]),
        (1, 16, 2, &shorts, &[1.0 / 32768.0, -1.0, 32767.0 / 32768.0, 0.0]),
        (1, 24, 3, &[1, 0, 0, 0, 0, 0x80], &[1.0 / 8_388_608.0, -1.0]),
        // 24 bits in 4 bytes: the value stands in the upper ones.
        (1, 24, 4, &[0, 1, 0, 0, 0, 0, 0, 0x80], &[1.0 / 8_388_608.0, -1.0]),
        (1, 32, 4, &[0, 1, 0, 0, 0, 0, 0, 0x80], &[1.0 / 8_388_608.0, -1.0]),
        (3, 32, 4, &floats, &[0.1, -1.5, 0.0, 1.0]),
        (3, 64, 8, &doubles, &[0.25, -1.0]),
        (7, 8, 1, &[0xFF, 0x00, 0x80], &[0.0, -32124.0 / 32768.0, 32124.0 / 32768.0]),
    ];
    for (tag, bits, container, data, expected) in cases {
        let (info, mono) = decode(&wav(tag, 1, bits, container, None, data)).unwrap();
        assert_eq!(mono, expected, "{}", info.codec);
        assert_eq!((info.sample_rate_hz, info.channels), (32_000, 1));
    }
}

#[test]
fn mono_is_the_mean_over_one_to_eight_channels() {
    for channels in 1..=8u16 {
        let frame: Vec<i16> = (1..=channels as i16).map(|c| c * 1000).collect();
        let data: Vec<u8> = frame.repeat(3).iter().flat_map(|x| x.to_le_bytes()).collect();
        let (info, mono) = decode(&wav(1, channels, 16, 2, None, &data)).unwrap();
        let mean = frame.iter().map(|&x| f32::from(x) / 32768.0).sum::<f32>() / f32::from(channels);
        assert_eq!(mono, [mean; 3]);
        assert_eq!(info.channels, u32::from(channels));
    }
    let reject = rejected(&wav(1, 9, 16, 2, None, &[0; 18]));
    assert_eq!(reject.class, RejectClass::UnsupportedFormat);
    assert!(reject.message.contains("9 channels"), "{reject}");
}

#[test]
fn a_wav_says_when_it_is_cut_short_unless_a_pipe_made_up_its_length() {
    let reject = rejected(&wav(1, 1, 16, 2, Some(2000), &[0; 1000]));
    assert_eq!(reject.class, RejectClass::CorruptAudio);
    assert!(reject.message.contains("1000 frames are declared, 500 are there"), "{reject}");
    for made_up in [0, 0xFFFF_FFFF, 0x7FFF_F000] {
        assert_eq!(decode(&wav(1, 1, 16, 2, Some(made_up), &[0; 1001])).unwrap().1.len(), 500);
    }
    assert_eq!(rejected(&wav(1, 1, 16, 2, None, &[])).class, RejectClass::NoAudioTrack);
}

#[test]
fn what_follows_the_samples_of_a_wav_is_not_played() {
    let mut bytes = wav(1, 1, 16, 2, None, &[0; 100]);
    bytes.extend(b"LIST\x04\0\0\0INFO");
    assert_eq!(decode(&bytes).unwrap().1.len(), 50);
}

/// An AIFF-C file with 16-bit samples.
fn aiff(exponent: u16, mantissa: u64, kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut file = b"FORM\0\0\0\0AIFCCOMM\0\0\0\x18\0\x01\0\0\0\x02\0\x10".to_vec();
    file.extend(exponent.to_be_bytes());
    file.extend(mantissa.to_be_bytes());
    file.extend(kind);
    file.extend([0, 0]);
    file.extend(b"SSND");
    file.extend((data.len() as u32 + 8).to_be_bytes());
    file.extend([0; 8]);
    file.extend(data);
    file
}

#[test]
fn aiff_rates_and_byte_orders_are_read() {
    // 44100 = 0xAC44 × 2^0: exponent 16383 + 15, the mantissa's top bit set.
    let (exponent, mantissa) = (16383 + 15, 0xAC44 << 48);
    for (kind, data) in [(b"NONE", [0x40, 0, 0xC0, 0]), (b"sowt", [0, 0x40, 0, 0xC0])] {
        let (info, mono) = decode(&aiff(exponent, mantissa, kind, &data)).unwrap();
        assert_eq!(info.sample_rate_hz, 44_100);
        assert_eq!(mono, [0.5, -0.5]);
    }
    assert_eq!(rejected(&aiff(0x7FFF, u64::MAX, b"NONE", &[0; 4])).class, RejectClass::CorruptAudio);
    assert_eq!(rejected(&aiff(exponent, mantissa, b"ima4", &[0; 4])).class, RejectClass::UnsupportedFormat);
}

/// An MPEG-1 frame of 128 kbit/s at 44.1 kHz, stereo, whose side information is all zero, with `tag` at `at`.
fn tag_frame(at: usize, tag: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 417];
    frame[..4].copy_from_slice(&[0xFF, 0xFB, 0x90, 0x44]);
    frame[at..at + tag.len()].copy_from_slice(tag);
    frame
}

#[test]
fn vbri_and_nameless_xing_frames_are_no_audio_and_trim_nothing() {
    let music = fixture("no-tag.mp3");
    let plain = decode(&music).unwrap().1;
    let frames = (plain.len() / 1152) as u8;
    let vbri = [b"VBRI\0\x01\0\0\0\0\0\0\0\0".as_slice(), &[0, 0, 0, frames]].concat();
    let xing = [b"Xing\0\0\0\x01\0\0\0".as_slice(), &[frames]].concat();
    for (at, tag) in [(36, vbri), (36, xing)] {
        let bytes = [tag_frame(at, &tag), music.clone()].concat();
        assert_eq!(decode(&bytes).unwrap().1.len(), plain.len());
    }
}

#[test]
fn tags_between_two_mp3_files_are_passed_over() {
    let music = fixture("no-tag.mp3");
    let tag = [b"ID3\x03\0\0\0\0\x01\0".as_slice(), &[b'x'; 128]].concat();
    let frames = decode(&music).unwrap().1.len();
    let bytes = [&music[..], &tag, &music].concat();
    // ffmpeg loses the frame after the tag.
    assert_eq!(decode(&bytes).unwrap().1.len(), 2 * frames - 1152);
}

#[test]
fn bytes_that_are_no_frame_within_an_mp3_are_damage_with_a_time() {
    let music = fixture("no-tag.mp3");
    let mut bytes = music.clone();
    let half = (music.len() / 2..).find(|&at| music[at..].starts_with(&[0xFF, 0xFB])).unwrap();
    bytes[half..half + 4].copy_from_slice(b"gone");
    let reject = rejected(&bytes);
    assert_eq!(reject.class, RejectClass::CorruptAudio);
    assert!(reject.message.contains("(at 0."), "{reject}");
}

#[test]
fn a_change_of_rate_or_channels_within_an_mp3_is_refused() {
    for (second, words) in [("vbr-mono-22050.mp3", "22050 Hz"), ("mpeg25-8000.mp3", "8000 Hz")] {
        let bytes = [fixture("no-tag.mp3"), fixture(second)].concat();
        let reject = rejected(&bytes);
        assert_eq!(reject.class, RejectClass::CorruptAudio);
        assert!(reject.message.contains(words), "{reject}");
    }
}

#[test]
fn a_flipped_bit_in_flac_or_ogg_is_found() {
    for file in ["flac-16.flac", "flac.oga", "stereo-44100.ogg"] {
        let whole = fixture(file);
        for at in (whole.len() * 8 / 10..whole.len() - 20).step_by(31) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            assert_eq!(rejected(&bytes).class, RejectClass::CorruptAudio, "{file}, byte {at}");
        }
    }
}

#[test]
fn a_file_that_states_its_length_is_never_decoded_in_part() {
    let files = [
        "flac-16.flac",
        "flac.oga",
        "alac-16.m4a",
        "mono-16000.m4a",
        "faststart.m4a",
        "s24.aiff",
        "six.wav",
        "cbr.mp3",
    ];
    for file in files {
        let whole = fixture(file);
        for tenth in 1..10 {
            let reject = rejected(&whole[..whole.len() * tenth / 10]);
            assert_eq!(reject.class, RejectClass::CorruptAudio, "{file}, {tenth}/10: {reject}");
        }
    }
}

struct Random(u64);

impl Random {
    /// xorshift64: the same numbers in every run.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[test]
fn damaged_bytes_end_in_samples_or_a_reject_in_bounded_time() {
    let mut random = Random(0x746F_6E65_6172_6D31);
    let files = [table("decoded.tsv"), table("rejected.tsv")].concat();
    for row in files {
        let whole = fixture(&row[0]);
        for _ in 0..40 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random.below(6) {
                // Half of the damage falls on the headers.
                let limit = if random.below(2) == 0 { bytes.len().min(400) } else { bytes.len() };
                let at = random.below(limit);
                match random.below(5) {
                    0 => bytes[at] = random.next() as u8,
                    1 => bytes[at] ^= 1 << random.below(8),
                    2 => bytes[at..].iter_mut().take(4).for_each(|byte| *byte = 0xFF),
                    3 => bytes.insert(at, 0),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let started = Instant::now();
            let _ = decode(&bytes);
            // Milliseconds, if nothing goes round in circles.
            assert!(started.elapsed() < Duration::from_secs(10), "{}", row[0]);
        }
    }
}
