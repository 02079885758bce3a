//! Lines for people and programs.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write, stderr, stdout},
};

/// Why nothing more can be said.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A reader that went away, such as `head`, has all it wants: the command ends, and that is no failure.
    #[error("nobody reads standard output any more")]
    ReaderGone,
    #[error("standard output cannot be written: {0}")]
    Failed(io::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe { Self::ReaderGone } else { Self::Failed(error) }
    }
}

/// One line on standard output.
pub fn line(text: impl Display) -> Result<(), OutputError> {
    self::text(format_args!("{text}\n"))
}

/// Text on standard output as it is. It is out when this returns.
pub fn text(text: impl Display) -> Result<(), OutputError> {
    bytes(text.to_string().as_bytes())
}

/// Bytes on standard output as they are. They are out when this returns.
pub fn bytes(bytes: &[u8]) -> Result<(), OutputError> {
    let mut out = stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// What is wrong, on standard error.
pub fn problem(text: impl Display) {
    // With standard error gone as well there is nobody left to tell.
    let _ = writeln!(stderr().lock(), "tonearm: {text}");
}
