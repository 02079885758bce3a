//! Files named on the command line; a folder stands for the audio files in it.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::CommandError;

/// Endings of the files that are taken from a folder.
const ENDINGS: [&str; 12] = ["aac", "aif", "aiff", "flac", "m4a", "mp3", "mp4", "oga", "ogg", "opus", "wav", "webm"];

/// A file to work on.
pub struct AudioFile {
    /// As the user would name it.
    pub path: PathBuf,
    /// Its path below the folder that the user named; only its name if the user named the file itself.
    pub below: PathBuf,
}

/// The files, with the audio files of each folder in its place, by name. `recursive`: those of its subfolders too.
///
/// # Errors
/// A folder cannot be read, or holds no audio file.
pub fn expand(paths: &[PathBuf], recursive: bool) -> Result<Vec<AudioFile>, CommandError> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(audio_files(path, recursive)?);
        } else {
            // A file that does not exist is reported by whoever opens it.
            let below = path.file_name().map_or_else(|| path.clone(), PathBuf::from);
            files.push(AudioFile { path: path.clone(), below });
        }
    }
    Ok(files)
}

fn audio_files(folder: &Path, recursive: bool) -> Result<Vec<AudioFile>, CommandError> {
    let depth = if recursive { usize::MAX } else { 1 };
    let mut files = Vec::new();
    // Links to files are followed, those to folders are not: they may lead round in a circle.
    for entry in WalkDir::new(folder).min_depth(1).max_depth(depth).sort_by_file_name() {
        let path = entry.map_err(CommandError::failed)?.into_path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        if ENDINGS.contains(&ending.as_str()) && path.is_file() {
            let below = path.strip_prefix(folder).unwrap_or(&path).to_owned();
            files.push(AudioFile { path, below });
        }
    }
    if files.is_empty() {
        let place = if recursive { "or below this folder" } else { "this folder" };
        return Err(CommandError::Failed(format!(
            "{}: no audio file ({}) is in {place}",
            folder.display(),
            ENDINGS.join(", ")
        )));
    }
    Ok(files)
}
