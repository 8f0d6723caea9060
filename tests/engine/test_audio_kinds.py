"""Files that are not read are named, with the way out, and nothing else is taken for an MP3."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest

from acestep_engine import kinds
from acestep_engine.audio import AudioLimits, check_audio
from acestep_engine.encode import encode_audio
from acestep_engine.errors import AudioError
from acestep_engine.mp3 import holds_mp3

LIMITS = AudioLimits()
MP3 = encode_audio(np.zeros((2, 48_000), np.float32), "mp3", {})
WAY_OUT = "convert it: ffmpeg -i FILE out.wav"


def ogg(*packets: bytes) -> bytes:
    """The first pages of an Ogg file with one stream for each packet."""
    pages = []
    for serial, packet in enumerate(packets):
        head = struct.pack("<4sBBqIIIBB", b"OggS", 0, 2, 0, serial, 0, 0, 1, len(packet))
        pages.append(head + packet)
    return b"".join(pages)


def stored_in_a_zip(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("song.mp3", data)
    return file.getvalue()


def png() -> bytes:
    pixels = np.random.default_rng(2).integers(0, 256, (300, 300), np.uint8).tobytes()
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in ((b"IHDR", struct.pack(">IIBBBBB", 300, 300, 8, 0, 0, 0, 0)), (b"IDAT", pixels))
    )


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c", "a WMA or ASF file"),
        (b"\x0b\x77\xaa\xbb\x50\x40", "an AC-3 file"),
        (b"wvpk\x18\x00\x00\x00", "a WavPack file"),
        (b"TTA1\x01\x00\x02\x00", "a TTA file"),
        (b"\x7f\xfe\x80\x01\xfc\x3c", "a DTS file"),
        (b"\xff\xfd\x94\x04", "an MP2 file"),
        (b"MAC \x96\x0f", "a Monkey's Audio file"),
        (b"FLV\x01\x05", "a Flash video"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "an AVI video"),
        (b"\x00\x00\x01\xba\x44", "an MPEG video"),
        (b"\x47" + bytes(187) + b"\x47" + bytes(187) + b"\x47", "an MPEG transport stream"),
        (b"Creative Voice File\x1a", "a VOC file"),
    ],
)
def test_sound_that_is_not_read_is_named_with_the_way_out(data: bytes, name: str) -> None:
    with pytest.raises(AudioError) as error:
        check_audio(data + bytes(500), LIMITS)

    assert str(error.value) == f"this is {name}, which is not read; {WAY_OUT}"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"caff\x00\x01\x00\x00desc", "a CAF file"),
        (b"#!AMR\n\x3c", "an AMR file"),
        (b"#!AMR-WB\n\x3c", "an AMR file"),
        (b"\x00\x00\x00\x20ftypM4A \x00", "an MP4 or M4A file"),
        (b"\x00\x00\x00\x08wide\x00\x00", "a QuickTime file"),
        (b"\x1aE\xdf\xa3\x9f\x42\x86\x81", "a Matroska or WebM file"),
        (b"\xff\xf1\x4c\x80\x01\x1f\xfc\x00\xff\xf1\x4c\x80", "an AAC file"),
        (b"ID3\x04\x00\x00\x00\x00\x00\x01\x00" + b"\xff\xf1\x4c\x80\x01\x1f\xfc\x00\xff\xf1\x4c\x80", "an AAC file"),
        (ogg(b"\x7fFLAC\x01\x00"), "an Ogg file of FLAC"),
        (ogg(b"Speex   1.2"), "an Ogg file of Speex"),
        (ogg(b"\x80theora\x03\x02", b"\x01vorbis\x00"), "an Ogg video"),
        (ogg(b"\x01vorbis\x00", b"\x01vorbis\x00"), "an Ogg file of Vorbis and Vorbis"),
        (ogg(b"who knows"), "an Ogg file of unknown data"),
    ],
)
def test_what_the_optional_decoder_would_read_is_named_with_both_ways_out(
    data: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acestep_engine.media.media_are_read", lambda: False)

    with pytest.raises(AudioError) as error:
        check_audio(data + bytes(500), LIMITS)

    assert str(error.value).startswith(f"this is {name}, which this server does not read; {WAY_OUT}")
    assert "pip install 'acestep-serve[media]'" in str(error.value)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (stored_in_a_zip(MP3), "a zip archive"),
        (png(), "a PNG image"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + MP3, "a JPEG image"),
        (b"\x1f\x8b\x08\x00" + MP3, "a gzip archive"),
        (b"song.mp3".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0") + MP3, "a tar archive"),
        (b"<!DOCTYPE html><html><body>not found</body></html>", "HTML or XML text"),
        (b'\n{"error": "not found"}', "JSON text"),
        ("no song".encode("utf-16"), "UTF-16 text"),
        (b"%PDF-1.7" + MP3, "a PDF"),
    ],
)
def test_what_is_no_sound_is_named_with_what_is_read(data: bytes, name: str) -> None:
    with pytest.raises(AudioError, match=f"this is {name}.*WAV, AIFF, AU, FLAC, MP3.* are read"):
        check_audio(data, LIMITS)


def test_random_bytes_and_text_are_not_taken_for_an_mp3() -> None:
    random = np.random.default_rng(3)
    for _ in range(100):
        assert not holds_mp3(memoryview(random.integers(0, 256, 2**16, np.uint8).tobytes()))
    for data in (png(), bytes(2**16), b"\xff" * 2**16, b"\xff\xfb" * 2**15, "жизнь моя 歌".encode() * 3_000):
        assert not holds_mp3(memoryview(data))


def test_two_headers_that_fit_by_chance_are_not_taken_for_an_mp3() -> None:
    frame = b"\xff\xfb\x94\x00" + bytes(380)

    assert not holds_mp3(memoryview(b"text" + frame + b"\xff\xfb\x94\x00" + b"more text" * 100))
    assert holds_mp3(memoryview(b"text" + frame * 2 + b"\xff\xfb\x94\x00" + b"more text" * 100))


def test_a_file_of_an_unknown_kind_is_told_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, more in ((True, ", M4A, MP4, WebM, Matroska, AAC, AMR, CAF"), (False, "")):
        monkeypatch.setattr(kinds, "media_are_read", lambda installed=installed: installed)
        with pytest.raises(AudioError, match=f"FLAC, MP3{more}, Ogg Vorbis"):
            check_audio(b"something else", LIMITS)
