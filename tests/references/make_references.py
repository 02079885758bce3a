"""Writes the golden data beside this file; README.md says what is in it.

    $(scripts/reference-env | tail -n 1) tests/references/make_references.py

The music is synthesised here, so nobody else's rights are in it. Same packages, same bytes, up to the last bits of the scores, which
TensorFlow computes differently on different processors.
"""

import json
import pathlib
import warnings

import librosa
import numpy as np
import soxr
from safetensors.numpy import save_file

import musicnn_original

HERE = pathlib.Path(__file__).parent

# Front ends under the names of model.toml, with the sample rate they run at. `musicnn` is the real one; the others exist to reach every
# choice a manifest has: other scales and norms, amplitude, natural logarithm, no padding, a transform that is no power of two.
FRONT_ENDS = {
    "musicnn": (16000, dict(
        n_fft=512, hop=256, window="hann", padding="center-zero", power=2.0, bands=96, mel_scale="slaney", mel_norm="slaney",
        min_hz=0.0, max_hz=8000.0, log=dict(base="10", scale=10000.0, offset=1.0))),
    "htk-amplitude": (22050, dict(
        n_fft=1024, hop=512, window="hamming", padding="none", power=1.0, bands=64, mel_scale="htk", mel_norm="none",
        min_hz=50.0, max_hz=10000.0, log=dict(base="e", scale=1.0, offset=0.01))),
    "slaney-wide": (44100, dict(
        n_fft=2048, hop=1024, window="hann", padding="center-zero", power=2.0, bands=128, mel_scale="slaney", mel_norm="slaney",
        min_hz=20.0, max_hz=22050.0, log=dict(base="e", scale=1.0, offset=0.0001))),
    "not-a-power-of-two": (16000, dict(
        n_fft=400, hop=160, window="hann", padding="center-zero", power=2.0, bands=80, mel_scale="htk", mel_norm="slaney",
        min_hz=0.0, max_hz=8000.0, log=dict(base="10", scale=1.0, offset=0.0001))),
}

# Lengths around the hop and the half transform, where a spectrogram goes wrong first.
SHORT_LENGTHS = [0, 1, 255, 256, 257, 511, 512]
LOUD_PART = 56000  # where short pieces are cut from, in samples
SHORT_TRACK = 30001  # samples; shorter than one window, and its end lies between two frames

RESAMPLED_FROM_HZ = [8000, 11025, 22050, 32000, 44100, 48000, 96000]
RESAMPLED_S = 0.12  # a whole number of samples at every one of these rates


def music(seconds, rate_hz):
    """A small piece of our own, -1..=1: plucked chords, a bass, drums of noise, then silence, clicks and one loud sine."""
    noise = np.random.Generator(np.random.PCG64(20))
    samples = np.zeros(round(seconds * rate_hz))

    def add(start_s, sound):
        start = round(start_s * rate_hz)
        end = min(start + len(sound), len(samples))
        if start < end:
            samples[start:end] += sound[: end - start]

    def pluck(hz, length_s, loudness):
        t = np.arange(round(length_s * rate_hz)) / rate_hz
        partials = [k for k in range(1, 13) if k * hz < 0.45 * rate_hz]
        return loudness * sum(np.sin(2 * np.pi * k * hz * t) / k**1.3 * np.exp(-t * (2 + 0.8 * k)) for k in partials)

    chords = [(57, 60, 64, 69), (53, 57, 60, 65), (48, 55, 60, 64), (55, 59, 62, 67)]  # A minor, F, C, G as MIDI notes
    for beat in range(int(seconds / 0.5) + 1):
        start_s = 0.5 * beat
        chord = chords[beat // 4 % 4]
        for step, note in enumerate(chord):
            add(start_s + 0.06 * step, pluck(440 * 2 ** ((note - 69) / 12), 1.2, 0.14))
        add(start_s, pluck(440 * 2 ** ((chord[0] - 24 - 69) / 12), 0.5, 0.3))
        # Snare and hi-hat. As many random numbers at every rate, so that only the spectrum of the noise depends on the rate.
        length = round((0.12 if beat % 2 else 0.03) * rate_hz)
        add(start_s + 0.25, 0.25 * noise.standard_normal(length) * np.exp(-np.arange(length) / (0.2 * length)))

    def between(start_s, end_s):
        return slice(round(start_s * rate_hz), round(end_s * rate_hz))

    samples[between(0.7 * seconds, 0.75 * seconds)] = 0
    samples[between(0.75 * seconds, 0.8 * seconds)] = 0
    samples[between(0.75 * seconds, 0.8 * seconds)][:: max(1, rate_hz // 40)] = 1
    tone = samples[between(0.97 * seconds, seconds)]
    tone[:] = np.sin(2 * np.pi * 1000 * np.arange(len(tone)) / rate_hz)
    return in_16_bits(samples)


def tones(seconds, rate_hz):
    """Sines up to 0.9 of the lower Nyquist frequency, faded in and out: all in the pass band, so good resamplers agree closely."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    nyquist_hz = min(rate_hz, 16000) / 2
    fade = np.minimum(1, np.minimum(t, t[::-1]) / 0.03)
    sines = sum(np.sin(2 * np.pi * share * nyquist_hz * t + share) for share in (0.05, 0.31, 0.6, 0.9))
    return in_16_bits(0.2 * sines * np.sin(np.pi / 2 * fade) ** 2)


def edges(seconds, rate_hz):
    """What tells resamplers apart: a sine in the transition band, a click, noise, an abrupt start and end."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    samples = 0.2 * np.cos(2 * np.pi * 0.96 * min(rate_hz, 16000) / 2 * t)
    samples[len(t) // 2] = 1
    tail = len(t) // 8
    samples[-tail:] += 0.1 * np.random.Generator(np.random.PCG64(21)).standard_normal(tail)
    return in_16_bits(samples)


def in_16_bits(samples):
    """The nearest multiples of 1 / 32768, so that differences of the last bit between sine functions vanish."""
    return (np.round(np.clip(samples, -1, 32767 / 32768) * 32768) / 32768).astype(np.float32)


def mel_bank(rate_hz, spec):
    """librosa's triangles, `[bands × (n_fft / 2 + 1)]`."""
    return librosa.filters.mel(
        sr=rate_hz, n_fft=spec["n_fft"], n_mels=spec["bands"], fmin=spec["min_hz"], fmax=spec["max_hz"],
        htk=spec["mel_scale"] == "htk", norm=None if spec["mel_norm"] == "none" else spec["mel_norm"])


def log_mel(pcm, rate_hz, spec):
    """librosa's mel spectrogram under the manifest's logarithm, `[frames × bands]`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_fft=.* is too large for input signal")
        mel = librosa.feature.melspectrogram(
            y=pcm, sr=rate_hz, n_fft=spec["n_fft"], hop_length=spec["hop"], window=spec["window"], power=spec["power"],
            center=spec["padding"] == "center-zero", pad_mode="constant", n_mels=spec["bands"], fmin=spec["min_hz"],
            fmax=spec["max_hz"], htk=spec["mel_scale"] == "htk", norm=None if spec["mel_norm"] == "none" else spec["mel_norm"]).T
    log = np.log if spec["log"]["base"] == "e" else np.log10
    return np.ascontiguousarray(log(spec["log"]["scale"] * mel + spec["log"]["offset"]), dtype=np.float32)


def spectrograms():
    tensors = {}
    for name, (rate_hz, spec) in FRONT_ENDS.items():
        pcm = music(10, rate_hz) if name == "musicnn" else music(1, rate_hz)
        tensors[f"{name}.pcm"] = pcm
        tensors[f"{name}.mel_bank"] = mel_bank(rate_hz, spec)
        tensors[f"{name}.log_mel"] = log_mel(pcm, rate_hz, spec)
    rate_hz, spec = FRONT_ENDS["musicnn"]
    for length in SHORT_LENGTHS:
        piece = tensors["musicnn.pcm"][LOUD_PART : LOUD_PART + length]
        tensors[f"musicnn.log_mel_of_{length}_samples"] = log_mel(piece, rate_hz, spec)
    # The package asks librosa for its defaults; the parameters written out above must mean the same.
    np.testing.assert_array_equal(tensors["musicnn.log_mel"], musicnn_original.log_mel(tensors["musicnn.pcm"]))
    return tensors


def model_scores(pcm):
    tensors, labels = {}, {}
    for name, original in musicnn_original.MODELS.items():
        tensors[f"{name}.windows"], labels[name] = musicnn_original.scores(pcm, original, mel_in_float16=False)
        tensors[f"{name}.windows_as_published"], _ = musicnn_original.scores(pcm, original)
        tensors[f"{name}.mean"] = tensors[f"{name}.windows"].mean(axis=0, dtype=np.float64).astype(np.float32)
        short = pcm[LOUD_PART : LOUD_PART + SHORT_TRACK]
        tensors[f"{name}.short_track"], _ = musicnn_original.scores(short, original, mel_in_float16=False)
    return tensors, labels


def resampled():
    tensors = {}
    for rate_hz in RESAMPLED_FROM_HZ:
        for name, samples in [("tones", tones(RESAMPLED_S, rate_hz)), ("edges", edges(RESAMPLED_S, rate_hz))]:
            tensors[f"{rate_hz}.{name}.input"] = samples
            tensors[f"{rate_hz}.{name}.output"] = soxr.resample(samples, rate_hz, 16000, quality="HQ")
            assert len(tensors[f"{rate_hz}.{name}.output"]) == round(RESAMPLED_S * 16000)
    return tensors


def write_tensors(name, tensors):
    save_file(tensors, HERE / name)
    (HERE / name).chmod(0o644)  # save_file leaves it readable by its owner only


def write_json(name, value):
    (HERE / name).write_text(json.dumps(value, indent=1) + "\n")


def main():
    front_ends = {name: dict(sample_rate_hz=rate_hz, features=spec) for name, (rate_hz, spec) in FRONT_ENDS.items()}
    write_json("front_ends.json", front_ends)
    tensors = spectrograms()
    write_tensors("spectrograms.safetensors", tensors)
    scores, labels = model_scores(tensors["musicnn.pcm"])
    write_tensors("scores.safetensors", scores)
    write_json("labels.json", labels)
    write_tensors("resampled.safetensors", resampled())
    for path in sorted(HERE.glob("*.safetensors")) + sorted(HERE.glob("*.json")):
        print(f"{path.stat().st_size:>9} bytes  {path.name}")


if __name__ == "__main__":
    main()
