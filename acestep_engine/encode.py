"""Songs to audio files, part by part: a file is nothing but its parts, one after the other. No torch."""

from collections.abc import Iterator, Mapping
from io import SEEK_CUR, SEEK_END
from typing import Protocol

import numpy as np
import soundfile

from acestep_engine.containers import MP3_KBPS, open_container
from acestep_engine.errors import AudioError, NumericalError
from acestep_engine.ogg import OPUS_TAIL_SAMPLES
from acestep_engine.params import OUTPUT_SAMPLE_RATE_HZ, AudioFormat
from acestep_engine.requests import Samples

BLOCK_SAMPLES = 4_800  # the encoders get blocks of this size, however a song comes: else its bytes might depend on it
PCM16_PEAK = 32_767

ENCODERS: Mapping[AudioFormat, dict[str, str | float]] = {
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "mp3": {
        "format": "MP3",
        "subtype": "MPEG_LAYER_III",
        "bitrate_mode": "CONSTANT",
        "compression_level": (320 - MP3_KBPS) / (320 - 32),
    },
    "ogg": {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.4},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


class AudioEncoder:
    """One song on its way into a file of `audio_format`, with `tags` in it. From one thread at a time.

    All that `push` and `finish` answer, joined, is the file: each part of it is final, and it can be played from its
    first bytes. The same song is the same bytes, whatever parts it came in. WAV and FLAC are 16 bits a sample, MP3 has
    192 kbit/s, Vorbis about as much. Samples beyond [-1, 1] are clipped, but those of wav32 are kept as they are.
    """

    def __init__(self, audio_format: AudioFormat, samples: int, tags: Mapping[str, str]) -> None:
        """For a song of exactly so many samples at 48 kHz. Raises AudioError if there are none."""
        if samples < 1:
            raise AudioError(f"a song of {samples} samples cannot be encoded")
        self._left = samples
        self._container = open_container(audio_format, samples, tags)
        self._codec = _open_codec(audio_format)
        self._kept = np.empty((2, 0), np.float32)  # less than a block

    def push(self, samples: Samples) -> bytes:
        """The file's next bytes, for the song's next samples (2, n); none, if the encoder wants more first.

        Raises NumericalError if any sample is NaN or infinite, AudioError for another shape, ValueError for more than
        were announced.
        """
        if samples.ndim != 2 or samples.shape[0] != 2:
            raise AudioError(f"samples of shape {samples.shape} cannot be encoded, expected (2, n)")
        if not np.isfinite(samples).all():
            raise NumericalError("the samples hold NaN or infinity")
        if samples.shape[1] > self._left:
            raise ValueError(f"{samples.shape[1] - self._left} samples more came than were announced")
        self._left -= samples.shape[1]
        pending = np.concatenate([self._kept, samples], axis=1)
        whole = pending.shape[1] - pending.shape[1] % BLOCK_SAMPLES
        self._kept = pending[:, whole:].copy()
        return self._container.pass_on(b"".join(self._codec.encode(block) for block in _blocks(pending[:, :whole])))

    def finish(self) -> bytes:
        """The rest of the file. Raises ValueError if samples are missing."""
        if self._left:
            raise ValueError(f"{self._left} samples are missing of those that were announced")
        rest = b"".join(self._codec.encode(block) for block in _blocks(self._kept))
        return self._container.pass_on(rest + self._codec.finish())


def encode_audio(samples: Samples, audio_format: AudioFormat, tags: Mapping[str, str]) -> bytes:
    """A whole song (2, N) at 48 kHz as a file. Raises what AudioEncoder does."""
    encoder = AudioEncoder(audio_format, samples.shape[-1], tags)
    return encoder.push(samples) + encoder.finish()


def _blocks(samples: Samples) -> Iterator[Samples]:
    for start in range(0, samples.shape[1], BLOCK_SAMPLES):
        yield samples[:, start : start + BLOCK_SAMPLES].T


class _Codec(Protocol):
    """Blocks (n, 2) to bytes."""

    def encode(self, block: Samples) -> bytes: ...

    def finish(self) -> bytes: ...


class _Pcm:
    """16 bits, little-endian, without a header."""

    def encode(self, block: Samples) -> bytes:
        return _pcm16(block).astype("<i2").tobytes()

    def finish(self) -> bytes:
        return b""


class _Float:
    """32 bits, little-endian, without a header."""

    def encode(self, block: Samples) -> bytes:
        return block.astype("<f4").tobytes()

    def finish(self) -> bytes:
        return b""


class _Sndfile:
    """What libsndfile makes of it."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._lossless = audio_format == "flac"
        self._tail_samples = OPUS_TAIL_SAMPLES if audio_format == "opus" else 0
        self._outlet = _Outlet()
        options = ENCODERS[audio_format]
        self._encoder = soundfile.SoundFile(self._outlet, "w", OUTPUT_SAMPLE_RATE_HZ, channels=2, **options)

    def encode(self, block: Samples) -> bytes:
        self._encoder.write(_pcm16(block) if self._lossless else np.ascontiguousarray(np.clip(block, -1.0, 1.0)))
        return self._outlet.take()

    def finish(self) -> bytes:
        if self._tail_samples:
            self._encoder.write(np.zeros((self._tail_samples, 2), np.float32))
        self._encoder.close()
        return self._outlet.take()


def _pcm16(block: Samples) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.rint(np.clip(block, -1.0, 1.0) * PCM16_PEAK).astype(np.int16)


def _open_codec(audio_format: AudioFormat) -> _Codec:
    match audio_format:
        case "wav":
            return _Pcm()
        case "wav32":
            return _Float()
        case _:
            return _Sndfile(audio_format)


class _Outlet:
    """A file for libsndfile that keeps only what was not taken yet.

    Whatever it goes back to complete, having reached the end, is dropped: the containers knew it before.
    """

    def __init__(self) -> None:
        self._fresh = bytearray()
        self._size = 0
        self._position = 0

    def write(self, data: bytes) -> int:
        known = self._size - self._position
        self._fresh += data[known:]
        self._position += len(data)
        self._size = max(self._size, self._position)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = {SEEK_CUR: self._position, SEEK_END: self._size}.get(whence, 0) + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        """soundfile wants the method; nothing written is read again."""
        return b""

    def take(self) -> bytes:
        """What was appended since the last time."""
        taken, self._fresh = bytes(self._fresh), bytearray()
        return taken
