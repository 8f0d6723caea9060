"""Audio files that come in: checked and read. No torch.

Files are judged by their bytes, never by a name. They are decoded in memory, in blocks, and no header is trusted for
a length: what counts is what comes out of the decoder.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from acestep_engine.errors import AudioError, AudioTooLargeError
from acestep_engine.kinds import Readable, recognise
from acestep_engine.media import media_decoder
from acestep_engine.params import AudioFormat, longest_source_samples
from acestep_engine.sndfile import sndfile_decoder

MEDIA_TYPES: Mapping[AudioFormat, str] = {
    "wav": "audio/wav",
    "wav32": "audio/wav",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
    "opus": "audio/ogg; codecs=opus",
}

FloatArray = npt.NDArray[np.float32]

BLOCK_FRAMES = 48_000
MAX_PEAK = 100.0  # 40 dB over full scale: only floating point files can be louder, and no model can make sense of them

# How loud each channel of a layout is in the left half of the mix; the right half mirrors it. By number of channels, in
# the order of WAVE and FLAC: front left and right, centre, low frequencies, then pairs. After ITU-R BS.775: a centre or
# surround channel at -3 dB, low frequencies left out.
_SIDE = 0.7071
DOWNMIX_LEFT: Mapping[int, tuple[float, ...]] = {
    3: (1, 0, _SIDE),
    4: (1, 0, _SIDE, 0),
    5: (1, 0, _SIDE, _SIDE, 0),
    6: (1, 0, _SIDE, 0, _SIDE, 0),
    7: (1, 0, _SIDE, 0, _SIDE, _SIDE, 0),
    8: (1, 0, _SIDE, 0, _SIDE, 0, _SIDE, 0),
}
DOWNMIX_RIGHT: Mapping[int, tuple[float, ...]] = {
    3: (0, 1, _SIDE),
    4: (0, 1, 0, _SIDE),
    5: (0, 1, _SIDE, 0, _SIDE),
    6: (0, 1, _SIDE, 0, 0, _SIDE),
    7: (0, 1, _SIDE, 0, _SIDE, 0, _SIDE),
    8: (0, 1, _SIDE, 0, 0, _SIDE, 0, _SIDE),
}


@dataclass(frozen=True)
class AudioLimits:
    """How much audio is accepted, counted while it is decoded."""

    max_duration_s: float = 600.0
    max_channels: int = 8
    min_rate_hz: int = 8_000
    max_rate_hz: int = 192_000


@dataclass(frozen=True)
class AudioInfo:
    """What a file turned out to hold. `frames` are samples per channel."""

    container: str
    frames: int
    channels: int
    sample_rate_hz: int

    @property
    def duration_s(self) -> float:
        return self.frames / self.sample_rate_hz


@dataclass(frozen=True)
class SourceAudio:
    """Stereo samples (2, N), float32, nominally in [-1, 1]."""

    samples: FloatArray
    sample_rate_hz: int

    @property
    def nbytes(self) -> int:
        return self.samples.nbytes


def check_audio(data: bytes | memoryview, limits: AudioLimits) -> AudioInfo:
    """Decode the whole file in blocks of bounded memory, keep nothing, and say what is in it.

    Raises AudioError if it is no audio that can be read, holds no samples, NaN or infinity, or has a sample
    rate outside of the limits; AudioTooLargeError if it lasts too long or has too many channels. Decoding stops at the
    limit. A file that ends early, or that says a wrong length, counts as what is there.
    """
    with _opened(data, limits) as (kind, decoder):
        frames = sum(len(block) for block in _blocks(decoder, limits))
        return AudioInfo(kind, frames, decoder.channels, decoder.sample_rate_hz)


def read_audio(data: bytes | memoryview, limits: AudioLimits) -> SourceAudio:
    """Read the file as stereo, up to the length of the longest song: no more of a source is used, nor is it decoded.

    Mono is doubled, more than two channels are mixed down. Raises what `check_audio` does, of the part that is read.
    """
    with _opened(data, limits) as (_, decoder):
        most = longest_source_samples(decoder.sample_rate_hz)
        blocks: list[FloatArray] = []
        frames = 0
        for block in _blocks(decoder, limits):
            blocks.append(_stereo(block[: most - frames]))
            frames += blocks[-1].shape[1]
            if frames == most:
                break
        samples = np.empty((2, frames), np.float32)
        start = 0
        for index, block in enumerate(blocks):
            samples[:, start : start + block.shape[1]] = block
            start += block.shape[1]
            blocks[index] = block[:, :0]  # let go at once: all blocks beside all samples would take twice the memory
        return SourceAudio(samples, decoder.sample_rate_hz)


class _Decoder(Protocol):
    """An open file."""

    @property
    def channels(self) -> int: ...

    @property
    def sample_rate_hz(self) -> int: ...

    def read(self, buffer: FloatArray) -> FloatArray:
        """Fill `buffer` (n, channels) with the next samples and return the part that was filled, none at the end."""


@contextmanager
def _opened(data: bytes | memoryview, limits: AudioLimits) -> Iterator[tuple[str, _Decoder]]:
    """Open a file that is recognised, and within the limits that its header can tell; with its kind."""
    kind, content = recognise(memoryview(data))
    name: str
    opened: AbstractContextManager[_Decoder]
    if isinstance(kind, Readable):
        name, opened = kind.container, sndfile_decoder(kind.container, content, limits.max_duration_s)
    else:
        name, opened = kind.demuxer, media_decoder(kind, content)
    with opened as decoder:
        if decoder.channels > limits.max_channels:
            raise AudioTooLargeError(f"{decoder.channels} channels exceed the limit of {limits.max_channels}")
        if not limits.min_rate_hz <= decoder.sample_rate_hz <= limits.max_rate_hz:
            accepted = f"{limits.min_rate_hz} to {limits.max_rate_hz} Hz"
            raise AudioError(f"a sample rate of {decoder.sample_rate_hz} Hz is outside of {accepted}")
        yield name, decoder


def _blocks(decoder: _Decoder, limits: AudioLimits) -> Iterator[FloatArray]:
    """Blocks (n, channels) of decoded samples; the array is used again for the next block."""
    buffer = np.empty((BLOCK_FRAMES, decoder.channels), np.float32)
    limit = int(limits.max_duration_s * decoder.sample_rate_hz)
    frames = 0
    while len(block := decoder.read(buffer)):
        frames += len(block)
        if frames > limit:
            seconds = frames / decoder.sample_rate_hz
            raise AudioTooLargeError(
                f"the audio lasts at least {seconds:.1f} s, the limit is {limits.max_duration_s:g} s"
            )
        if not np.isfinite(block).all():
            raise AudioError("the audio holds NaN or infinite samples")
        peak = float(np.abs(block).max(initial=0.0))
        if peak > MAX_PEAK:
            raise AudioError(f"the audio's samples reach {peak:.3g}, the limit is {MAX_PEAK:g}; full scale is 1")
        yield block
    if not frames:
        raise AudioError("the audio file holds no samples")


def _stereo(block: FloatArray) -> FloatArray:
    """A block (n, channels) as a new array (2, n)."""
    channels = block.shape[1]
    if channels <= 2:
        return np.broadcast_to(block, (len(block), 2)).T.copy()
    if channels not in DOWNMIX_LEFT:
        return np.broadcast_to(block.mean(axis=1), (2, len(block))).copy()
    weights = np.array([DOWNMIX_LEFT[channels], DOWNMIX_RIGHT[channels]], np.float32)
    mixed: FloatArray = (weights / weights.sum(axis=1, keepdims=True)) @ block.T
    return mixed
