//! Times the forward pass: `forward MODEL_FOLDER [PRECISION] [RUNS [lines]]`.

use std::{env, fs, path::Path, time::Instant};

use tonearm_schemas::manifest::Manifest;
use tonearm_stages::infer::{self, PrecisionChoice};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let folder = Path::new(&arguments[0]);
    let manifest = Manifest::parse(&fs::read_to_string(folder.join("model.toml"))?)?;
    let choice: PrecisionChoice = arguments.get(1).map_or("float32", String::as_str).parse()?;
    let runs: usize = arguments.get(2).map_or(Ok(50), |runs| runs.parse())?;
    let model = infer::load(&folder.join(&manifest.file), &manifest, choice)?;
    let window: Vec<f32> = (0..manifest.window_len()).map(|i| (i * 7919 % 1009) as f32 / 336.0).collect();
    if arguments.get(3).is_some() {
        // A run for each line on standard input, so that they can be taken in turns with another program's.
        for line in std::io::stdin().lines() {
            line?;
            let start = Instant::now();
            std::hint::black_box(model.forward(&window)?);
            println!("{:.4}", start.elapsed().as_secs_f64() * 1e3);
        }
        return Ok(());
    }
    let mut times: Vec<f64> = Vec::new();
    for _ in 0..runs + 5 {
        let start = Instant::now();
        let scores = model.forward(&window)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        std::hint::black_box(scores);
    }
    times.drain(..5);
    times.sort_by(f64::total_cmp);
    println!(
        "{} {} {}: median {:.3} ms, least {:.3} ms",
        manifest.name,
        model.precision(),
        model.engine(),
        times[runs / 2],
        times[0]
    );
    Ok(())
}
