//! Audio made up on the spot.

use std::f32::consts::TAU;

/// A WAV file of 16-bit PCM: a chord above `base_hz` that decays every half second, so that each `base_hz` gives other
/// scores. `[frames × channels]` interleaved.
pub fn wav(base_hz: f32, seconds: f32, sample_rate_hz: u32, channels: u16) -> Vec<u8> {
    let frames = (seconds * sample_rate_hz as f32).round() as usize;
    let mut samples = Vec::with_capacity(frames * usize::from(channels));
    for frame in 0..frames {
        let time = frame as f32 / sample_rate_hz as f32;
        let envelope = 0.25 * (-6.0 * (time % 0.5)).exp();
        for channel in 0..channels {
            let hz = base_hz * (1.0 + 0.25 * f32::from(channel));
            let chord = (TAU * hz * time).sin() + 0.5 * (TAU * 1.5 * hz * time).sin();
            samples.push((envelope * chord * 32767.0) as i16);
        }
    }
    let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    // 1: WAVE_FORMAT_PCM
    riff(1, 16, sample_rate_hz, channels, &data)
}

/// A mono WAV file of 32-bit float PCM: the samples as they are.
pub fn wav_of(samples: &[f32], sample_rate_hz: u32) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    // 3: WAVE_FORMAT_IEEE_FLOAT
    riff(3, 32, sample_rate_hz, 1, &data)
}

/// The canonical 44 bytes (Multimedia Programming Interface and Data Specifications 1.0), then `data`.
fn riff(format: u16, bits: u16, sample_rate_hz: u32, channels: u16, data: &[u8]) -> Vec<u8> {
    let block = channels * bits / 8;
    let length = u32::try_from(data.len()).expect("a WAV file holds less than 4 GiB");
    let mut file = Vec::with_capacity(44 + data.len());
    file.extend(b"RIFF");
    file.extend((36 + length).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16u32.to_le_bytes());
    file.extend(format.to_le_bytes());
    file.extend(channels.to_le_bytes());
    file.extend(sample_rate_hz.to_le_bytes());
    file.extend((sample_rate_hz * u32::from(block)).to_le_bytes());
    file.extend(block.to_le_bytes());
    file.extend(bits.to_le_bytes());
    file.extend(b"data");
    file.extend(length.to_le_bytes());
    file.extend(data);
    file
}

/// The pieces of music that come with the checkout, by name; those called `broken…` left out.
pub fn music() -> Vec<(String, Vec<u8>)> {
    let folder = crate::root().join("tests/music");
    let mut pieces = Vec::new();
    for entry in std::fs::read_dir(&folder).into_iter().flatten() {
        let path = entry.expect("tests/music can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_audio = [".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aac", ".aiff"].iter().any(|end| name.ends_with(end));
        if is_audio && !name.starts_with("broken") {
            pieces.push((name, std::fs::read(&path).expect("tests/music can be read")));
        }
    }
    pieces.sort();
    pieces
}
