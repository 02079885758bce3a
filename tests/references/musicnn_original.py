"""The original musicnn package: its own front end and its own TensorFlow graph, on PCM that is already mono at 16 kHz.

Run with the Python that scripts/reference-env prints. The package's code is used as it is published; nothing of it is rewritten here.
"""

import contextlib
import os
import tempfile
import warnings
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow: errors and warnings only
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import librosa
import numpy as np
import soundfile
from musicnn import extractor

SAMPLE_RATE_HZ = 16000
FRAMES_PER_WINDOW = 187  # what the package makes of its 3 s
HOP = 256
SAMPLES_PER_WINDOW = (FRAMES_PER_WINDOW - 1) * HOP  # the fewest samples that give one window

# Tonearm's names of the models, and musicnn's.
MODELS = {
    "musicnn-mtt": "MTT_musicnn",
    "musicnn-msd": "MSD_musicnn",
    "vgg-mtt": "MTT_vgg",
    "vgg-msd": "MSD_vgg",
}


def scores(pcm_16k_mono, model, mel_in_float16=True):
    """(taggram, labels): the scores `[windows × labels]`, 0..=1, of windows of 187 frames that do not overlap, and their labels.

    pcm_16k_mono: float samples, -1..=1. The last partial window is dropped. A track shorter than one window goes on in silence until
    it fills one; the package itself cannot handle such a track.
    model: a name of musicnn, `MTT_musicnn`, `MSD_musicnn`, `MTT_vgg` or `MSD_vgg`.
    mel_in_float16: the package rounds the mel spectrogram to float16 before the logarithm. False leaves this out and changes nothing
    else, for comparisons tighter than that rounding.
    """
    pcm = np.asarray(pcm_16k_mono, dtype=np.float32)
    if pcm.ndim != 1:
        raise ValueError(f"PCM must be mono, one dimension; it has the shape {pcm.shape}")
    pcm = np.pad(pcm, (0, max(0, SAMPLES_PER_WINDOW - len(pcm))))

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = os.path.join(folder, "pcm.wav")
        soundfile.write(path, pcm, SAMPLE_RATE_HZ, subtype="FLOAT")
        if not mel_in_float16:
            stack.enter_context(mock.patch.object(extractor, "batch_data", _batch_data_in_float32))
        # The package prints its progress, and TensorFlow warns of every layer that a newer one exists.
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"musicnn\.models")
        taggram, labels = extractor.extractor(path, model, extract_features=False)
    if not np.isfinite(taggram).all():
        raise ValueError(f"{model} gave scores that are not numbers; the PCM is too loud or not finite")
    return taggram.astype(np.float32), list(labels)


def log_mel(pcm_16k_mono):
    """musicnn's features `[frames × 96]` in float32: log10(10000 · mel power + 1), 1 + floor(samples / 256) frames."""
    power = librosa.feature.melspectrogram(y=pcm_16k_mono, sr=SAMPLE_RATE_HZ, n_fft=512, hop_length=HOP, n_mels=96).T
    return np.log10(10000 * power + 1)


def _batch_data_in_float32(path, n_frames, hop):
    """extractor.batch_data without the rounding to float16."""
    pcm, _ = soundfile.read(path, dtype="float32")
    frames = log_mel(pcm)
    starts = range(0, len(frames) - n_frames + 1, hop)
    return np.stack([frames[start : start + n_frames] for start in starts]), frames
