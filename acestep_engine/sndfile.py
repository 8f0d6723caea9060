"""Decodes the kinds of files that libsndfile reads, in memory, in blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_CUR, SEEK_END, BytesIO

import numpy as np
import numpy.typing as npt
import soundfile

from acestep_engine.chunks import MP3_IN_WAV, plain_aiff, plain_au, plain_wav
from acestep_engine.errors import AudioError
from acestep_engine.kinds import CONVERT_IT, Container
from acestep_engine.mp3 import read_mp3
from acestep_engine.ogg import chained

FloatArray = npt.NDArray[np.float32]

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

FLAC_MAX_BLOCK_AT = 10
FLAC_SAMPLES_AT = 21  # of the 40 bits there the last 36
FLAC_STREAMINFO_END = 42
FLAC_LEAST_READ_FRAMES = 1024


class SndfileDecoder:
    """One open file. `channels` and `sample_rate_hz` are its own."""

    def __init__(self, container: Container, memory: "_Memory") -> None:
        self._broken = f"the {container} file is broken or encoded in a way that is not supported; {CONVERT_IT}"
        try:
            self._file = _ForwardFile(memory)
        except soundfile.LibsndfileError as error:
            raise AudioError(self._broken) from error
        self.channels: int = self._file.channels
        self.sample_rate_hz: int = self._file.samplerate
        if self._file.subtype not in READABLE_CODECS:
            self._file.close()
            raise AudioError(f"{self._file.subtype} audio in a {container} file is not supported; {CONVERT_IT}")

    def read(self, buffer: FloatArray) -> FloatArray:
        """Fill `buffer` (n, channels) with the next samples and return the part that was filled, none at the end.

        Raises AudioError where the file is broken.
        """
        try:
            block: FloatArray = self._file.read(out=buffer)
        except soundfile.LibsndfileError as error:
            raise AudioError(self._broken) from error
        return block

    def close(self) -> None:
        self._file.close()


class _FlacDecoder(SndfileDecoder):
    """Reads a FLAC file to the end of what is there.

    libsndfile neither reads on behind the length that a header tells, nor says how many samples it had before an error.
    So the header tells no length, and reads end where FLAC's own blocks do, and where the length was that it told.
    """

    def __init__(self, container: Container, content: memoryview) -> None:
        head = bytearray(content[:FLAC_STREAMINFO_END])
        block_frames = int.from_bytes(head[FLAC_MAX_BLOCK_AT : FLAC_MAX_BLOCK_AT + 2], "big") or FLAC_LEAST_READ_FRAMES
        bits = int.from_bytes(head[FLAC_SAMPLES_AT : FLAC_SAMPLES_AT + 5], "big")
        head[FLAC_SAMPLES_AT : FLAC_SAMPLES_AT + 5] = (bits >> 36 << 36).to_bytes(5, "big")
        self._promised_frames = bits & (1 << 36) - 1
        self._read_frames = -(-FLAC_LEAST_READ_FRAMES // block_frames) * block_frames
        self._frames = 0
        self._ended = False
        self._memory = _Memory(b"".join([head, content[FLAC_STREAMINFO_END:]]))
        super().__init__(container, self._memory)

    def read(self, buffer: FloatArray) -> FloatArray:
        filled = 0
        while not self._ended and filled < len(buffer):
            wanted = min(self._read_frames, len(buffer) - filled)
            if self._frames < self._promised_frames:
                wanted = min(wanted, self._promised_frames - self._frames)
            try:
                block = super().read(buffer[filled : filled + wanted])
            except AudioError:
                if not self._may_end_here():
                    raise
                block = buffer[:0]
            filled += len(block)
            self._frames += len(block)
            self._ended = len(block) < wanted
        return buffer[:filled]

    def _may_end_here(self) -> bool:
        """Return whether a failed read means the end: of the file, or of its sound, with something else behind it."""
        cut_off = self._frames > 0 and self._memory.tell() >= self._memory.getbuffer().nbytes
        return cut_off or self._frames >= self._promised_frames > 0


class _ChainedDecoder(SndfileDecoder):
    """Reads Ogg files that were joined, one after the other. libsndfile stops behind the first."""

    def __init__(self, container: Container, files: list[memoryview]) -> None:
        super().__init__(container, _Memory(files[0]))
        self._container: Container = container
        self._waiting = files[1:]

    def read(self, buffer: FloatArray) -> FloatArray:
        block = super().read(buffer)
        while not len(block) and self._waiting:
            try:
                following = SndfileDecoder(self._container, _Memory(self._waiting.pop(0)))
            except AudioError:
                return block  # cut off before its sound: what is there is read
            of_this = (following.channels, following.sample_rate_hz)
            if of_this != (self.channels, self.sample_rate_hz):
                following.close()
                raise AudioError(
                    f"the {self._container} file is several with other channels or sample rates, one after the other; "
                    f"{CONVERT_IT}"
                )
            self._file.close()
            self._file = following._file
            block = super().read(buffer)
        return block


@contextmanager
def sndfile_decoder(container: Container, content: memoryview, max_duration_s: float) -> Iterator[SndfileDecoder]:
    """Open a file of a kind that libsndfile reads. Raises AudioError if that fails."""
    decoder = _open(container, content, max_duration_s)
    try:
        yield decoder
    finally:
        decoder.close()


def _open(container: Container, content: memoryview, max_duration_s: float) -> SndfileDecoder:
    match container:
        case "FLAC":
            return _FlacDecoder(container, content)
        case "MP3":
            return SndfileDecoder(container, _Memory(read_mp3(content, max_duration_s)))
        case "WAV":
            header, sound, tag = plain_wav(content)
            if tag == MP3_IN_WAV:
                return SndfileDecoder(container, _Memory(read_mp3(sound, max_duration_s)))
        case "AIFF":
            header, sound = plain_aiff(content)
        case "AU":
            header, sound = plain_au(content)
        case "Ogg":
            return _ChainedDecoder(container, chained(content))
    return SndfileDecoder(container, _Memory(b"".join([header, sound])))


class _Memory(BytesIO):
    """A file in memory for libsndfile. A forged chunk size may send it before the start: it stays at the start."""

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {SEEK_CUR: self.tell(), SEEK_END: self.getbuffer().nbytes}.get(whence, 0)
        return super().seek(max(0, base + offset))


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """Reads forward only: soundfile seeks after every read of a seekable file, which for MP3 and Ogg is slow."""

    def seekable(self) -> bool:
        return False
