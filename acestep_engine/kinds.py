"""The kinds of audio files, told by their bytes alone, and how each is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from acestep_engine.chunks import WAVE64_MAGIC
from acestep_engine.errors import AudioError
from acestep_engine.mp3 import holds_mp3, skip_id3

Container = Literal["WAV", "AIFF", "AU", "FLAC", "MP3", "Ogg"]
Demuxer = Literal["mov", "matroska", "aac", "amr", "caf", "ogg"]

CONVERT_IT = "convert it: ffmpeg -i FILE out.wav"

MAX_PADDING_BYTES = 64 * 1024  # before the first byte of a file: line ends, zeros, a byte order mark
MAX_OGG_STREAMS = 16
OGG_HEADER_BYTES = 27
OGG_BEGINS = 2


@dataclass(frozen=True)
class Readable:
    """A kind of file that libsndfile reads."""

    container: Container


@dataclass(frozen=True)
class Media:
    """A kind of file that the optional decoder reads. `demuxer` is what it calls the container."""

    name: str
    demuxer: Demuxer


@dataclass(frozen=True)
class Unread:
    """A known kind of file that is not read. `holds_sound` where a conversion makes it a file that is."""

    name: str
    holds_sound: bool = True


Kind = Readable | Media | Unread

# Where the bytes stand that tell a kind, and which they are. The first that fits is the kind.
MAGIC: Mapping[tuple[int, bytes], Kind] = {
    (0, b"fLaC"): Readable("FLAC"),
    (0, b".snd"): Readable("AU"),
    (0, WAVE64_MAGIC): Readable("WAV"),
    (0, b"\x1aE\xdf\xa3"): Media("a Matroska or WebM file", "matroska"),
    (0, b"#!AMR\n"): Media("an AMR file", "amr"),
    (0, b"#!AMR-WB\n"): Media("an AMR file", "amr"),
    (0, b"caff"): Media("a CAF file", "caf"),
    (4, b"ftyp"): Media("an MP4 or M4A file", "mov"),
    (4, b"moov"): Media("a QuickTime file", "mov"),
    (4, b"mdat"): Media("a QuickTime file", "mov"),
    (4, b"wide"): Media("a QuickTime file", "mov"),
    (0, b"0&\xb2u\x8ef\xcf\x11"): Unread("a WMA or ASF file"),
    (0, b"\x0bw"): Unread("an AC-3 file"),
    (0, b"wvpk"): Unread("a WavPack file"),
    (0, b"TTA1"): Unread("a TTA file"),
    (0, b"TTA2"): Unread("a TTA file"),
    (0, b"\x7f\xfe\x80\x01"): Unread("a DTS file"),
    (0, b"\xfe\x7f\x01\x80"): Unread("a DTS file"),
    (0, b"\x1f\xff\xe8\x00"): Unread("a DTS file"),
    (0, b"\xff\x1f\x00\xe8"): Unread("a DTS file"),
    (0, b"DTSHDHDR"): Unread("a DTS file"),
    (0, b"MAC "): Unread("a Monkey's Audio file"),
    (0, b"MPCK"): Unread("a Musepack file"),
    (0, b"MP+"): Unread("a Musepack file"),
    (0, b"tBaK"): Unread("a TAK file"),
    (0, b"ajkg"): Unread("a Shorten file"),
    (0, b"OFR "): Unread("an OptimFROG file"),
    (0, b"DSD "): Unread("a DSD file"),
    (0, b"FRM8"): Unread("a DSD file"),
    (0, b"dns."): Unread("an AU file with its bytes swapped"),
    (0, b"Creative Voice File"): Unread("a VOC file"),
    (0, b".RMF"): Unread("a RealMedia file"),
    (0, b".ra\xfd"): Unread("a RealAudio file"),
    (0, b"FLV\x01"): Unread("a Flash video"),
    (0, b"\x00\x00\x01\xba"): Unread("an MPEG video"),
    (0, b"\x00\x00\x01\xb3"): Unread("an MPEG video"),
    (0, b"PK\x03\x04"): Unread("a zip archive", holds_sound=False),
    (0, b"PK\x05\x06"): Unread("a zip archive", holds_sound=False),
    (0, b"Rar!"): Unread("a RAR archive", holds_sound=False),
    (0, b"7z\xbc\xaf\x27\x1c"): Unread("a 7z archive", holds_sound=False),
    (0, b"\x1f\x8b"): Unread("a gzip archive", holds_sound=False),
    (0, b"BZh"): Unread("a bzip2 archive", holds_sound=False),
    (0, b"\xfd7zXZ\x00"): Unread("an xz archive", holds_sound=False),
    (0, b"\x28\xb5\x2f\xfd"): Unread("a Zstandard archive", holds_sound=False),
    (257, b"ustar"): Unread("a tar archive", holds_sound=False),
    (0, b"#EXTM3U"): Unread("a playlist", holds_sound=False),
    (0, b"[playlist]"): Unread("a playlist", holds_sound=False),
    (0, b"ffconcat"): Unread("a playlist", holds_sound=False),
    (0, b"MThd"): Unread("a MIDI file", holds_sound=False),
    (0, b"%PDF"): Unread("a PDF", holds_sound=False),
    (0, b"\x89PNG"): Unread("a PNG image", holds_sound=False),
    (0, b"\xff\xd8\xff"): Unread("a JPEG image", holds_sound=False),
    (0, b"GIF8"): Unread("a GIF image", holds_sound=False),
    (0, b"\x7fELF"): Unread("a program", holds_sound=False),
    (0, b"MZ"): Unread("a program", holds_sound=False),
}

# Texts are told last: a warning that a web server printed may stand before an MP3.
TEXTS: Mapping[bytes, str] = {
    b"<": "HTML or XML text",
    b"{": "JSON text",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}

RIFF_KINDS: Mapping[bytes, Kind] = {
    b"WAVE": Readable("WAV"),
    b"AVI ": Unread("an AVI video"),
    b"WEBP": Unread("a WebP image", holds_sound=False),
    b"RMID": Unread("a MIDI file", holds_sound=False),
    b"sfbk": Unread("a SoundFont", holds_sound=False),
}

# By how the first packet of a stream begins.
OGG_CODECS: Mapping[bytes, str] = {
    b"\x01vorbis": "Vorbis",
    b"OpusHead": "Opus",
    b"\x7fFLAC": "FLAC",
    b"Speex   ": "Speex",
    b"\x80theora": "video",
    b"BBCD\x00": "video",
    b"OVP80": "video",
    b"\x01video": "video",
    b"fishead\x00": "Skeleton",
}


def media_are_read() -> bool:
    """Return whether the optional decoder is installed."""
    return find_spec("av") is not None


def read_kinds() -> str:
    """Return a sentence that lists what is read."""
    media = ", M4A, MP4, WebM, Matroska, AAC, AMR, CAF" if media_are_read() else ""
    return f"WAV, AIFF, AU, FLAC, MP3{media}, Ogg Vorbis and Ogg Opus are read"


def recognise(data: memoryview) -> tuple[Readable | Media, memoryview]:
    """Return the kind of an audio file, and its bytes from where it begins.

    ID3 tags before a file of any kind are skipped, and so are line ends, zeros and a byte order mark. Raises AudioError
    for what is not read; it names the kind, and what to do.
    """
    content = skip_id3(data)
    if not content:
        raise AudioError(f"the audio file is empty; {read_kinds()}")
    for begun in (content, _without_padding(content)):
        match kind := _by_magic(begun):
            case Unread():
                way_out = CONVERT_IT if kind.holds_sound else read_kinds()
                raise AudioError(f"this is {kind.name}, which is not read; {way_out}")
            case Readable() | Media():
                return kind, begun
    if holds_mp3(content):
        return Readable("MP3"), content
    if bytes(content[:3]) == b"ID3" and len(content) == len(data):
        raise AudioError("the audio file ends within its ID3 tag")
    if _is_mp2(content):
        raise AudioError(f"this is an MP2 file, which is not read; {CONVERT_IT}")
    start = bytes(_without_padding(content)[:2])
    text = next((name for magic, name in TEXTS.items() if start.startswith(magic)), None)
    if text is None and content[0] == 0xFF and bytes(content[1:2]) >= b"\xe0":
        raise AudioError(f"this is no MP3 file: it starts like one, but has no valid frames; {read_kinds()}")
    raise AudioError(f"this is {text or 'no audio file that is known here'}; {read_kinds()}")


def _without_padding(content: memoryview) -> memoryview:
    head = bytes(content[:MAX_PADDING_BYTES])
    return content[len(head) - len(head.lstrip(b"\r\n\t \0\xef\xbb\xbf")) :]


def _by_magic(content: memoryview) -> Kind | None:
    head = bytes(content[:512])
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return RIFF_KINDS.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return Readable("AIFF")
    if head[:4] == b"OggS":
        return _ogg(content)
    for (at, magic), kind in MAGIC.items():
        if head[at : at + len(magic)] == magic:
            return kind
    if head[:1] == head[188:189] == head[376:377] == b"\x47":
        return Unread("an MPEG transport stream")
    return Media("an AAC file", "aac") if _is_aac(content) else None


def _is_aac(content: memoryview) -> bool:
    """Return whether an ADTS frame stands first, and behind it another one of the same kind or the end."""
    if len(content) < 7 or content[0] != 0xFF or content[1] & 0xF6 != 0xF0:
        return False
    length = (content[3] & 3) << 11 | content[4] << 3 | content[5] >> 5
    following = bytes(content[length : length + 2])
    return length > 7 and bytes(content[:2]).startswith(following)


def _is_mp2(content: memoryview) -> bool:
    """Return whether a header of MPEG audio of layer II stands first."""
    return len(content) >= 4 and content[0] == 0xFF and content[1] & 0xE6 == 0xE4 and content[2] >> 2 & 3 != 3


def _ogg(content: memoryview) -> Kind:
    """Return the kind of an Ogg file, by the streams that begin in it."""
    codecs = _ogg_codecs(content)
    if "video" in codecs:
        return Media("an Ogg video", "ogg")
    if codecs in (["Vorbis"], ["Opus"], []):
        return Readable("Ogg")
    return Media(f"an Ogg file of {' and '.join(codecs)}", "ogg")


def _ogg_codecs(content: memoryview) -> list[str]:
    codecs: list[str] = []
    position = 0
    while len(codecs) < MAX_OGG_STREAMS and bytes(content[position : position + 4]) == b"OggS":
        header = bytes(content[position : position + OGG_HEADER_BYTES])
        if len(header) < OGG_HEADER_BYTES or not header[5] & OGG_BEGINS:
            break
        segments = bytes(content[position + OGG_HEADER_BYTES : position + OGG_HEADER_BYTES + header[-1]])
        start = position + OGG_HEADER_BYTES + header[-1]
        packet = bytes(content[start : start + 16])
        codecs.append(next((name for magic, name in OGG_CODECS.items() if packet.startswith(magic)), "unknown data"))
        position = start + sum(segments)
    return codecs
