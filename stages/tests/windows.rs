//! Windows of frames, proven against a list of where windows start.

use tonearm_schemas::manifest::{FeatureSpec, LogMelSpec, Manifest, Padding, Short, Tail, WindowSpec};
use tonearm_schemas::reject::{Reject, RejectClass, Stage};
use tonearm_stages::features::Features;
use tonearm_stages::windows::{Window, Windows};

const BANDS: usize = 3;

/// Frame `i` holds `i + 1` in every band, so that no frame looks like a filled-up one.
fn frames(count: usize) -> Vec<f32> {
    (0..count).flat_map(|i| [(i + 1) as f32; BANDS]).collect()
}

/// The windows, filled up with frames of 0, and whether the track is shorter than one.
fn cut(spec: &WindowSpec, count: usize, piece: usize) -> Result<(Vec<Window>, bool), Reject> {
    let mut windows = Windows::new(spec, BANDS, 0.016);
    let mut out = Vec::new();
    for piece in frames(count).chunks(piece * BANDS) {
        windows.push(piece, &mut out);
    }
    let short = windows.is_short();
    windows.push(&vec![0.0; windows.missing()? * BANDS], &mut out);
    Ok((out, short))
}

/// The starts of the windows, from the rules of the manifest alone.
fn starts(spec: &WindowSpec, count: usize) -> Vec<usize> {
    let mut starts: Vec<usize> =
        (0..count).step_by(spec.hop).take_while(|start| start + spec.frames <= count).collect();
    let covered = starts.last().map_or(0, |start| start + spec.frames);
    if starts.is_empty() || (spec.tail == Tail::Pad && covered < count) {
        starts.push(starts.len() * spec.hop);
    }
    starts
}

#[test]
fn every_frame_lands_where_the_manifest_says_in_pieces_of_any_size() {
    for (length, hop) in (1..=5).flat_map(|length| (1..=length).map(move |hop| (length, hop))) {
        for tail in [Tail::Drop, Tail::Pad] {
            let spec = WindowSpec { frames: length, hop, tail, short: Short::Pad };
            for (count, piece) in (0..=17).flat_map(|count| [1, 2, 7, 100].map(|piece| (count, piece))) {
                let (windows, short) = cut(&spec, count, piece).unwrap();
                let expected = starts(&spec, count).into_iter().map(|start| {
                    let mut values: Vec<f32> =
                        frames(count).into_iter().skip(start * BANDS).take(length * BANDS).collect();
                    values.resize(length * BANDS, 0.0);
                    Window { start_frame: start as u64, values }
                });
                assert_eq!(windows, expected.collect::<Vec<_>>(), "{spec:?}, {count} frames in pieces of {piece}");
                assert_eq!(short, count < length, "{spec:?}, {count} frames");
            }
        }
    }
}

#[test]
fn a_short_track_is_rejected_with_what_it_has_and_what_is_needed() {
    let spec = WindowSpec { frames: 187, hop: 187, tail: Tail::Drop, short: Short::Reject };
    let Reject { stage, class, message } = cut(&spec, 100, 30).unwrap_err();
    assert_eq!((stage, class), (Stage::Features, RejectClass::TooShort));
    assert_eq!(message, "the track has 100 frames of features (1.60 s), the model needs 187 (2.99 s)");
    assert_eq!(cut(&spec, 187, 30).unwrap().0.len(), 1);
}

fn manifest() -> Manifest {
    Manifest::parse(
        r#"
        schema = "tonearm.model/1"
        name = "tiny"
        version = "1.0.0"
        licence = "ISC"
        source = "made for a test"
        file = "model.pt"
        sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
        audio = { sample_rate_hz = 16000, channels = "mono-mean", resampler = "soxr-hq" }
        windows = { frames = 187, hop = 100, tail = "drop", short = "pad" }
        output = { kind = "scores", labels = ["loud"] }
        [features]
        kind = "log-mel"
        n_fft = 512
        hop = 256
        window = "hann"
        padding = "center-zero"
        power = 2.0
        bands = 96
        mel_scale = "slaney"
        mel_norm = "slaney"
        min_hz = 0.0
        max_hz = 8000.0
        log = { base = "10", scale = 10000.0, offset = 1.0 }
        "#,
    )
    .unwrap()
}

fn features(samples: &[f32], piece: usize) -> (Vec<Window>, bool) {
    let mut features = Features::new(&manifest());
    let mut out = Vec::new();
    for piece in samples.chunks(piece) {
        features.push(piece, &mut out);
    }
    let padded = features.finish(&mut out).unwrap();
    (out, padded)
}

#[test]
fn the_windows_of_a_track_do_not_depend_on_its_pieces() {
    let samples: Vec<f32> = (0..200_000).map(|n| (n as f32 * n as f32 * 1e-6).sin()).collect();
    // 782 frames: the last window that fits starts at frame 500.
    let (windows, padded) = features(&samples, samples.len());
    assert_eq!(windows.iter().map(|window| window.start_frame).collect::<Vec<_>>(), [0, 100, 200, 300, 400, 500]);
    assert!(!padded && windows.iter().all(|window| window.values.len() == 187 * 96));
    for piece in [160, 4_097, 60_000] {
        assert_eq!(features(&samples, piece).0, windows);
    }
}

/// Frames of zeros behind the track would differ: the first frame behind it still sees its last samples.
#[test]
fn a_short_track_goes_on_in_silence_until_it_fills_a_window() {
    let track = [0.5; 2_600];
    let (windows, padded) = features(&track, 1_000);
    let (expected, _) = features(&[track.as_slice(), &[0.0; 45_016]].concat(), 1_000);
    assert!(padded);
    assert_eq!(windows, expected);
    assert!(windows[0].values[11 * 96] > 0.1);
}

#[test]
fn a_tail_goes_on_in_silence_too() {
    let mut manifest = manifest();
    manifest.windows.tail = Tail::Pad;
    manifest.features = match manifest.features {
        FeatureSpec::LogMel(spec) => FeatureSpec::LogMel(LogMelSpec { padding: Padding::None, ..spec }),
    };
    let run = |samples: &[f32]| {
        let (mut features, mut out) = (Features::new(&manifest), Vec::new());
        features.push(samples, &mut out);
        let padded = features.finish(&mut out).unwrap();
        (out, padded)
    };
    // 188 frames: one more than a window, so that 99 follow to fill the next, which starts at frame 100.
    let track = [0.5; 512 + 187 * 256 + 10];
    let silence = vec![0.0; 99 * 256];
    let (windows, padded) = run(&track);
    assert_eq!((windows.len(), padded), (2, false));
    assert_eq!(windows, run(&[track.as_slice(), &silence].concat()).0);
}
