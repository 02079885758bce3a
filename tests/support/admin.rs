//! The admin port, as a probe or a scraper sees it.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

/// A port of 127.0.0.1 that no other test uses: below those that connections get, and above those of `scripts/kafka`.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() as u16;
    loop {
        let nth = TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = 30_000 + start.wrapping_mul(37).wrapping_add(nth) % 2_700;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Status and body of a GET; None where nobody answers.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// What `/metrics` says.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Value by series, as written: `name{label="value"}`.
    series: BTreeMap<String, f64>,
    /// Help text by name.
    pub help: BTreeMap<String, String>,
    /// Type by name.
    pub kinds: BTreeMap<String, String>,
}

impl Metrics {
    /// Reads Prometheus' text format.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines() {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                metrics.help.insert(name.to_owned(), help.to_owned());
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                metrics.kinds.insert(name.to_owned(), kind.to_owned());
            } else if let Some((series, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
                metrics.series.insert(series.to_owned(), value.parse().expect("a sample is a number"));
            }
        }
        metrics
    }

    /// The value of one series, `name` or `name{label="value"}`; 0 where there is none yet.
    pub fn value(&self, series: &str) -> f64 {
        self.series.get(series).copied().unwrap_or(0.0)
    }

    /// The sum over all series of one name.
    pub fn sum(&self, name: &str) -> f64 {
        self.named(name).map(|(_, value)| value).sum()
    }

    /// The series of one name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let of_name = move |series: &str| series.split('{').next() == Some(name);
        self.series.iter().filter(move |(series, _)| of_name(series)).map(|(series, value)| (series.as_str(), *value))
    }

    /// The names of all series, without their labels.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.series.keys().filter_map(|series| series.split('{').next())
    }
}
