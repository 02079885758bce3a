//! One encoded track, from its first byte to its end: bytes → PCM at the model's rate → whatever [`Chain`] makes of it.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_lite::FutureExt;
use tonearm_schemas::{
    prediction::{Audio, Timing},
    reject::{Reject, RejectClass, Stage},
};
use tonearm_stages::{decode::Decoder, resample::Resampler};

use crate::{
    catalogue::Catalogue,
    chain::{Chain, ms},
    events,
    job::{Client, Failure, Job, Outcome, said},
    pool::{Pool, Tag},
};

/// Takes an encoded track through the stages, and tells its caller how it ended. All blocks but the last go to the
/// client on the way.
///
/// It is rejected if it cannot be decoded, is outside the limits, or the model fails; also if a stage panics.
pub async fn work(catalogue: Arc<Catalogue>, pool: Pool, tag: Arc<Tag>, job: Job) {
    let Job { origin, bytes, content_type, caller } = job;
    if !caller.client().may_begin() {
        return;
    }
    let mut chain = Chain::new(catalogue, pool, Arc::clone(&tag), origin);
    let stages = stages(&mut chain, &tag, &bytes, content_type.as_deref(), caller.client());
    let ended = AssertUnwindSafe(stages).catch_unwind().await;
    if let Some(outcome) = guarded(&mut chain, &tag, ended) {
        drop((chain, bytes));
        caller.end(outcome);
    }
}

/// How a track ends: `ended`, or, if a stage panicked, with a reject. Of a chain that panicked only its counts are
/// used.
pub fn guarded(chain: &mut Chain, tag: &Tag, ended: std::thread::Result<Option<Outcome>>) -> Option<Outcome> {
    ended.unwrap_or_else(|panic| chain.fail(panicked(tag, &*panic).into()))
}

/// The reject of a track at which a stage panicked.
fn panicked(tag: &Tag, panic: &(dyn std::any::Any + Send)) -> Reject {
    let (class, who) = match tag.stage() {
        Stage::Decode => (RejectClass::DecoderCrash, "the decoder"),
        Stage::Features => (RejectClass::InternalError, "the stage of features"),
        Stage::Infer => (RejectClass::InternalError, "the stage of inference"),
    };
    Reject::new(tag.stage(), class, format!("{who} panicked: {}", said(panic)))
}

/// `None` if the track is cancelled.
async fn stages(
    chain: &mut Chain,
    tag: &Tag,
    bytes: &[u8],
    content_type: Option<&str>,
    client: &dyn Client,
) -> Option<Outcome> {
    match decode(chain, tag, bytes, content_type, client).await {
        Ok((audio, spent)) => chain.end(audio, Timing { decode: ms(spent), ..Timing::default() }, client).await,
        Err(failure) => chain.fail(failure),
    }
}

/// Decodes and resamples; the PCM goes down the chain as it comes.
async fn decode(
    chain: &mut Chain,
    tag: &Tag,
    bytes: &[u8],
    content_type: Option<&str>,
    client: &dyn Client,
) -> Result<(Audio, Duration), Failure> {
    let limits = chain.catalogue().limits;
    if bytes.len() > limits.max_record_bytes {
        let (found, allowed) = (bytes.len(), limits.max_record_bytes);
        let message = format!("the record has {found} bytes, limits.max_record_mib allows {allowed}");
        return Err(Reject::new(Stage::Decode, RejectClass::TooLarge, message).into());
    }
    let mut clock = Clock::start();
    let blake3 = blake3::hash(bytes).to_hex().to_string();
    let mut decoder = Decoder::open(bytes, content_type)?;
    let info = decoder.info().clone();
    let mut resampler = Resampler::new(info.sample_rate_hz, chain.catalogue().manifest.audio.sample_rate_hz)
        .map_err(|e| Reject::new(Stage::Decode, RejectClass::UnsupportedFormat, e.to_string()))?;

    let mut spent = Duration::ZERO;
    let (mut mono, mut pcm) = (Vec::new(), Vec::new());
    let max_frames = limits.max_duration.as_secs().saturating_mul(info.sample_rate_hz.into());
    while decoder.next(&mut mono)? {
        tag.at(Stage::Decode);
        if decoder.frames() > max_frames {
            let allowed = limits.max_duration.as_secs();
            let message = format!("the audio is longer than limits.max_duration_s = {allowed}");
            return Err(Reject::new(Stage::Decode, RejectClass::TooLong, message).into());
        }
        resampler.push(&mono, &mut pcm);
        spent += clock.lap();
        chain.pcm(&pcm, client).await?;
        mono.clear();
        pcm.clear();
        clock.lap();
    }
    resampler.finish(&mut pcm);
    spent += clock.lap();
    chain.pcm(&pcm, client).await?;
    events::worked(Stage::Decode, spent);
    let frames = decoder.frames();
    let audio = Audio {
        codec: info.codec,
        sample_rate_hz: info.sample_rate_hz,
        channels: info.channels,
        frames,
        duration_s: frames as f64 / f64::from(info.sample_rate_hz),
        blake3,
        padded: false,
    };
    Ok((audio, spent))
}

/// Splits time between two activities that take turns.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the last lap.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}
