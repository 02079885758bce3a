//! Predictions and rejects for people: one line per track, one bar per label.

use std::{fmt::Write, io::IsTerminal};

use tonearm_schemas::prediction::{Prediction, Source};

const BAR_WIDTH: usize = 24;
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const RESET: &str = "\x1b[0m";

/// Wraps text in a terminal's colour, if standard output is one and the user did not opt out (no-color.org).
fn style(code: &str, text: &str) -> String {
    let plain = !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain { text.to_owned() } else { format!("{code}{text}{RESET}") }
}

/// Text from elsewhere in a form that no terminal obeys: control characters, and those that turn the direction of what
/// follows, are escaped as in Rust.
pub fn plain(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().fold(String::new(), |mut text, c| {
        if obeyed(c) {
            text.extend(c.escape_default())
        } else {
            text.push(c)
        }
        text
    })
}

/// `0:31.0`, `1:02:03`
pub fn duration(seconds: f64) -> String {
    let tenths = (seconds * 10.0).round() as u64;
    let (hours, minutes, rest) = (tenths / 36_000, tenths / 600 % 60, tenths % 600);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{:02}", rest / 10)
    } else {
        format!("{minutes}:{:02}.{}", rest / 10, rest % 10)
    }
}

/// Track, duration, codec, and the labels with bars.
pub fn prediction(prediction: &Prediction) -> String {
    let name = match (&prediction.track, &prediction.source) {
        (Some(track), _) => track.clone(),
        (None, Source::File { file }) => file.clone(),
        (None, Source::Record { .. }) => prediction.id.clone(),
    };
    let audio = &prediction.audio;
    let facts = format!(
        "{}  {} {} Hz{}  {:.0} ms",
        duration(audio.duration_s),
        plain(&audio.codec),
        audio.sample_rate_hz,
        if audio.padded { "  (shorter than one window, padded)" } else { "" },
        prediction.timing_ms.total,
    );
    let mut text = format!("{}  {}\n", style(BOLD, &plain(&name)), style(DIM, &facts));
    let labels: Vec<String> = prediction.labels.iter().map(|label| plain(&label.label)).collect();
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    for (name, label) in labels.iter().zip(&prediction.labels) {
        let filled = (f64::from(label.score.clamp(0.0, 1.0)) * BAR_WIDTH as f64).round() as usize;
        let bar = format!("{}{}", style(GREEN, &"█".repeat(filled)), style(DIM, &"░".repeat(BAR_WIDTH - filled)));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:width$}  {bar}  {:.3}", label.score);
    }
    text
}

/// A rejected record: its track, and why.
pub fn reject(track: &str, class: &str, message: &str) -> String {
    let verdict = style(RED, &format!("rejected: {}", plain(class)));
    format!("{}  {verdict}\n  {}\n", style(BOLD, &plain(track)), plain(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_that_was_published() {
        assert_eq!(plain("a\u{1b}[2Jb\r\n\u{9b}c\u{202e}d"), "a\\u{1b}[2Jb\\r\\n\\u{9b}c\\u{202e}d");
        assert_eq!(plain("Björk – Jóga 音"), "Björk – Jóga 音");
        assert_eq!(reject("\u{7}", "\u{8}", "\u{1b}"), "\\u{7}  rejected: \\u{8}\n  \\u{1b}\n");
    }
}
