//! Lines for people and programs. A reader that went away, such as `head`, has all it wants: that is no error.

use std::{
    fmt::Display,
    io::{Write, stderr, stdout},
};

/// One line on standard output.
pub fn line(text: impl Display) {
    let _ = writeln!(stdout().lock(), "{text}");
}

/// Text on standard output as it is.
pub fn text(text: impl Display) {
    let _ = write!(stdout().lock(), "{text}");
}

/// What is wrong, on standard error.
pub fn problem(text: impl Display) {
    let _ = writeln!(stderr().lock(), "tonearm: {text}");
}
