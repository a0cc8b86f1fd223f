"""Writes spectrogram.json here: log-mel spectra by librosa, log-frequency spectra by numpy.

    pip install librosa==0.11.0
    python test/golden/spectrogram.py

All bands are wider than a bin of the FFT: palkit widens narrower ones, librosa leaves them empty.
"""

import json
from pathlib import Path

import librosa
import numpy as np

rate = 16_000

# Lehmer's random numbers, exact in float64 everywhere, over two tones.
state, noise = 1, []
for _ in range(3200):
    state = 16807 * state % 2147483647
    noise.append(state / 2147483647 - 0.5)
time = np.arange(3200) / rate
signal = 0.2 * np.array(noise) + 0.3 * np.sin(2 * np.pi * 523.25 * time) + 0.1 * np.sin(2 * np.pi * 3000 * time)
signal = signal.astype(np.float32)


def log_mel(htk):
    power = librosa.feature.melspectrogram(
        y=signal.astype(np.float64), sr=rate, n_fft=512, win_length=400, hop_length=160, window="hann",
        center=True, pad_mode="reflect", power=2.0, n_mels=12, fmin=200, fmax=7600, htk=htk, norm=None,
    )
    return np.log(power.T + 1e-10)[:20]


def log_frequency():
    window = 1024
    padded = np.pad(signal.astype(np.float64), window // 2, mode="reflect")
    hann = np.hanning(window + 1)[:-1]
    frames = [padded[at : at + window] * hann for at in range(0, 3200, 320)]
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    hertz = np.fft.rfftfreq(window, 1 / rate)
    centers = 440 * 2 ** (np.arange(-1, 25) / 12)
    bands = [np.interp(hertz, centers[at : at + 3], [0, 1, 0]) for at in range(24)]
    return np.log(power @ np.array(bands).T + 1e-10)


found = {"htk": log_mel(True), "slaney": log_mel(False), "logFrequency": log_frequency()}
rows = {name: [[round(float(value), 6) for value in row] for row in rows] for name, rows in found.items()}
Path(__file__).with_suffix(".json").write_text(json.dumps(rows) + "\n")
