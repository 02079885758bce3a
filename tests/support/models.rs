//! Models made on the spot, for tests that ask nothing of scores but that they are a record's own. A TorchScript
//! archive is a zip of text and a pickle, so making one takes neither Python nor libtorch.

use std::{
    fs,
    io::{Cursor, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tonearm_schemas::manifest::{
    AudioSpec, Channels, FILE_NAME, FeatureSpec, LogBase, LogMelSpec, LogSpec, Manifest, MelNorm, MelScale, OutputKind,
    OutputSpec, Padding, ResamplerKind, SCHEMA, Short, Tail, WindowFunction, WindowSpec,
};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Of one window.
pub const WINDOW: Duration = Duration::from_millis(400);
pub const SAMPLE_RATE_HZ: u32 = 8_000;
const HOP: usize = 32;
/// Frames of a window.
pub const FRAMES: usize = SAMPLE_RATE_HZ as usize * 4 / 10 / HOP;
pub const BANDS: usize = 16;
pub const LABELS: [&str; 4] = ["lowest", "low", "high", "highest"];

/// The mean of each quarter of the bands, `[1 × labels]`, in operations that the program compiles.
pub const MEANS: &str = "torch.mean(torch.reshape(x, [1, 100, 4, 4]), [1, 3])";

/// A model in a repository of its own.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: String,
    pub repository: PathBuf,
}

/// A model that costs next to nothing: how loud each quarter of the bands is.
pub fn tiny() -> Model {
    model("tiny", &[&format!("return torch.sigmoid({MEANS})")], OutputKind::Scores)
}

/// [`tiny`], but each window of 0.4 s keeps its worker busy for `per_window`, on any machine: a clock is looked at
/// until the time is over. The program runs it by libtorch.
pub fn slow(per_window: Duration) -> Model {
    busy(&format!("slow-{}", per_window.as_millis()), &[&format!("limit = {}", per_window.as_nanos())])
}

/// [`slow`], but for windows of silence, which are as quick as those of [`tiny`].
pub fn stuck_by_sound(per_window: Duration) -> Model {
    let limit = format!("  limit = {}", per_window.as_nanos());
    // The bands of silence are −3, those of a chord up to 3; the program warms up on zeros.
    let lines = ["if bool(torch.gt(torch.max(x), 0.1)):", &limit, "else:", "  limit = 0"];
    busy(&format!("stuck-{}", per_window.as_millis()), &lines)
}

/// A model that keeps its worker busy for `limit` nanoseconds, which these lines set.
fn busy(name: &str, limit: &[&str]) -> Model {
    let wait =
        ["start = ops.prim.TimePoint()", "while torch.lt(torch.sub(ops.prim.TimePoint(), start), limit):", "  pass"];
    let scores = format!("return torch.sigmoid({MEANS})");
    model(name, &[limit, &wait, &[&scores]].concat(), OutputKind::Scores)
}

/// A model whose `forward` has these lines. `x` is `[1 × FRAMES × BANDS]`, what it returns `[1 × LABELS]`.
pub fn model(name: &str, forward: &[&str], output: OutputKind) -> Model {
    let archive = archive(&[], forward);
    let manifest = manifest(name, output, format!("{:x}", Sha256::digest(&archive)));
    let text = manifest.to_toml();
    // Named after what is in it: made once, by whoever comes first, and never changed.
    let content = &format!("{:x}", Sha256::digest(&text))[..16];
    let all = crate::root().join("target/test-models");
    let repository = all.join(content);
    if !repository.is_dir() {
        fs::create_dir_all(&all).expect("a folder for models");
        let unfinished = tempfile::tempdir_in(&all).expect("a folder");
        write(unfinished.path(), &manifest, &archive);
        if let Err(e) = fs::rename(unfinished.path(), &repository) {
            assert!(repository.is_dir(), "{}: {e}", repository.display());
        }
    }
    Model { name: name.to_owned(), repository }
}

/// A model of scores in the empty folder `repository`, whose `forward` has these lines. Weights of these shapes are
/// `self.w0`, `self.w1`, … for it.
pub fn with_weights(repository: &Path, shapes: &[&[usize]], forward: &[&str]) -> Model {
    let archive = archive(shapes, forward);
    let manifest = manifest("large", OutputKind::Scores, format!("{:x}", Sha256::digest(&archive)));
    write(repository, &manifest, &archive);
    Model { name: manifest.name, repository: repository.to_owned() }
}

/// Puts a model into a repository.
fn write(repository: &Path, manifest: &Manifest, archive: &[u8]) {
    let folder = repository.join(&manifest.name).join(manifest.version.to_string());
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join(&manifest.file), archive).expect("a model");
    fs::write(folder.join(FILE_NAME), manifest.to_toml()).expect("a manifest");
}

fn manifest(name: &str, output: OutputKind, sha256: String) -> Manifest {
    Manifest {
        schema: SCHEMA.to_owned(),
        name: name.to_owned(),
        version: "1.0.0".parse().expect("a version"),
        licence: "MIT OR Apache-2.0".to_owned(),
        source: "made for a test".to_owned(),
        file: "model.pt".to_owned(),
        sha256,
        audio: AudioSpec {
            sample_rate_hz: SAMPLE_RATE_HZ,
            channels: Channels::MonoMean,
            resampler: ResamplerKind::SoxrHq,
        },
        features: FeatureSpec::LogMel(LogMelSpec {
            n_fft: 4 * HOP,
            hop: HOP,
            window: WindowFunction::Hann,
            padding: Padding::CenterZero,
            power: 2.0,
            bands: BANDS,
            mel_scale: MelScale::Htk,
            mel_norm: MelNorm::None,
            min_hz: 0.0,
            max_hz: SAMPLE_RATE_HZ as f32 / 2.0,
            // Silence is −3, the loudest about 3: no score is near 0 or 1.
            log: LogSpec { base: LogBase::Ten, scale: 1.0, offset: 1e-3 },
        }),
        windows: WindowSpec { frames: FRAMES, hop: FRAMES, tail: Tail::Drop, short: Short::Pad },
        output: OutputSpec { kind: output, labels: LABELS.map(str::to_owned).to_vec() },
        bfloat16: None,
    }
}

/// What `torch.jit.save` writes of a module with weights of these shapes.
fn archive(shapes: &[&[usize]], forward: &[&str]) -> Vec<u8> {
    let mut text = "class Model(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n".to_owned();
    (0..shapes.len()).for_each(|number| text += &format!("  w{number} : Tensor\n"));
    text += "  def forward(self: __torch__.Model,\n    x: Tensor) -> Tensor:\n";
    forward.iter().for_each(|line| text += &format!("    {line}\n"));
    // Python's pickle, protocol 2: an instance of __torch__.Model with {"training": False, "w0": …}; an empty tuple.
    let mut data = b"\x80\x02c__torch__\nModel\nq\x00)\x81}(X\x08\x00\x00\x00training\x89".to_vec();
    for (number, shape) in shapes.iter().enumerate() {
        data.extend(pickled_text(&format!("w{number}")));
        data.extend(pickled_tensor(number, shape));
    }
    data.extend(b"ub.");
    let constants = b"\x80\x02).";
    let files: [(&str, &[u8]); 5] = [
        ("data.pkl", &data),
        ("code/__torch__.py", text.as_bytes()),
        ("constants.pkl", constants),
        ("version", b"3\n"),
        ("byteorder", b"little"),
    ];
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, content: &[u8]| {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(format!("model/{name}"), options).expect("a zip in memory takes files");
        zip.write_all(content).expect("a zip in memory takes files");
    };
    files.iter().for_each(|(name, content)| add(name, content));
    shapes.iter().enumerate().for_each(|(number, shape)| add(&format!("data/{number}"), &weights(shape)));
    zip.finish().expect("a zip in memory has an end").into_inner()
}

fn pickled_text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn pickled_ints(ints: &[usize]) -> Vec<u8> {
    let items = ints.iter().flat_map(|&n| [&b"J"[..], &(n as u32).to_le_bytes()].concat());
    [b'('].into_iter().chain(items).chain([b't']).collect()
}

/// `torch._utils._rebuild_tensor_v2(("storage", torch.FloatStorage, "0", "cpu", count), 0, shape, strides, False, {})`
fn pickled_tensor(number: usize, shape: &[usize]) -> Vec<u8> {
    let strides: Vec<usize> = (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect();
    [
        &b"ctorch._utils\n_rebuild_tensor_v2\n(("[..],
        &pickled_text("storage"),
        b"ctorch\nFloatStorage\n",
        &pickled_text(&number.to_string()),
        &pickled_text("cpu"),
        b"J",
        &(shape.iter().product::<usize>() as u32).to_le_bytes(),
        b"tQK\x00",
        &pickled_ints(shape),
        &pickled_ints(&strides),
        b"\x89ccollections\nOrderedDict\n)RtR",
    ]
    .concat()
}

/// Numbers without a pattern, of a size that a layer's values keep behind a ReLU.
fn weights(shape: &[usize]) -> Vec<u8> {
    let largest = (6.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
    let mut state = 1_u32;
    let mut next = || {
        // Numerical Recipes' generator, whose upper bits are good.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * largest
    };
    (0..shape.iter().product()).flat_map(|_| next().to_le_bytes()).collect()
}
