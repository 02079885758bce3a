//! The scores of a track's windows → its prediction.

use tonearm_schemas::prediction::{self, Audio, Label, Prediction, Timing};

use tonearm_stages::infer::Model;

use crate::{catalogue::Catalogue, job::Origin};

/// `windows`: start frame and scores of each, in time order.
pub fn of(
    catalogue: &Catalogue,
    model: &dyn Model,
    origin: Origin,
    audio: Audio,
    windows: Vec<(u64, Vec<f32>)>,
    timing_ms: Timing,
) -> Prediction {
    let Catalogue { manifest, output, .. } = catalogue;
    let labels = &manifest.output.labels;
    let mut means = vec![0f64; labels.len()];
    for (_, scores) in &windows {
        means.iter_mut().zip(scores).for_each(|(mean, score)| *mean += f64::from(*score));
    }
    let mut ranked: Vec<Label> = means
        .iter()
        .zip(labels)
        .map(|(sum, label)| Label { label: label.clone(), score: (sum / windows.len().max(1) as f64) as f32 })
        .collect();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
    ranked.truncate(output.labels.map_or(usize::MAX, Into::into));

    let second = manifest.seconds_per_frame();
    let length = manifest.windows.frames as u64;
    let windows = output.windows.then(|| {
        windows
            .into_iter()
            .map(|(start, scores)| prediction::Window {
                start_s: start as f64 * second,
                end_s: (start + length) as f64 * second,
                scores,
            })
            .collect()
    });
    Prediction {
        schema: prediction::SCHEMA.to_owned(),
        id: origin.id,
        track: origin.key,
        source: origin.source,
        audio,
        model: prediction::Model {
            name: manifest.name.clone(),
            version: manifest.version.to_string(),
            sha256: manifest.sha256.clone(),
            precision: model.precision().as_str().to_owned(),
        },
        labels: ranked,
        windows,
        timing_ms,
        produced_by: concat!("tonearm ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}
