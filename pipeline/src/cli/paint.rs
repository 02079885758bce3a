//! Predictions and rejects for people: one line per track, one bar per label.

use std::{fmt::Write, io::IsTerminal};

use tonearm_schemas::prediction::{Prediction, Source};

const BAR_WIDTH: usize = 24;
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const RESET: &str = "\x1b[0m";

/// Wraps text in a terminal's colour, where standard output is one and the user did not opt out (no-color.org).
fn style(code: &str, text: &str) -> String {
    let plain = !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain { text.to_owned() } else { format!("{code}{text}{RESET}") }
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
        audio.codec,
        audio.sample_rate_hz,
        if audio.padded { "  (shorter than one window, padded)" } else { "" },
        prediction.timing_ms.total,
    );
    let mut text = format!("{}  {}\n", style(BOLD, &name), style(DIM, &facts));
    let width = prediction.labels.iter().map(|label| label.label.chars().count()).max().unwrap_or(0);
    for label in &prediction.labels {
        let filled = (f64::from(label.score.clamp(0.0, 1.0)) * BAR_WIDTH as f64).round() as usize;
        let bar = format!("{}{}", style(GREEN, &"█".repeat(filled)), style(DIM, &"░".repeat(BAR_WIDTH - filled)));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {:width$}  {bar}  {:.3}", label.label, label.score);
    }
    text
}

/// A rejected record: its track, and why.
pub fn reject(track: &str, class: &str, message: &str) -> String {
    format!("{}  {}\n  {message}\n", style(BOLD, track), style(RED, &format!("rejected: {class}")))
}
