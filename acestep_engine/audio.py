"""Audio files that come in: checked and read. No torch.

Files are judged by their bytes, never by a name. They are decoded in memory, in blocks, and no header is trusted for
a length: what counts is what comes out of the decoder.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, BytesIO

import numpy as np
import numpy.typing as npt
import soundfile

from acestep_engine.errors import AudioError, AudioTooLargeError
from acestep_engine.mp3 import check_mp3, skip_id3
from acestep_engine.params import AudioFormat

MEDIA_TYPES: Mapping[AudioFormat, str] = {
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
    "opus": "audio/ogg; codecs=opus",
}

FloatArray = npt.NDArray[np.float32]

BLOCK_FRAMES = 48_000
MAX_PEAK = 100.0  # 40 dB over full scale: only floating point files can be louder, and no model can make sense of them

ACCEPTED = "WAV, AIFF, FLAC, MP3, Ogg Vorbis and Ogg Opus are read"
KNOWN_BUT_NOT_READ = {
    b"PK\x03\x04": "a zip archive",
    b"\x1aE\xdf\xa3": "a Matroska or WebM file",
    b"#EXTM3U": "a playlist",
    b"[playlist]": "a playlist",
    b"MThd": "a MIDI file",
    b"%PDF": "a PDF",
}
READABLE_CODECS = frozenset(
    {
        "PCM_S8",
        "PCM_U8",
        "PCM_16",
        "PCM_24",
        "PCM_32",
        "FLOAT",
        "DOUBLE",
        "ULAW",
        "ALAW",
        "MPEG_LAYER_III",
        "VORBIS",
        "OPUS",
    }
)

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


def check_audio(data: bytes | memoryview, limits: AudioLimits) -> AudioInfo:
    """Decode the whole file in blocks of bounded memory, keep nothing, and say what is in it.

    Raises AudioError if it is no audio that can be read, is cut off, holds no samples, NaN or infinity, or has a sample
    rate outside of the limits; AudioTooLargeError if it lasts too long or has too many channels. Decoding stops at the
    limit. A WAV or Ogg file that ends early counts as what is there; an MP3 that does is refused.
    """
    with _opened(data, limits) as decoder:
        frames = sum(len(block) for block in _blocks(decoder, limits))
        return AudioInfo(decoder.format, frames, decoder.channels, decoder.samplerate)


def read_audio(data: bytes | memoryview, limits: AudioLimits) -> SourceAudio:
    """The file as stereo: mono is doubled, more than two channels are mixed down. Raises what `check_audio` does."""
    with _opened(data, limits) as decoder:
        blocks = [_stereo(block) for block in _blocks(decoder, limits)]
        samples = np.empty((2, sum(block.shape[1] for block in blocks)), np.float32)
        start = 0
        for index, block in enumerate(blocks):
            samples[:, start : start + block.shape[1]] = block
            start += block.shape[1]
            blocks[index] = block[:, :0]  # let go at once: all blocks beside all samples would take twice the memory
        return SourceAudio(samples, decoder.samplerate)


class _Memory(BytesIO):
    """A file in memory for libsndfile. A forged chunk size may send it before the start: it stays at the start."""

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {SEEK_CUR: self.tell(), SEEK_END: self.getbuffer().nbytes}.get(whence, 0)
        return super().seek(max(0, base + offset))


class _Decoder(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """Reads forward only: soundfile seeks after every read of a seekable file, which for MP3 and Ogg is slow."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(data: bytes | memoryview, limits: AudioLimits) -> Iterator[_Decoder]:
    """The file, recognised and within the limits that its header can tell."""
    content = skip_id3(memoryview(data))
    container = _recognise(content)
    if container == "MP3":
        check_mp3(content, limits.max_duration_s)
    broken = f"the {container} file is broken or encoded in a way that is not supported"
    try:
        decoder = _Decoder(_Memory(content))
    except soundfile.LibsndfileError as error:
        raise AudioError(broken) from error
    with decoder:
        if decoder.subtype not in READABLE_CODECS:
            raise AudioError(f"{decoder.subtype} audio in a {container} file is not supported; {ACCEPTED}")
        if decoder.channels > limits.max_channels:
            raise AudioTooLargeError(f"{decoder.channels} channels exceed the limit of {limits.max_channels}")
        if not limits.min_rate_hz <= decoder.samplerate <= limits.max_rate_hz:
            accepted = f"{limits.min_rate_hz} to {limits.max_rate_hz} Hz"
            raise AudioError(f"a sample rate of {decoder.samplerate} Hz is outside of {accepted}")
        try:
            yield decoder
        except soundfile.LibsndfileError as error:
            raise AudioError(broken) from error


def _blocks(decoder: _Decoder, limits: AudioLimits) -> Iterator[FloatArray]:
    """Blocks (n, channels) of decoded samples; the array is used again for the next block."""
    buffer = np.empty((BLOCK_FRAMES, decoder.channels), np.float32)
    limit = int(limits.max_duration_s * decoder.samplerate)
    frames = 0
    while len(block := decoder.read(out=buffer)):
        frames += len(block)
        if frames > limit:
            seconds = frames / decoder.samplerate
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


def _recognise(content: memoryview) -> str:
    """The container, by its first bytes. Raises AudioError for what is none of those that are read."""
    head = bytes(content[:64])
    if not head:
        raise AudioError(f"the audio file is empty; {ACCEPTED}")
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if head[:4] == b"fLaC":
        return "FLAC"
    if head[:4] == b"OggS":
        return "Ogg"
    if head[0] == 0xFF and head[1:2] >= b"\xe0":
        return "MP3"
    kind = next((name for magic, name in KNOWN_BUT_NOT_READ.items() if head.startswith(magic)), None)
    kind = "an MP4 or M4A file" if head[4:8] == b"ftyp" else kind
    raise AudioError(f"this is {kind or 'no audio file that is known here'}; {ACCEPTED}")
