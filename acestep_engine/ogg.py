"""Ogg files as libsndfile writes them, page by page (RFC 3533, RFC 7845), repaired on their way into the file."""

from collections.abc import Mapping
from io import BytesIO
from typing import Literal

from mutagen.ogg import OggPage

from acestep_engine.tags import with_comments

# Every Ogg stream has a number, random by custom, to tell it from others in the same file. One stream needs no random
# number, and without it the same song is the same bytes.
SERIAL = 1

# libsndfile stops its Opus encoder before the last 6.5 ms have come out and writes something else for them. So the
# encoder gets this much silence after the song, and the file says that it ends before the silence.
OPUS_TAIL_SAMPLES = 480

HEADER_PACKETS = {"ogg": 3, "opus": 2}
PAGE_HEADER_BYTES = 27  # the last of them says how many bytes of lengths follow
PAGE_MARK = b"OggS"
PAGE_FLAGS_AT = 5
BEGINS_STREAM = 2
MAX_CHAINED = 100  # files one after the other in one; more are no song


class OggFile:
    """The pages of one song of `samples` at 48 kHz: with our tags and `SERIAL`, and an Opus song ends where it ends."""

    def __init__(self, codec: Literal["ogg", "opus"], samples: int, tags: Mapping[str, str]) -> None:
        self._codec = codec
        self._samples = samples
        self._tags = tags
        self._rest = b""  # a page that is not complete yet
        self._head: list[OggPage] = []
        self._headers_left = HEADER_PACKETS[codec]
        self._pages_more = 0  # that the headers take with our tags
        self._end: int | None = None  # of an Opus song, as its pages count
        self._ended = False

    def pass_on(self, encoded: bytes) -> bytes:
        """What libsndfile wrote next, as far as it makes pages, as it goes into the file."""
        pages, self._rest = _split(self._rest + encoded)
        return b"".join(self._passed(page) for page in pages)

    def _passed(self, page: OggPage) -> bytes:
        page.serial = SERIAL
        if self._headers_left:
            self._head.append(page)
            self._headers_left -= len(page.packets) - (not page.complete)
            return b"" if self._headers_left else self._finished_head()
        if self._ended:  # of the silence behind the song
            return b""
        page.sequence += self._pages_more
        if self._end is not None and page.position >= self._end:
            page.position = self._end
            page.last = self._ended = True
        written: bytes = page.write()
        return written

    def _finished_head(self) -> bytes:
        if self._codec == "opus":
            pre_skip = int.from_bytes(
                self._head[0].packets[0][10:12], "little"
            )  # what every decoder drops at the start
            self._end = pre_skip + self._samples
        head = with_comments(b"".join(page.write() for page in self._head), self._codec, self._tags)
        self._pages_more = len(_split(head)[0]) - len(self._head)
        return head


def chained(content: memoryview) -> list[memoryview]:
    """Split a file at the beginnings of streams behind others: what several files are that were joined to one.

    Streams that begin together are one file. What is behind the last page stays with it.
    """
    starts, position, before_begins = [0], 0, True
    while bytes(content[position : position + len(PAGE_MARK)]) == PAGE_MARK and len(starts) < MAX_CHAINED:
        begins = bool(content[position + PAGE_FLAGS_AT] & BEGINS_STREAM) if len(content) > position + 5 else False
        if begins and not before_begins:
            starts.append(position)
        before_begins = begins
        size = _page_size(content, position)
        if size is None:
            break
        position += size
    return [content[start:end] for start, end in zip(starts, [*starts[1:], len(content)], strict=True)]


def _split(data: bytes) -> tuple[list[OggPage], bytes]:
    """The complete pages, and the rest."""
    pages, start = [], 0
    while (size := _page_size(data, start)) is not None and start + size <= len(data):
        pages.append(OggPage(BytesIO(data[start : start + size])))
        start += size
    return pages, data[start:]


def _page_size(data: bytes | memoryview, start: int) -> int | None:
    """Of the page that begins at `start`, once enough of it is there to know."""
    lengths = start + PAGE_HEADER_BYTES
    if len(data) < lengths or len(data) < lengths + data[lengths - 1]:
        return None
    segments = data[lengths - 1]
    return PAGE_HEADER_BYTES + segments + sum(data[lengths : lengths + segments])
