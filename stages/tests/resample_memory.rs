//! A track's resampler is small, whatever rates a file claims. Alone in its process, whose memory is measured.

use std::fs;

use tonearm_stages::resample::Resampler;

/// Resident memory of this process, bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn a_resampler_holds_less_than_two_mib_whatever_the_rates() {
    const TRACKS: usize = 8;
    // None is dropped, so that no memory is used again.
    let mut kept = Vec::new();
    // Primes; large prime factors at either end of the rule; the longest blocks there are.
    let pairs = [
        (767_957, 16_000),
        (767_957, 191_999),
        (191_999, 16_000),
        (44_099, 16_000),
        (4_001, 192_000),
        (81_632, 16_000),
        (204_080, 16_000),
        (767_957, 8_000),
        (768_000, 8_000),
        (752_960, 8_000),
    ];
    for (in_hz, out_hz) in pairs {
        let second = vec![0.5; in_hz as usize];
        let mut out = Vec::with_capacity(2 * out_hz as usize);
        // What is there once for all tracks.
        Resampler::new(in_hz, out_hz).unwrap().push(&second, &mut out);
        let before = resident();
        for _ in 0..TRACKS {
            let mut track = Resampler::new(in_hz, out_hz).unwrap();
            out.clear();
            track.push(&second, &mut out);
            kept.push(track);
        }
        let each = (resident() - before) / TRACKS;
        println!("{in_hz} to {out_hz} Hz: {} KiB", each >> 10);
        assert!(each < 2 << 20, "{in_hz} to {out_hz} Hz: {} KiB", each >> 10);
    }
}
