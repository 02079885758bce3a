//! The page that is printed, and what is kept of a run: the page and the raw figures.

use std::{fmt::Write, fs, process::Command};

use serde_json::json;
use tonearm_tests::root;

use crate::{
    claim::{Asked, Claim, least, most},
    contest::{Contest, rounded},
    roofline::Roof,
};

/// Markdown.
pub fn page(claims: &[Claim], contests: &[Contest], roofs: &[Roof]) -> String {
    let mut page = format!("{}, {} cores, {}\n", processor(), cores(), date());
    if !claims.is_empty() {
        page.push_str(
            "\n| what | asked | median | least – most of n | | figures |\n| --- | --- | --- | --- | --- | --- |\n",
        );
    }
    for claim in claims {
        let Claim { what, asked, rounds, unit, figures } = claim;
        let asked = match asked {
            Some(Asked::AtLeast(bound)) => format!("≥ {bound} {unit}"),
            Some(Asked::AtMost(bound)) => format!("≤ {bound} {unit}"),
            None => String::new(),
        };
        let holds = match claim.holds() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        let (median, least, most) = (rounded(claim.median()), rounded(least(rounds)), rounded(most(rounds)));
        let count = rounds.len();
        let _ = writeln!(
            page,
            "| {what} | {asked} | {median} {unit} | {least} – {most} of {count} | {holds} | {figures} |"
        );
    }
    if !contests.is_empty() {
        page.push_str("\n| stage, one thread | who | median | least – most |\n| --- | --- | --- | --- |\n");
    }
    for contest in contests {
        for contender in &contest.contenders {
            let rates = contender.rates(contest.amount);
            let (median, least, most) =
                (rounded(crate::claim::median(&rates)), rounded(least(&rates)), rounded(most(&rates)));
            let (stage, name, unit) = (&contest.stage, &contender.name, contest.unit);
            let _ = writeln!(page, "| {stage} | {name} | {median} {unit} | {least} – {most} |");
        }
    }
    if !roofs.is_empty() {
        page.push_str(
            "\n| stage, one thread | floor | ours | ratio | the floor is |\n| --- | --- | --- | --- | --- |\n",
        );
    }
    for Roof { stage, floor_ms, ours_ms, per, because } in roofs {
        let ratio = rounded(ours_ms / floor_ms);
        let _ = writeln!(page, "| {stage} | {floor_ms:.4} ms per {per} | {ours_ms:.4} ms | {ratio} | {because} |");
    }
    page
}

/// Writes `benches/runs/DATE-MACHINE/`.
pub fn write(peers: bool, page: &str, claims: &[Claim], contests: &[Contest], roofs: &[Roof]) {
    let machine: String = format!("{}-{}-cores", processor(), cores())
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let folder = root().join("benches/runs").join(format!("{}-{machine}", date()));
    let name = if peers { "beside-peers" } else { "alone" };
    let raw = json!({ "claims": claims, "contests": contests, "roofs": roofs });
    let raw = serde_json::to_string_pretty(&raw).unwrap_or_default();
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(folder.join(format!("{name}.md")), page))
        .and_then(|()| fs::write(folder.join(format!("{name}.json")), raw + "\n"))
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    println!("kept in {}", folder.display());
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.trim().to_owned()));
    name.unwrap_or_else(|| "unknown".to_owned())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Today, as 2026-01-31.
fn date() -> String {
    let output = Command::new("date").arg("+%F").output();
    output.map_or_else(|_| "undated".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
