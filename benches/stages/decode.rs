//! Encoded bytes → mono PCM: ten minutes of music in each codec.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tonearm_benches::{CODECS, LONG_S, decode, music, read};

fn benches(criterion: &mut Criterion) {
    let folder = music().join("long");
    // Elements are milliseconds of audio.
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements((LONG_S * 1e3) as u64));
    for (codec, ending) in CODECS {
        let bytes = read(&folder.join(format!("music.{ending}")));
        match decode(&bytes) {
            Ok(_) => _ = group.bench_function(codec, |bencher| bencher.iter(|| decode(&bytes))),
            Err(why) => eprintln!("decode/{codec} is left out: {why}"),
        }
    }
    group.finish();
}

criterion_group! { name = all; config = tonearm_benches::criterion(); targets = benches }
criterion_main!(all);
