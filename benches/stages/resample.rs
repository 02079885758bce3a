//! Mono PCM at one rate → mono PCM at another: 2,646,000 samples, which are a minute at 44.1 kHz, for each pair of
//! rates.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tonearm_benches::{RATES_HZ, pcm, resample};

fn benches(criterion: &mut Criterion) {
    let samples = pcm();
    let mut group = criterion.benchmark_group("resample");
    for (from_hz, to_hz) in RATES_HZ {
        // Elements are milliseconds of audio.
        group.throughput(Throughput::Elements(samples.len() as u64 * 1000 / u64::from(from_hz)));
        let mut out = Vec::new();
        group.bench_function(BenchmarkId::new(from_hz.to_string(), to_hz), |bencher| {
            bencher.iter(|| {
                out.clear();
                resample(&samples, from_hz, to_hz, &mut out)
            });
        });
    }
    group.finish();
}

criterion_group! { name = all; config = tonearm_benches::criterion(); targets = benches }
criterion_main!(all);
