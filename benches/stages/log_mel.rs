//! PCM at the model's rate → windows of log-mel frames: a minute of music.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tonearm_benches::{DEFAULT_MODEL, MINUTE_S, manifest, pcm_16k, windows};

fn benches(criterion: &mut Criterion) {
    let (manifest, samples) = (manifest(DEFAULT_MODEL), pcm_16k());
    let mut group = criterion.benchmark_group("log-mel");
    // Elements are milliseconds of audio.
    group.throughput(Throughput::Elements((MINUTE_S * 1e3) as u64));
    group.bench_function(DEFAULT_MODEL, |bencher| bencher.iter(|| windows(&manifest, &samples)));
    group.finish();
}

criterion_group! { name = all; config = tonearm_benches::criterion(); targets = benches }
criterion_main!(all);
