"""One peer's stages, measured when asked to: stage.py PEER

A line of JSON on standard input says what to do and how often; the answer is a line with the CPU time of this process, the time by the clock, and
a sum by which the results can be compared. What is to be done is prepared and done once before the clocks start.
"""
import json
import os
import sys
import time
import warnings

for variable in ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"]:
    os.environ[variable] = "1"
warnings.filterwarnings("ignore")

import numpy  # noqa: E402

# The front end of musicnn (models/manifests/musicnn-mtt.toml).
RATE, N_FFT, HOP, BANDS = 16_000, 512, 256, 96


def pyav_decode(file: str):
    import av

    def decode() -> int:
        frames = 0
        with av.open(file) as container:
            stream = container.streams.audio[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                frames += frame.samples
        return frames

    return decode


def soxr_resample(pcm: str, from_hz: int, to_hz: int):
    import soxr

    samples = numpy.fromfile(pcm, numpy.float32)
    return lambda: len(soxr.resample(samples, from_hz, to_hz, quality="HQ"))


def librosa_log_mel(pcm: str):
    import librosa

    samples = numpy.fromfile(pcm, numpy.float32)

    def log_mel() -> float:
        mel = librosa.feature.melspectrogram(y=samples, sr=RATE, n_fft=N_FFT, hop_length=HOP, n_mels=BANDS, pad_mode="constant")
        return float(numpy.log10(10_000 * mel + 1).mean())

    return log_mel


def torchaudio_log_mel(pcm: str):
    import torch
    import torchaudio

    torch.set_num_threads(1)
    samples = torch.from_numpy(numpy.fromfile(pcm, numpy.float32))
    transform = torchaudio.transforms.MelSpectrogram(RATE, n_fft=N_FFT, hop_length=HOP, n_mels=BANDS, pad_mode="constant",
                                                     norm="slaney", mel_scale="slaney")

    def log_mel() -> float:
        with torch.inference_mode():
            return float(torch.log10(10_000 * transform(samples) + 1).mean())

    return log_mel


def forward(peer: str, windows: str, model: str, precision: str):
    import models

    values = numpy.fromfile(windows, numpy.float32).reshape(-1, models.FRAMES, models.BANDS)
    score = models.FORWARD[peer](model, precision)
    return lambda: float(numpy.mean([score(window) for window in values]))


PREPARE = {
    "decode": {"pyav": pyav_decode},
    "resample": {"soxr": soxr_resample},
    "log-mel": {"librosa": librosa_log_mel, "torchaudio": torchaudio_log_mel},
    "forward": {peer: lambda peer=peer, **what: forward(peer, **what) for peer in ["pytorch", "openvino", "onnxruntime"]},
}


def main() -> None:
    peer = sys.argv[1]
    # Standard output is for answers; libraries say what they like on the other one.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepared = {}
    for line in sys.stdin:
        request = json.loads(line)
        stage, what, repeat = request["stage"], request["what"], request["repeat"]
        key = json.dumps([stage, what])
        if key not in prepared:
            prepared[key] = PREPARE[stage][peer](**what)
            prepared[key]()
        work = prepared[key]
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(repeat):
            check = work()
        answer = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "check": check}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
