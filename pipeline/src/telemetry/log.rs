//! Logs go to standard error, so that standard output stays data.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Starts logging with a filter such as `info` or `warn,tonearm=debug`. A filter that was not checked before and is
/// wrong is taken as `info`.
pub fn init(filter: &str, json: bool) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let base = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    // A second call, in a test process, changes nothing.
    let _ = if json {
        registry.with(base.json().flatten_event(true)).try_init()
    } else {
        registry.with(base.with_ansi(std::io::stderr().is_terminal())).try_init()
    };
    // A decoder's panic becomes a reject; its message belongs into one log line, not into a backtrace.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}
