//! What files are as records: their keys, and whether the topic takes them.

use std::{collections::HashMap, fs::File, io::Read, os::unix::ffi::OsStrExt, path::PathBuf};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    util::Timeout,
};

use super::journal::Published;
use crate::{
    cli::files::AudioFile,
    config::Config,
    kafka::{FIRST_ANSWER, Logged},
};

/// A batch of Kafka's has a header of 61 bytes (message format, version 2), which counts for `max.message.bytes`.
const BATCH_HEADER_BYTES: u64 = 61;

/// A file about to be published.
pub struct Parcel {
    pub path: PathBuf,
    pub key: Vec<u8>,
    pub bytes: u64,
    /// What a journal is to say of it.
    pub published: Option<Published>,
}

impl Parcel {
    /// # Errors
    /// Why it cannot be published.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        // One byte more than there should be shows that the file has grown since its length was checked.
        let mut bytes = Vec::new();
        File::open(&self.path)
            .and_then(|file| file.take(self.bytes + 1).read_to_end(&mut bytes))
            .map_err(|e| format!("cannot be read: {e}"))?;
        if bytes.len() as u64 == self.bytes { Ok(bytes) } else { Err("has changed while it was read".to_owned()) }
    }

    /// IANA's names for the usual endings; only a hint for the decoder.
    pub fn media_type(&self) -> Option<&'static str> {
        let ending = self.path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match ending.as_str() {
            "mp3" => "audio/mpeg",
            "m4a" | "mp4" => "audio/mp4",
            "aac" => "audio/aac",
            "flac" => "audio/flac",
            "ogg" | "oga" | "opus" => "audio/ogg",
            "wav" => "audio/wav",
            "aif" | "aiff" => "audio/aiff",
            _ => return None,
        })
    }
}

/// How files become parcels.
pub struct Packing<'a> {
    /// Of the only file.
    pub key: Option<&'a str>,
    pub limit: Limit,
    pub for_journal: bool,
}

impl Packing<'_> {
    /// A parcel of each file, or why it cannot be published.
    pub fn pack<'f>(
        &self,
        files: &'f [AudioFile],
    ) -> impl Iterator<Item = Result<Parcel, (&'f AudioFile, String)>> + use<'_, 'f> {
        let keyed = files.iter().zip(keys(files));
        keyed.map(|(file, own)| {
            let key = self.key.map_or(own, |key| key.as_bytes().to_vec());
            self.pack_one(file, key).map_err(|reason| (file, reason))
        })
    }

    fn pack_one(&self, file: &AudioFile, key: Vec<u8>) -> Result<Parcel, String> {
        let unreadable = |e: std::io::Error| format!("cannot be read: {e}");
        let metadata = file.path.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err("is no file".to_owned());
        }
        self.limit.check(metadata.len() + key.len() as u64 + BATCH_HEADER_BYTES)?;
        let published = self.for_journal.then(|| Published::of(&file.path)).transpose().map_err(unreadable)?;
        Ok(Parcel { path: file.path.clone(), key, bytes: metadata.len(), published })
    }
}

/// The largest record, and who says so.
pub struct Limit {
    bytes: u64,
    of: String,
}

impl Limit {
    /// The topic's own, if it may be read; else that of the records which `tonearm run` accepts.
    pub fn of(admin: &AdminClient<Logged>, config: &Config) -> Self {
        let topic = &config.topics.audio;
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            let options = AdminOptions::new().request_timeout(Some(Timeout::After(FIRST_ANSWER)));
            let topics = [ResourceSpecifier::Topic(topic)];
            let found = runtime.block_on(admin.describe_configs(&topics, &options)).ok()?.pop()?.ok()?;
            found.get("max.message.bytes")?.value.as_ref()?.parse().ok()
        };
        match ask() {
            Some(bytes) => Self { bytes, of: format!("topic {topic} takes (max.message.bytes)") },
            None => Self {
                bytes: config.limits.max_record_bytes as u64,
                of: "`tonearm run` accepts (limits.max_record_mib)".to_owned(),
            },
        }
    }

    fn check(&self, bytes: u64) -> Result<(), String> {
        let Self { bytes: limit, of } = self;
        if bytes > *limit {
            Err(format!("a record of {bytes} bytes is more than the {limit} that {of}"))
        } else {
            Ok(())
        }
    }
}

/// Track ids: paths below the folder that was named, without their endings; whole paths if two would be the same.
fn keys(files: &[AudioFile]) -> Vec<Vec<u8>> {
    let short = |file: &AudioFile| file.below.with_extension("").as_os_str().as_bytes().to_vec();
    let mut counts: HashMap<Vec<u8>, u32> = HashMap::new();
    files.iter().for_each(|file| *counts.entry(short(file)).or_default() += 1);
    let whole = |file: &AudioFile| file.path.as_os_str().as_bytes().to_vec();
    files.iter().map(|file| Some(short(file)).filter(|key| counts[key] == 1).unwrap_or_else(|| whole(file))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_keys_of_their_own() {
        let file = |path: &str, below: &str| AudioFile { path: path.into(), below: below.into() };
        let files = [
            file("music/song.mp3", "song.mp3"),
            file("music/album/song.mp3", "album/song.mp3"),
            file("a/take.wav", "take.wav"),
            file("b/take.wav", "take.wav"),
            file("music/air.flac", "air.flac"),
            file("music/air.ogg", "air.ogg"),
            file("mix.v2.mp3", "mix.v2.mp3"),
        ];
        let keys = keys(&files).into_iter().map(|key| String::from_utf8(key).expect("text"));
        let expected = ["song", "album/song", "a/take.wav", "b/take.wav", "music/air.flac", "music/air.ogg", "mix.v2"];
        assert_eq!(keys.collect::<Vec<_>>(), expected);
    }
}
