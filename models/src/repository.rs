//! The model repository: `<dir>/<name>/<version>/{model.toml, model.pt}`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use semver::Version;
use tonearm_schemas::manifest::{FILE_NAME, Manifest, ManifestError};

/// A model by name, and by version if one is asked for: `musicnn-mtt` or `musicnn-mtt@1.0.0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    pub name: String,
    /// `None`: the highest version there is.
    pub version: Option<Version>,
}

impl FromStr for ModelRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => {
                let version = Version::parse(version)
                    .map_err(|e| format!("model version {version:?} is not like 1.0.0 ({e}), in {text:?}"))?;
                (name, Some(version))
            }
            None => (text, None),
        };
        if name.is_empty() || !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(format!("model name {name:?} must be lower-case letters, digits and dashes"));
        }
        Ok(Self { name: name.to_owned(), version })
    }
}

impl std::fmt::Display for ModelRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        self.version.as_ref().map_or(Ok(()), |version| write!(f, "@{version}"))
    }
}

/// Why a model cannot be had from the repository.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("model {model} is not in {}; {}", dir.display(), available(found))]
    NotFound { model: String, dir: PathBuf, found: Vec<String> },
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Manifest { path: PathBuf, source: ManifestError },
    #[error("{} describes {found}, its folder says {expected}", path.display())]
    Misplaced { path: PathBuf, found: String, expected: String },
}

fn available(found: &[String]) -> String {
    if found.is_empty() {
        "no model is there (`tonearm models import` makes some, models.dir names another folder)".to_owned()
    } else {
        format!("there are {}", found.join(", "))
    }
}

/// A model's manifest and where its files lie.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub manifest: Manifest,
    pub folder: PathBuf,
}

impl Model {
    /// The path of the TorchScript file.
    pub fn file(&self) -> PathBuf {
        self.folder.join(&self.manifest.file)
    }
}

/// Name and version of every model folder in `dir`, sorted; empty if there is no such folder.
///
/// # Errors
/// A folder cannot be read.
pub fn list(dir: &Path) -> Result<Vec<ModelRef>, RepositoryError> {
    let mut found = Vec::new();
    for name in subfolders(dir)? {
        for version in subfolders(&dir.join(&name))? {
            if let Ok(model) = format!("{name}@{version}").parse() {
                found.push(model);
            }
        }
    }
    found.sort_by(|a: &ModelRef, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(found)
}

fn subfolders(dir: &Path) -> Result<Vec<String>, RepositoryError> {
    let unreadable = |source| RepositoryError::Unreadable { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(unreadable(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        if entry.path().is_dir() {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    Ok(names)
}

/// Finds a model and reads its manifest.
///
/// # Errors
/// There is no such model, or its manifest cannot be read, is wrong, or is another model's.
pub fn find(dir: &Path, wanted: &ModelRef) -> Result<Model, RepositoryError> {
    let all = list(dir)?;
    let newest = all
        .iter()
        .filter(|model| model.name == wanted.name)
        .filter(|model| wanted.version.is_none() || model.version == wanted.version)
        .max_by_key(|model| &model.version);
    let Some(ModelRef { name, version: Some(version) }) = newest else {
        let found = all.iter().map(ToString::to_string).collect();
        return Err(RepositoryError::NotFound { model: wanted.to_string(), dir: dir.to_owned(), found });
    };

    let folder = dir.join(name).join(version.to_string());
    let path = folder.join(FILE_NAME);
    let text =
        fs::read_to_string(&path).map_err(|source| RepositoryError::Unreadable { path: path.clone(), source })?;
    let manifest = Manifest::parse(&text).map_err(|source| RepositoryError::Manifest { path: path.clone(), source })?;
    if (&manifest.name, &manifest.version) != (name, version) {
        let found = format!("{}@{}", manifest.name, manifest.version);
        return Err(RepositoryError::Misplaced { path, found, expected: format!("{name}@{version}") });
    }
    Ok(Model { manifest, folder })
}
