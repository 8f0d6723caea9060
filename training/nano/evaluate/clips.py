"""Clips as files: the sound, and a picture of its spectrogram."""

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from training.nano.evaluate.classify import mel_picture
from training.nano.evaluate.spectra import RATE_HZ, Audio

PIXELS = 2  # on either side, for each band of each two frames
# From silence to the loudest, in equal steps: dark to bright for any eye and any printer.
COLOURS = ((0, 0, 4), (60, 15, 110), (150, 40, 110), (225, 90, 60), (250, 175, 50), (252, 255, 190))


def write_clip(folder: Path, name: str, audio: Audio) -> None:
    """`name`.wav and `name`.png in the folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{name}.wav", audio.T, RATE_HZ, subtype="PCM_16")
    (folder / f"{name}.png").write_bytes(png(spectrogram_pixels(audio)))


def spectrogram_pixels(audio: Audio) -> npt.NDArray[np.uint8]:
    """The log-mel as pixels (256, about N / 512, 3): 70 dB from dark to bright, deep tones at the bottom."""
    levels = 1 + mel_picture(audio).numpy()[::-1]  # (128, T), 0 to 1
    large = levels.repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(large, stops, [colour[i] for colour in COLOURS]) for i in range(3)]
    pixels: npt.NDArray[np.uint8] = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return pixels


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Pixels (H, W, 3) as a PNG file (ISO/IEC 15948: 8 bits per channel, rows unfiltered)."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
