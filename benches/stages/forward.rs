//! Windows → scores: each model in each precision, one window and the windows of a track after each other.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tonearm_benches::{MODELS, PRECISIONS, model, pcm_16k, windows};

fn benches(criterion: &mut Criterion) {
    let samples = pcm_16k();
    let mut group = criterion.benchmark_group("forward");
    for name in MODELS {
        for precision in PRECISIONS {
            let Some((model, manifest)) = model(name, precision) else {
                eprintln!("forward/{name}/{precision} is left out: this machine does not have it");
                continue;
            };
            let windows = windows(&manifest, &samples);
            for batch in [1, 16] {
                // Elements are windows.
                group.throughput(Throughput::Elements(batch as u64));
                group.bench_function(BenchmarkId::new(format!("{name}/{precision}"), batch), |bencher| {
                    bencher.iter(|| {
                        windows[..batch].iter().map(|window| model.forward(&window.values)).collect::<Vec<_>>()
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group! { name = all; config = tonearm_benches::criterion(); targets = benches }
criterion_main!(all);
