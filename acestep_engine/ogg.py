"""Repairs on Ogg files as libsndfile writes them (RFC 3533, RFC 7845)."""

from io import BytesIO

from mutagen.ogg import OggPage

# Every Ogg stream has a number, random by custom, to tell it from others in the same file. One stream needs no random
# number, and without it the same song is the same bytes.
SERIAL = 1

OPUS_RATE_HZ = 48_000  # Opus counts samples at this rate, whatever the rate of its input
# libsndfile stops its Opus encoder before the last 6.5 ms have come out and writes something else for them. So the
# encoder gets this much silence after the song, and the file says that it ends before the silence.
OPUS_TAIL_SAMPLES = 480


def with_fixed_serial(data: bytes) -> bytes:
    """The file with `SERIAL` for its stream number, checksums included."""
    return _joined(_pages(data))


def end_opus_after(data: bytes, samples: int) -> bytes:
    """The Opus file, ending after `samples` at 48 kHz of what is encoded in it, with `SERIAL` for its stream number."""
    pages = _pages(data)
    pre_skip = int.from_bytes(pages[0].packets[0][10:12], "little")  # what every decoder drops at the start
    end = pre_skip + samples
    while len(pages) > 3 and pages[-2].position >= end:  # of two headers and the sound, one page each is kept
        pages.pop()
    pages[-1].last = True
    pages[-1].position = end
    return _joined(pages)


def _pages(data: bytes) -> list[OggPage]:
    source = BytesIO(data)
    pages = []
    while source.tell() < len(data):
        pages.append(OggPage(source))
    return pages


def _joined(pages: list[OggPage]) -> bytes:
    for page in pages:
        page.serial = SERIAL
    return b"".join(page.write() for page in pages)
