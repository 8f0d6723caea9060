"""What an audio file says of itself: written into and read from the bytes of an encoded file.

A tag's name is ours ("prompt", "lyrics", "seed", "parameters", ...). Where a container has a field of its own for it,
which players show, the tag goes there; every other tag is a user-defined field with its own name.
"""

from collections.abc import Callable, Mapping
from io import BytesIO

from mutagen import MutagenError
from mutagen.flac import FLAC
from mutagen.id3 import COMM, ID3, TIT2, TSSE, TXXX, USLT, Encoding, Frame
from mutagen.oggopus import OggOpus
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from acestep_engine.errors import AudioError
from acestep_engine.params import AudioFormat

SOFTWARE = "acestep-serve"
SOFTWARE_TAG = "encoder"

ID3_FRAMES: Mapping[str, Callable[[str], Frame]] = {
    "prompt": lambda text: TIT2(encoding=Encoding.UTF8, text=[text]),
    "lyrics": lambda text: USLT(encoding=Encoding.UTF8, lang="XXX", desc="", text=text),
    "parameters": lambda text: COMM(encoding=Encoding.UTF8, lang="XXX", desc="", text=[text]),
    SOFTWARE_TAG: lambda text: TSSE(encoding=Encoding.UTF8, text=[text]),
}
ID3_NAMES = {"TIT2": "prompt", "USLT": "lyrics", "COMM": "parameters", "TSSE": SOFTWARE_TAG}

VORBIS_FIELDS = {"prompt": "title", "parameters": "comment"}
VORBIS_NAMES = {field: name for name, field in VORBIS_FIELDS.items()}


def write_tags(data: bytes, audio_format: AudioFormat, tags: Mapping[str, str]) -> bytes:
    """The encoded file with `tags` in it, and no others. The same input gives the same bytes.

    Characters that no tag can hold (NUL, lone surrogates) are dropped or replaced by "?".
    """
    clean = {name: _clean(text) for name, text in {**tags, SOFTWARE_TAG: SOFTWARE}.items()}
    if audio_format == "mp3":
        return _id3(clean) + data
    file = BytesIO(data)
    if audio_format == "wav":
        wave = WAVE(file)
        wave.add_tags()
        wave.tags.update(_frames(clean))
        wave.save(file, v2_version=4)
        return file.getvalue()
    tagged = {"flac": FLAC, "ogg": OggVorbis, "opus": OggOpus}[audio_format](file)
    if tagged.tags is None:
        tagged.add_tags()
    tagged.tags.clear()
    for name, text in clean.items():
        tagged.tags[VORBIS_FIELDS.get(name, name)] = [text]
    file.seek(0)
    tagged.save(file)
    return file.getvalue()


def read_tags(data: bytes) -> dict[str, str]:
    """The tags that `write_tags` left in a file, by our names. Raises AudioError if there is no such file."""
    file = BytesIO(data)
    try:
        if data.startswith(b"ID3"):
            return _names(ID3(file))
        if data.startswith(b"RIFF"):
            return _names(WAVE(file).tags or ID3())
        kind = FLAC if data.startswith(b"fLaC") else OggOpus if b"OpusHead" in data[:128] else OggVorbis
        return {VORBIS_NAMES.get(name.lower(), name.lower()): text for name, text in kind(file).tags or []}
    except MutagenError as error:
        raise AudioError("the file has no tags that can be read") from error


def _clean(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _frames(tags: Mapping[str, str]) -> dict[str, Frame]:
    frames = [
        ID3_FRAMES[name](text) if name in ID3_FRAMES else TXXX(encoding=Encoding.UTF8, desc=name, text=[text])
        for name, text in tags.items()
    ]
    return {frame.HashKey: frame for frame in frames}


def _id3(tags: Mapping[str, str]) -> bytes:
    id3 = ID3()
    id3.update(_frames(tags))
    file = BytesIO()
    id3.save(file, v2_version=4, padding=lambda info: 0)
    return file.getvalue()


def _names(id3: ID3) -> dict[str, str]:
    found: dict[str, str] = {}
    for frame in id3.values():
        name = frame.desc if frame.FrameID == "TXXX" else ID3_NAMES.get(frame.FrameID)
        if name is not None:
            found[name] = frame.text if isinstance(frame.text, str) else "\n".join(frame.text)
    return found
