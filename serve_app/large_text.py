"""Large audio as base64 text, worked on in pieces: one call on all of it would hold the interpreter's lock for seconds.

Nothing else would run then, whichever thread that call is in. A piece takes a few milliseconds.
"""

import base64
import re
from collections.abc import Iterator

PIECE = 2**18  # bytes or letters; a multiple of four

_FOREIGN = re.compile(r"[^A-Za-z0-9+/=]")
_JSON_KEY = b'"audio_base64"'
_JSON_COLON = re.compile(rb'\s{0,64}+:\s{0,64}+"')
_FORM_KEY = b"audio_base64="
_FORM_ESCAPES = {b"%2B": b"+", b"%2b": b"+", b"%2F": b"/", b"%2f": b"/", b"%3D": b"=", b"%3d": b"="}


def without_json_audio(data: bytes) -> tuple[bytes, str | None]:
    """Return a JSON object without the value of its `audio_base64`, and that value; None if it has none.

    A value with a quotation mark in it is no base64, and stays.
    """
    at = data.find(_JSON_KEY)
    while at != -1:
        colon = _JSON_COLON.match(data, at + len(_JSON_KEY))
        if colon is not None:
            start, stop = colon.end(), data.find(b'"', colon.end())
            if stop == -1 or data[stop - 1 : stop] == b"\\":
                return data, None
            # What JSON may escape of base64 and its line ends; what is no base64 is found later.
            parts = (
                piece.replace(b"\\/", b"/").replace(b"\\n", b"\n").replace(b"\\r", b"\r")
                for piece in _pieces(data, start, stop, b"\\", 1)
            )
            return data[:start] + data[stop:], b"".join(parts).decode("latin-1")
        at = data.find(_JSON_KEY, at + len(_JSON_KEY))
    return data, None


def without_form_audio(data: bytes) -> tuple[bytes, str | None]:
    """Return a form without the value of its `audio_base64`, and that value; None if it has none."""
    at = 0 if data.startswith(_FORM_KEY) else data.find(b"&" + _FORM_KEY) + 1
    if at == 0 and not data.startswith(_FORM_KEY):
        return data, None
    start = at + len(_FORM_KEY)
    stop = data.find(b"&", start)
    stop = len(data) if stop == -1 else stop
    parts = (_unescaped(piece) for piece in _pieces(data, start, stop, b"%", 2))
    return data[:start] + data[stop:], b"".join(parts).decode("latin-1")


def without_line_ends(text: str) -> str:
    """Return the text without the line ends in it."""
    pieces = (text[at : at + PIECE] for at in range(0, len(text), PIECE))
    return "".join(piece.replace("\r", "").replace("\n", "") for piece in pieces)


def decoded(letters: str) -> bytearray:
    """Decode base64 of the standard alphabet, with its padding. Raises ValueError."""
    data = bytearray()
    for at in range(0, len(letters), PIECE):
        piece = letters[at : at + PIECE]
        if "=" in piece and at + PIECE < len(letters):
            raise ValueError("padding in the middle")
        data += base64.b64decode(piece, validate=True)
    return data


def foreign_letter(letters: str) -> int | None:
    """Return where the first letter is that base64 does not have."""
    for at in range(0, len(letters), PIECE):
        found = _FOREIGN.search(letters, at, at + PIECE)
        if found is not None:
            return found.start()
    return None


def _pieces(data: bytes, start: int, stop: int, escape: bytes, behind: int) -> Iterator[bytes]:
    """Yield data[start:stop] in pieces that do not end within an escape, which has `behind` bytes after its first."""
    while start < stop:
        end = min(start + PIECE, stop)
        cut = data.rfind(escape, max(start + 1, end - behind), end)
        if cut != -1 and end < stop:
            end = cut
        yield data[start:end]
        start = end


def _unescaped(piece: bytes) -> bytes:
    piece = piece.replace(b"+", b" ")
    for escape, letter in _FORM_ESCAPES.items():  # the only ones of base64 that a form escapes
        piece = piece.replace(escape, letter)
    return piece
