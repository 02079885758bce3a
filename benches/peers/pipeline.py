"""A whole pipeline in Python, files in, scores out, measured when asked to: pipeline.py naive|naive-windowed|tuned PROCESSES

naive: librosa.load → librosa's mel spectrogram → TorchScript in float32 on all windows of a file at once; one process, torch's own threads.
naive-windowed: the same, window by window, which happens to be much faster on the CPU.
tuned: PyAV → soxr → torch's STFT → OpenVINO in bfloat16, one process per core and one thread in each.
There is no Kafka in either, and nothing is exactly once: both have less to do than Tonearm.

A line of JSON on standard input names the files; the answer is a line with the time by the clock, and the number of windows. All models are
warm before the first answer.
"""
import json
import multiprocessing
import os
import sys
import time
import warnings

warnings.filterwarnings("ignore")

MODEL = "musicnn-mtt"
RATE, N_FFT, HOP, BANDS, FRAMES = 16_000, 512, 256, 96, 187


class Naive:
    def __init__(self, windowed: bool):
        import librosa
        import numpy
        import torch

        import models

        self.librosa, self.numpy, self.torch = librosa, numpy, torch
        self.model, self.windowed = models.torchscript(MODEL), windowed

    def file(self, path: str) -> int:
        samples, _ = self.librosa.load(path, sr=RATE)
        mel = self.librosa.feature.melspectrogram(y=samples, sr=RATE, n_fft=N_FFT, hop_length=HOP, n_mels=BANDS, pad_mode="constant")
        log_mel = self.numpy.log10(10_000 * mel.T + 1)
        count = len(log_mel) // FRAMES
        windows = self.torch.from_numpy(log_mel[: count * FRAMES].reshape(count, FRAMES, BANDS))
        with self.torch.no_grad():
            return sum(len(self.model(batch)) for batch in windows.split(1 if self.windowed else count))

    def files(self, paths: list) -> int:
        return sum(map(self.file, paths))


class Tuned:
    def __init__(self, processes: int):
        self.pool = multiprocessing.get_context("spawn").Pool(processes, warm)

    def files(self, paths: list) -> int:
        return sum(self.pool.imap_unordered(tuned_file, paths))


# Of one process of the pool.
worker = None


def warm() -> None:
    global worker
    os.environ["OMP_NUM_THREADS"] = "1"
    worker = TunedWorker()


def tuned_file(path: str) -> int:
    return worker.file(path)


class TunedWorker:
    def __init__(self):
        import av
        import numpy
        import soxr
        import torch
        import torchaudio

        import models

        torch.set_num_threads(1)
        self.av, self.numpy, self.soxr, self.torch = av, numpy, soxr, torch
        self.window = torch.hann_window(N_FFT)
        self.bank = torchaudio.functional.melscale_fbanks(N_FFT // 2 + 1, 0, RATE / 2, BANDS, RATE, "slaney", "slaney").T.contiguous()
        self.forward = models.openvino(MODEL, "bfloat16")
        self.forward(numpy.zeros((FRAMES, BANDS), numpy.float32))

    def file(self, path: str) -> int:
        numpy, torch = self.numpy, self.torch
        pieces = []
        with self.av.open(path) as container:
            stream = container.streams.audio[0]
            stream.codec_context.thread_count = 1
            rate = stream.rate
            for frame in container.decode(stream):
                samples = frame.to_ndarray()
                if not frame.format.is_planar:
                    samples = samples.reshape(-1, frame.layout.nb_channels).T
                if samples.dtype != numpy.float32:
                    samples = samples.astype(numpy.float32) / -float(numpy.iinfo(samples.dtype).min)
                pieces.append(samples.mean(0))
        mono = self.soxr.resample(numpy.concatenate(pieces), rate, RATE, quality="HQ")
        with torch.inference_mode():
            spectrum = torch.stft(torch.from_numpy(mono), N_FFT, HOP, window=self.window, center=True, pad_mode="constant", return_complex=True)
            power = torch.view_as_real(spectrum).square().sum(-1)
            log_mel = torch.log10(10_000 * (self.bank @ power) + 1).T.contiguous().numpy()
        starts = range(0, len(log_mel) - FRAMES + 1, FRAMES)
        scores = [self.forward(log_mel[start : start + FRAMES]).copy() for start in starts]
        return len(scores)


def main() -> None:
    kind, processes = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pipeline = Tuned(processes) if kind == "tuned" else Naive(kind == "naive-windowed")
    for line in sys.stdin:
        files = json.loads(line)["files"]
        start = time.perf_counter()
        windows = pipeline.files(files)
        print(json.dumps({"wall_s": time.perf_counter() - start, "windows": windows}), file=answers, flush=True)
    if kind == "tuned":
        pipeline.pool.terminate()


if __name__ == "__main__":
    main()
