"""What an audio file says of itself: written before its sound, and read from its bytes.

A tag's name is ours ("prompt", "lyrics", "seed", "parameters", ...). Where a container has a field of its own for it,
which players show, the tag goes there; every other tag is a user-defined field with its own name.
"""

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Literal

from mutagen import MutagenError
from mutagen.flac import FLAC
from mutagen.id3 import COMM, ID3, TIT2, TSSE, TXXX, USLT, Encoding, Frame
from mutagen.oggopus import OggOpus
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from acestep_engine.errors import AudioError

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


def id3(tags: Mapping[str, str]) -> bytes:
    """An ID3v2.4 tag with `tags` in it. The same tags give the same bytes."""
    tag = ID3()
    tag.update(_frames(_clean(tags)))
    file = BytesIO()
    tag.save(file, v2_version=4, padding=lambda info: 0)
    return file.getvalue()


def with_comments(head: bytes, codec: Literal["flac", "ogg", "opus"], tags: Mapping[str, str]) -> bytes:
    """All that is before the sound in such a file, with `tags` as its comments, and no others."""
    file = BytesIO(head)
    tagged = {"flac": FLAC, "ogg": OggVorbis, "opus": OggOpus}[codec](file)
    if tagged.tags is None:
        tagged.add_tags()
    tagged.tags.clear()
    for name, text in _clean(tags).items():
        tagged.tags[VORBIS_FIELDS.get(name, name)] = [text]
    file.seek(0)
    tagged.save(file, padding=lambda info: 0)
    return file.getvalue()


def read_tags(data: bytes) -> dict[str, str]:
    """The tags that we wrote into a file, by our names. Raises AudioError if there is no such file."""
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


def _clean(tags: Mapping[str, str]) -> dict[str, str]:
    """With our own beside them. What no tag can hold (NUL, lone surrogates) is dropped or replaced by "?"."""
    all_tags = {**tags, SOFTWARE_TAG: SOFTWARE}
    return {name: text.replace("\0", "").encode("utf-8", "replace").decode("utf-8") for name, text in all_tags.items()}


def _frames(tags: Mapping[str, str]) -> dict[str, Frame]:
    frames = [
        ID3_FRAMES[name](text) if name in ID3_FRAMES else TXXX(encoding=Encoding.UTF8, desc=name, text=[text])
        for name, text in tags.items()
    ]
    return {frame.HashKey: frame for frame in frames}


def _names(id3: ID3) -> dict[str, str]:
    found: dict[str, str] = {}
    for frame in id3.values():
        name = frame.desc if frame.FrameID == "TXXX" else ID3_NAMES.get(frame.FrameID)
        if name is not None:
            found[name] = frame.text if isinstance(frame.text, str) else "\n".join(frame.text)
    return found
