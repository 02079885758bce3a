"""Compares `tonearm predict` with the original musicnn package, file by file. Run by scripts/compare-with-musicnn."""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
from dataclasses import dataclass

import librosa
import numpy as np
import soundfile

import musicnn_original
from musicnn_original import SAMPLE_RATE_HZ

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]


@dataclass
class Limit:
    window: float
    track: float


# From the same PCM only arithmetic differs, and musicnn's rounding to float16 (up to 3e-4). Another resampler moves scores more.
SAME_PCM = Limit(window=1e-3, track=1e-3)
DECODED = Limit(window=8e-3, track=4e-3)


@dataclass
class Track:
    path: pathlib.Path
    codec: str
    container: str
    sample_rate_hz: int
    channels: int

    @property
    def is_pcm_of_the_model(self):
        """A 16 kHz mono WAV: nothing to mix or resample."""
        return self.container == "wav" and self.codec.startswith("pcm_") and (self.sample_rate_hz, self.channels) == (SAMPLE_RATE_HZ, 1)

    @property
    def limit(self):
        return SAME_PCM if self.is_pcm_of_the_model else DECODED

    def pcm(self):
        """Mono samples at the model's rate, as librosa.load would give them from ffmpeg's samples."""
        if self.is_pcm_of_the_model:
            return soundfile.read(self.path, dtype="float32")[0]
        raw = run("ffmpeg", "-nostdin", "-v", "error", "-i", self.path, "-map", "0:a:0", "-f", "f32le", "-c:a", "pcm_f32le", "-")
        mono = np.frombuffer(raw, dtype="<f4").reshape(-1, self.channels).mean(axis=1)
        return librosa.resample(mono, orig_sr=self.sample_rate_hz, target_sr=SAMPLE_RATE_HZ, res_type="soxr_hq")


class Failure(Exception):
    """Why a file could not be compared, in one line."""


def run(*command):
    """What the command writes to stdout."""
    done = subprocess.run(list(map(str, command)), capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["and says nothing"]
        raise Failure(f"{pathlib.Path(command[0]).name} ends with {done.returncode}: {said[-1]}")
    return done.stdout


def probe(path):
    """The file's first audio stream, or None where there is none."""
    try:
        found = json.loads(run("ffprobe", "-v", "error", "-select_streams", "a:0", "-show_streams", "-show_format", "-of", "json", path))
    except Failure:
        return None
    if not found.get("streams"):
        return None
    stream = found["streams"][0]
    return Track(path, stream["codec_name"], found["format"]["format_name"], int(stream["sample_rate"]), int(stream["channels"]))


def predict(tonearm, track, model, labels):
    """Tonearm's scores `[windows × labels]` and its scores of the track `[labels]`, both in the order of `labels`."""
    out = run(tonearm, "predict", track.path, "--json", "--windows", "--labels", "all", "--model", model, "--precision", "float32")
    lines = [line for line in out.decode().splitlines() if line.strip()]
    if len(lines) != 1:
        raise Failure(f"tonearm wrote {len(lines)} lines for one file")
    prediction = json.loads(lines[0])
    for what, found, expected in [
        ("schema", prediction["schema"], "tonearm.prediction/1"),
        ("source.file", prediction["source"]["file"], str(track.path)),
        ("model.name", prediction["model"]["name"], model),
        ("model.precision", prediction["model"]["precision"], "float32"),
        ("the number of labels", len(prediction["labels"]), len(labels)),
    ]:
        if found != expected:
            raise Failure(f"{what} is {found!r}, not {expected!r}")
    track_scores = {label["label"]: label["score"] for label in prediction["labels"]}
    if missing := set(labels) - track_scores.keys():
        raise Failure(f"labels are missing: {', '.join(sorted(missing))}")
    windows = np.array([window["scores"] for window in prediction["windows"]], dtype=np.float64)
    return windows, np.array([track_scores[label] for label in labels])


def compare(tonearm, track, model):
    """(windows, worst difference of a window, worst difference of the track, where these are)"""
    expected, labels = musicnn_original.scores(track.pcm(), musicnn_original.MODELS[model])
    windows, track_scores = predict(tonearm, track, model, labels)
    if windows.shape != expected.shape:
        raise Failure(f"tonearm's scores have the shape {windows.shape}, musicnn's {expected.shape}")
    if not (np.isfinite(windows).all() and np.isfinite(track_scores).all()):
        raise Failure("tonearm's scores hold a value that is not a number")
    of_windows = np.abs(windows - expected)
    of_track = np.abs(track_scores - expected.mean(axis=0, dtype=np.float64))
    window, label = np.unravel_index(of_windows.argmax(), of_windows.shape)
    where = f"worst in window {window} for {labels[label]!r}, in the track for {labels[of_track.argmax()]!r}"
    return len(windows), of_windows.max(), of_track.max(), where


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/compare-with-musicnn",
        description="Compares the scores of `tonearm predict` in float32 with the original musicnn package (TensorFlow), for every audio "
        "file in a folder and the folders below. musicnn is fed with ffmpeg's samples, mixed to mono and resampled by soxr HQ. "
        f"Limits: {SAME_PCM.window:g} for 16 kHz mono WAV; else {DECODED.window:g} per window and {DECODED.track:g} per track. "
        "Exit code 0: all files within the limits; 1: at least one is not, or was rejected; 2: wrong usage.")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--model", action="append", choices=[*musicnn_original.MODELS, "all"],
                        help="may be given more than once (default: musicnn-mtt)")
    parser.add_argument("--tonearm", type=pathlib.Path, default=CHECKOUT / "target/release/tonearm", help="(default: %(default)s)")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    if shutil.which(options.tonearm) is None:
        parser.error(f"{options.tonearm} is not a program; `make build` makes it, --tonearm names another")
    for program in ("ffmpeg", "ffprobe"):
        if shutil.which(program) is None:
            parser.error(f"{program} is missing (Debian: apt-get install ffmpeg)")
    models = options.model or ["musicnn-mtt"]
    options.models = list(musicnn_original.MODELS) if "all" in models else models
    options.tonearm = options.tonearm.resolve() if options.tonearm.exists() else options.tonearm
    options.tracks = [track for path in sorted(options.folder.rglob("*")) if path.is_file() and (track := probe(path))]
    if not options.tracks:
        parser.error(f"{options.folder} holds no file that ffprobe finds audio in")
    return options


def main():
    options = arguments()
    name_width = max(len(str(track.path.relative_to(options.folder))) for track in options.tracks)
    row = f"{{:{name_width}}}  {{:11}}  {{:>6}}  {{:>2}}  {{:10}}  {{:>7}}  {{:>12}}  {{:>11}}  {{:>13}}  {{}}"
    print(row.format("file", "model", "rate", "ch", "codec", "windows", "worst window", "worst track", "limits", "result"))
    failed, worst_window, worst_track, windows_in_all = 0, 0.0, 0.0, 0
    for track in options.tracks:
        for model in options.models:
            limit = track.limit
            windows, of_window, of_track = "-", "-", "-"
            try:
                windows, of_window, of_track, where = compare(options.tonearm, track, model)
                within = of_window <= limit.window and of_track <= limit.track
                result = "ok" if within else f"FAIL: {where}"
                windows_in_all += windows
                worst_window, worst_track = max(worst_window, of_window), max(worst_track, of_track)
                of_window, of_track = f"{of_window:.6f}", f"{of_track:.6f}"
            except (Failure, KeyError, ValueError, TypeError) as problem:
                within = False
                result = f"FAIL: {problem}" if isinstance(problem, Failure) else f"FAIL: {type(problem).__name__}: {problem}"
            failed += not within
            print(row.format(
                str(track.path.relative_to(options.folder)), model, track.sample_rate_hz, track.channels, track.codec, windows, of_window,
                of_track, f"{limit.window:g} {limit.track:g}", result), flush=True)
    compared = len(options.tracks) * len(options.models)
    print(f"{compared - failed} of {compared} within the limits; {windows_in_all} windows; "
          f"worst window {worst_window:.6f}, worst track {worst_track:.6f}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
