//! Files named on the command line; a folder stands for the audio files in it.

use std::path::{Path, PathBuf};

use super::CommandError;

/// Endings of the files that are taken from a folder.
const ENDINGS: [&str; 12] = ["aac", "aif", "aiff", "flac", "m4a", "mp3", "mp4", "oga", "ogg", "opus", "wav", "webm"];

/// The files, with the audio files of each folder in its place, by name.
///
/// # Errors
/// A folder cannot be read, or holds no audio file.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, CommandError> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(audio_files(path)?);
        } else {
            // A file that does not exist is reported by whoever opens it.
            files.push(path.clone());
        }
    }
    Ok(files)
}

fn audio_files(folder: &Path) -> Result<Vec<PathBuf>, CommandError> {
    let problem = |e: &dyn std::fmt::Display| CommandError::Failed(format!("{}: {e}", folder.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| problem(&e))? {
        let path = entry.map_err(|e| problem(&e))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        if path.is_file() && ENDINGS.contains(&ending.as_str()) {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(problem(&format!("no audio file ({}) is in this folder", ENDINGS.join(", "))));
    }
    Ok(files)
}
