//! Each stage alone, on one thread, beside those who do the same.

use std::{cell::RefCell, fs::File, io::Write, path::PathBuf, rc::Rc};

use serde_json::{Value, json};
use tonearm_benches::{
    CODECS, DEFAULT_MODEL, LONG_S, MINUTE_S, PRECISIONS, RATES_HZ, clock::time, manifest, model, music, pcm, pcm_16k,
    read, resample as resample_all, windows,
};

use crate::{
    Asked,
    contest::{Contest, Entry},
    peers::{Ffmpeg, Peer},
};

const REAL_TIME: &str = "× real time";

fn repeated(repeat: usize, mut work: impl FnMut()) {
    (0..repeat).for_each(|_| work());
}

/// A peer's process, which takes part in several contests.
#[derive(Clone)]
struct Shared(Rc<RefCell<Peer>>);

impl Shared {
    fn start(asked: &Asked, peer: &str) -> Option<Self> {
        asked.python.as_ref().map(|python| Self(Rc::new(RefCell::new(python.start("stage.py", &[peer])))))
    }

    fn entry(&self, name: &str, over: Option<f64>, stage: &'static str, what: Value) -> Entry<'static> {
        let peer = Rc::clone(&self.0);
        Entry::new(name, over, move |repeat| peer.borrow_mut().stage(stage, &what, repeat))
    }
}

pub fn decode(asked: &Asked) -> Vec<Contest> {
    let folder = music().join("long");
    let pyav = Shared::start(asked, "pyav");
    let mut contests = Vec::new();
    for (codec, ending) in CODECS {
        let file = folder.join(format!("music.{ending}"));
        let bytes = read(&file);
        if let Err(why) = tonearm_benches::decode(&bytes) {
            eprintln!("decode {codec} is left out: {why}");
            continue;
        }
        let ours =
            Entry::new("tonearm", None, |repeat| time(|| repeated(repeat, || _ = tonearm_benches::decode(&bytes))));
        let mut entries = vec![ours];
        if let Some(pyav) = &pyav {
            let ffmpeg =
                Ffmpeg::new(&file, if ["alac", "flac", "pcm"].contains(&codec) { "pcm_s16le" } else { "pcm_f32le" });
            entries.push(Entry::new(Ffmpeg::version(), Some(1.0), move |repeat| ffmpeg.decode(repeat)));
            entries.push(pyav.entry("PyAV", Some(1.0), "decode", json!({ "file": file })));
        }
        contests.push(Contest::hold(format!("decode {codec}"), REAL_TIME, LONG_S, asked.rounds, entries));
    }
    contests
}

pub fn resample(asked: &Asked) -> Vec<Contest> {
    let samples = pcm();
    let shared = PcmFile::new(&samples);
    let soxr = Shared::start(asked, "soxr");
    let hold = |(from_hz, to_hz): (u32, u32)| {
        let mut out = Vec::new();
        let ours = Entry::new("tonearm", None, |repeat| {
            time(|| {
                repeated(repeat, || {
                    out.clear();
                    resample_all(&samples, from_hz, to_hz, &mut out);
                });
            })
        });
        let what = json!({ "pcm": shared.path(), "from_hz": from_hz, "to_hz": to_hz });
        let peer = soxr.as_ref().map(|soxr| soxr.entry("soxr HQ", Some(1.0), "resample", what));
        let seconds = samples.len() as f64 / f64::from(from_hz);
        let entries = [Some(ours), peer].into_iter().flatten().collect();
        Contest::hold(format!("resample {from_hz} → {to_hz} Hz"), REAL_TIME, seconds, asked.rounds, entries)
    };
    RATES_HZ.into_iter().map(hold).collect()
}

pub fn log_mel(asked: &Asked) -> Vec<Contest> {
    let (manifest, samples) = (manifest(DEFAULT_MODEL), pcm_16k());
    let shared = PcmFile::new(&samples);
    let mut entries =
        vec![Entry::new("tonearm", None, |repeat| time(|| repeated(repeat, || _ = windows(&manifest, &samples))))];
    for (peer, over) in [("torchaudio", 2.5), ("librosa", 6.0)] {
        let what = json!({ "pcm": shared.path() });
        entries.extend(Shared::start(asked, peer).map(|shared| shared.entry(peer, Some(over), "log-mel", what)));
    }
    vec![Contest::hold("log-mel", REAL_TIME, MINUTE_S, asked.rounds, entries)]
}

pub fn forward(asked: &Asked) -> Vec<Contest> {
    let samples = pcm_16k();
    let peers = ["openvino", "pytorch", "onnxruntime"].map(|peer| (peer, Shared::start(asked, peer)));
    let mut contests = Vec::new();
    // The two networks; their twins differ in the weights alone.
    for name in [DEFAULT_MODEL, "vgg-mtt"] {
        for precision in PRECISIONS {
            let Some((model, manifest)) = model(name, precision) else {
                eprintln!("forward {name} {precision} is left out: this machine does not have it");
                continue;
            };
            let windows = windows(&manifest, &samples);
            let values: Vec<f32> = windows.iter().flat_map(|window| &window.values).copied().collect();
            let shared = PcmFile::new(&values);
            let mut entries = vec![Entry::new("tonearm", None, |repeat| {
                time(|| {
                    repeated(repeat, || {
                        for window in &windows {
                            model.forward(&window.values).expect("scores");
                        }
                    });
                })
            })];
            for (peer, process) in &peers {
                let Some(process) = process else { continue };
                // ONNX Runtime has no bfloat16 on the CPU.
                if (*peer, precision) == ("onnxruntime", "bfloat16") {
                    continue;
                }
                let over = match (*peer, name, precision) {
                    ("openvino", DEFAULT_MODEL, "bfloat16") => Some(1.3),
                    ("openvino", DEFAULT_MODEL, "float32") => Some(1.0),
                    _ => None,
                };
                let what = json!({ "windows": shared.path(), "model": name, "precision": precision });
                entries.push(process.entry(peer, over, "forward", what));
            }
            let stage = format!("forward {name} {precision}");
            contests.push(Contest::hold(stage, "windows/s", windows.len() as f64, asked.rounds, entries));
        }
    }
    contests
}

/// Samples in a file that peers can read, which ends with this value.
struct PcmFile(tempfile::NamedTempFile);

impl PcmFile {
    fn new(samples: &[f32]) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        File::create(file.path()).and_then(|mut file| file.write_all(&bytes)).expect("room for a minute of PCM");
        Self(file)
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}
