//! Turns musicnn's TensorFlow checkpoints into TorchScript models with manifests.

use std::{
    fs,
    io::{self, Read, Seek},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tch::CModule;
use tonearm_schemas::manifest::{FILE_NAME, FeatureSpec, Manifest, ManifestError};
use tonearm_stages::infer::{self, LoadError, Precision, PrecisionChoice};
use zip::{ZipArchive, result::ZipError};

use crate::{
    checkpoint::{Checkpoint, CheckpointError},
    network::{Architecture, Network, example_input},
    trial,
};

/// A model the importer can make.
pub struct Importable {
    /// Its name in the repository.
    pub name: &'static str,
    /// Its folder in the package.
    checkpoint: &'static str,
    architecture: Architecture,
    /// Its manifest without `file` and `sha256`.
    manifest: &'static str,
}

/// musicnn's models; the package's fifth, MSD_musicnn_big, is not in its wheel.
pub const MUSICNN: [Importable; 4] = [
    Importable {
        name: "musicnn-mtt",
        checkpoint: "MTT_musicnn",
        architecture: Architecture::Musicnn,
        manifest: include_str!("../manifests/musicnn-mtt.toml"),
    },
    Importable {
        name: "musicnn-msd",
        checkpoint: "MSD_musicnn",
        architecture: Architecture::Musicnn,
        manifest: include_str!("../manifests/musicnn-msd.toml"),
    },
    Importable {
        name: "vgg-mtt",
        checkpoint: "MTT_vgg",
        architecture: Architecture::Vgg,
        manifest: include_str!("../manifests/vgg-mtt.toml"),
    },
    Importable {
        name: "vgg-msd",
        checkpoint: "MSD_vgg",
        architecture: Architecture::Vgg,
        manifest: include_str!("../manifests/vgg-msd.toml"),
    },
];

/// Why a model could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is not musicnn's wheel (musicnn-0.1.0-py3-none-any.whl): {source}", path.display())]
    NotTheWheel { path: PathBuf, source: ZipError },
    #[error("{name}: {source}")]
    Checkpoint { name: &'static str, source: CheckpointError },
    #[error("{name}: its manifest is wrong: {source}")]
    Manifest { name: &'static str, source: ManifestError },
    #[error("{name}: libtorch could not trace the network: {source}")]
    Trace { name: &'static str, source: tch::TchError },
    #[error("{name}: the written model cannot be used: {source}")]
    Check { name: &'static str, source: LoadError },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Imports one model from musicnn's wheel into the repository `dir`; an older import of the same version is replaced.
///
/// The model's folder appears under its name only when it is whole and was loaded once. Returns that folder.
///
/// # Errors
/// The wheel cannot be read or is another file, or the repository cannot be written.
pub fn import(wheel: &Path, model: &Importable, dir: &Path) -> Result<PathBuf, ImportError> {
    let file = fs::File::open(wheel).map_err(|source| ImportError::Unreadable { path: wheel.to_owned(), source })?;
    let not_the_wheel = |source| ImportError::NotTheWheel { path: wheel.to_owned(), source };
    let mut archive = ZipArchive::new(file).map_err(not_the_wheel)?;
    // The package saved its checkpoints under an empty prefix, so their names start with the dot.
    let folder = format!("musicnn/{}", model.checkpoint);
    let index = read(&mut archive, &format!("{folder}/.index")).map_err(not_the_wheel)?;
    let data = read(&mut archive, &format!("{folder}/.data-00000-of-00001")).map_err(not_the_wheel)?;
    let network = Checkpoint::parse(&index, data)
        .and_then(|checkpoint| Network::build(model.architecture, &checkpoint))
        .map_err(|source| ImportError::Checkpoint { name: model.name, source })?;

    let mut manifest = manifest(model)?;
    let FeatureSpec::LogMel(mel) = &manifest.features;
    let input = example_input(manifest.windows.frames, mel.bands);
    let traced = tch::no_grad(|| {
        // A module's name is an identifier of Python's.
        CModule::create_by_tracing(&model.name.replace('-', "_"), "forward", &[input], &mut |inputs| {
            vec![network.forward(&inputs[0])]
        })
    })
    .map_err(|source| ImportError::Trace { name: model.name, source })?;

    let folder = dir.join(model.name).join(manifest.version.to_string());
    let unfinished = dir.join(model.name).join(format!(".{}.{}", manifest.version, std::process::id()));
    let write = |path: &Path, source| ImportError::Write { path: path.to_owned(), source };
    fs::create_dir_all(&unfinished).map_err(|e| write(&unfinished, e))?;
    let result = (|| {
        let file = unfinished.join(&manifest.file);
        traced.save(&file).map_err(|source| ImportError::Trace { name: model.name, source })?;
        manifest.sha256 = format!("{:x}", Sha256::digest(fs::read(&file).map_err(|e| write(&file, e))?));
        let load = |manifest: &Manifest, precision| infer::load(&file, manifest, PrecisionChoice::Only(precision));
        let float32 =
            load(&manifest, Precision::Float32).map_err(|source| ImportError::Check { name: model.name, source })?;
        // Where it cannot be tried, nothing is said of it.
        manifest.bfloat16 = load(&manifest, Precision::Bfloat16)
            .ok()
            .and_then(|bfloat16| trial::compare(&manifest, &*float32, &*bfloat16));
        let path = unfinished.join(FILE_NAME);
        fs::write(&path, manifest.to_toml()).map_err(|e| write(&path, e))?;
        match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(write(&folder, e)),
            _ => fs::rename(&unfinished, &folder).map_err(|e| write(&folder, e)),
        }
    })();
    if result.is_err() {
        // Best effort: the error that matters is the one returned.
        let _ = fs::remove_dir_all(&unfinished);
    }
    result.map(|()| folder)
}

fn read(archive: &mut ZipArchive<impl Read + Seek>, name: &str) -> Result<Vec<u8>, ZipError> {
    let mut bytes = Vec::new();
    archive.by_name(name)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The compiled-in manifest, with a hash that is filled in once the file is written.
fn manifest(model: &Importable) -> Result<Manifest, ImportError> {
    let unhashed = format!("file = \"model.pt\"\nsha256 = \"{:064}\"\n{}", 0, model.manifest);
    Manifest::parse(&unhashed).map_err(|source| ImportError::Manifest { name: model.name, source })
}
