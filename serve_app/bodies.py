"""Request bodies to fields: bounded reading, then JSON, form or multipart.

Read here and not by FastAPI, whose 422 echoes the input and so fails on NaN and lone surrogates, and which has no
bound on a body. Each bad body gets its own answer: 400 where it is not what its type says, 413 before too much of it is
read, 408 where it comes too slowly, 415 for types that no route takes, 422 where it holds the wrong thing.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from serve_app.bounds import BodyRoom
from serve_app.errors import HttpProblem, too_large
from serve_app.fields import FieldProblem
from serve_app.large_text import without_form_audio, without_json_audio
from serve_app.names import ALIASES
from serve_app.printable import printable
from serve_app.schemas import GenerateRequest

AUDIO_BASE64 = "audio_base64"
MAX_FORM_FIELDS = 100
UTF_8 = "utf-8"
CHARSETS: Mapping[str, str] = {
    UTF_8: "utf-8-sig",
    "utf8": "utf-8-sig",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "latin-1",
    "latin1": "latin-1",
    "windows-1252": "cp1252",
    "utf-16": "utf-16",
}
# What clients write into Content-Encoding for a body that is sent as it is.
PLAIN_ENCODINGS = frozenset(("", "identity", "none", *CHARSETS))
PLAIN_TRANSFERS = (b"7bit", b"8bit", b"binary")
JSON_TYPES = (b"application/json", b"text/json", b"application/x-json")
MAX_INTEGER_DIGITS = 1_000
PARSE_ASIDE_BYTES = 256 * 1024  # parsing more than this would hold up the event loop


# Fields that hold lists: a form may repeat them, with or without brackets behind the name.
LIST_FIELDS = frozenset(("manual_seeds", "seeds", "seed", "actual_seeds", "retake_seeds", "oss_steps"))
FLAG_FIELDS = frozenset(name for name, field in GenerateRequest.model_fields.items() if field.annotation is bool)
# Fields that are null where they are not given. JavaScript and Python write what they lack into forms as text.
NULL_FIELDS = frozenset(name for name, field in GenerateRequest.model_fields.items() if field.default is None)
NULL_WORDS = frozenset(("null", "undefined", "None"))
# Fields of which blank text says something. A form sends every field it has, so that others are left out when blank.
BLANK_MEANS_BLANK = frozenset(("prompt", "lyrics", "genre", "tags", "caption"))
# Parts of these names are text, also those that come from a file: `curl -F lyrics=@lyrics.txt`.
TEXT_FIELDS = ({*GenerateRequest.model_fields, *ALIASES} | {AUDIO_BASE64}) - {
    "ref_audio_input",
    "src_audio",
    "src_audio_path",
}


@dataclass(frozen=True)
class Body:
    """The content of a body. `files` has the bytes of the part that is the route's file, not checked yet."""

    fields: dict[str, object]
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class BodyLimits:
    """The largest size and the slowest pace of a body.

    `text_bytes` bounds everything in it but audio, which is a file or the value of `audio_base64`: only this much is
    ever parsed. `stall_s` is a time in which nothing came.
    """

    text_bytes: int
    audio_bytes: int
    stall_s: float
    bytes_per_s: int

    @property
    def nbytes(self) -> int:
        return self.text_bytes + self.audio_bytes


def _bad(code: str, detail: str) -> HttpProblem:
    return HttpProblem(400, code, detail)


async def read_bytes(request: Request, limits: BodyLimits, room: BodyRoom) -> bytes:
    """Read the whole body into the room that it has beside others.

    Raises HttpProblem 413 for one over the limit, before it is read where it says so.

    Raises HttpProblem 408 for a body that stalls, or is so slow that it would hold its connection for hours.
    """
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdecimal()):
        raise _bad("bad_length", "Content-Length is not a number")
    if len(declared) > 18 or int(declared) > limits.nbytes:
        raise too_large("the body", limits.nbytes)
    chunks: list[bytes] = []
    size = 0
    started = asyncio.get_running_loop().time()
    while True:
        try:
            async with asyncio.timeout(limits.stall_s):
                message = await request.receive()
        except TimeoutError:
            raise _too_slow(f"nothing more of the body came for {limits.stall_s:g} s", size) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limits.nbytes:
            raise too_large("the body", limits.nbytes)
        room.grow(size)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)
        elapsed_s = asyncio.get_running_loop().time() - started
        if size < limits.bytes_per_s * (elapsed_s - limits.stall_s):
            raise _too_slow(f"the body comes slower than {limits.bytes_per_s:,} bytes a second", size)


def _too_slow(what: str, size: int) -> HttpProblem:
    return HttpProblem(408, "body_timeout", f"{what}: {size:,} bytes are here", headers={"Connection": "close"})


async def read_body(request: Request, limits: BodyLimits, room: BodyRoom, file_field: str | None = None) -> Body:
    """Read the body by its Content-Type; as JSON when it has none. Raises HttpProblem.

    `file_field` is the name of the part that may be a file, where a route takes one.
    """
    encodings = request.headers.get("content-encoding", "").lower().split(",")
    if any(encoding.strip() not in PLAIN_ENCODINGS for encoding in encodings):
        raise HttpProblem(415, "unsupported_encoding", "send the body uncompressed, without Content-Encoding")
    media_type, options = parse_options_header(request.headers.get("content-type", "application/json"))
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    parse: Callable[[bytes], Body]
    if media_type in JSON_TYPES or media_type.endswith(b"+json"):
        parse = partial(parse_json, limit_bytes=limits.text_bytes, charset=charset)
    elif media_type == b"application/x-www-form-urlencoded":
        parse = partial(parse_form, limit_bytes=limits.text_bytes, charset=charset)
    elif media_type == b"multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise _bad("bad_multipart", "the Content-Type of a multipart body must name its boundary")

        def parse(data: bytes) -> Body:
            return parse_multipart(data, boundary, file_field, limits.text_bytes)
    else:
        shown = printable(media_type.decode("latin-1"))
        accepted = "application/json, multipart/form-data or application/x-www-form-urlencoded"
        raise HttpProblem(415, "unsupported_media_type", f"the body is '{shown}': send {accepted}")
    data = await read_bytes(request, limits, room)
    if len(data) > PARSE_ASIDE_BYTES:
        return await anyio.to_thread.run_sync(parse, data, limiter=room.parsing)
    return parse(data)


def _text(data: bytes, what: str, charset: str = UTF_8) -> str:
    """Decode a text. Raises HttpProblem 400 for bytes that do not fit, 415 for a charset that is not read."""
    codec = CHARSETS.get(charset.strip().lower())
    if codec is None:
        known = ", ".join(CHARSETS)
        raise HttpProblem(415, "unsupported_charset", f"{what} has the charset '{printable(charset)}': send {known}")
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        way_out = "send it as UTF-8, with `charset=utf-8` in its Content-Type"
        raise _bad(
            "bad_encoding", f"{what} is not {charset.upper()}: byte {error.start} does not fit; {way_out}"
        ) from None


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _bad("duplicate_key", f"the key '{printable(twice)}' stands twice in the same object")
    return found


def _bounded_integer(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise _bad("bad_json", f"an integer of {len(digits):,} digits is over the limit of {MAX_INTEGER_DIGITS:,}")
    return int(digits)


# NaN and Infinity are no JSON but common: they become floats, and the field that holds one is named in a 422.
_DECODER = json.JSONDecoder(object_pairs_hook=_object_without_duplicates, parse_int=_bounded_integer)


def parse_json(data: bytes, limit_bytes: int, charset: str = UTF_8) -> Body:
    """Read a JSON object. Raises HttpProblem: 400 where it is no JSON, 422 where it is empty or no object.

    The value of `audio_base64` is cut out of the bytes and never parsed. Raises HttpProblem 413 for more than the limit
    beside it.
    """
    data, audio = without_json_audio(data) if len(data) > limit_bytes else (data, None)
    if len(data) > limit_bytes:
        raise too_large(f"the JSON beside {AUDIO_BASE64}", limit_bytes)
    text = _text(data, "the JSON body", charset).strip(" \t\r\n")
    if not text:
        raise HttpProblem(422, "empty_body", "the body is empty: send a JSON object, at least {}")
    try:
        parsed = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _bad("bad_json", f"the body is not JSON at {where}: {printable(error.msg)}") from None
    except RecursionError:
        raise _bad("bad_json", "the JSON is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise HttpProblem(422, "not_an_object", "the JSON body must be an object with the request's fields")
    if audio is not None and AUDIO_BASE64 in parsed:
        parsed[AUDIO_BASE64] = audio
    return Body(parsed)


def _form_fields(pairs: list[tuple[str, str]]) -> dict[str, object]:
    """The fields of a form, without those that are not given: blank ones, and nulls that were written as text.

    A list may be repeated. Of a switch the last one holds, as HTML's checkboxes have it; others stand once.
    """
    lists: dict[str, list[str]] = {}
    flags: dict[str, str] = {}
    singles: list[tuple[str, str]] = []
    for name, value in pairs:
        plain = name.removesuffix("[]")
        if plain in LIST_FIELDS:
            lists.setdefault(plain, []).append(value)
        elif name in FLAG_FIELDS:
            flags[name] = value
        else:
            singles.append((name, value))
    fields: dict[str, object] = _object_without_duplicates(singles) | flags
    fields |= {name: found[0] if len(found) == 1 else found for name, found in lists.items() if any(found)}
    return {name: value for name, value in fields.items() if _is_given(name, value)}


def _is_given(name: str, value: object) -> bool:
    if not isinstance(value, str) or name in FLAG_FIELDS:
        return True  # a blank switch is refused: PHP writes false so, and it must not become true
    if ALIASES.get(name, name) in NULL_FIELDS and value.strip() in NULL_WORDS:
        return False
    return bool(value.strip()) or name in BLANK_MEANS_BLANK


def parse_form(data: bytes, limit_bytes: int, charset: str = UTF_8) -> Body:
    """Read an urlencoded form. Raises HttpProblem 400 or, where the body is mislabelled JSON, 415.

    The value of `audio_base64` is cut out of the bytes. Raises HttpProblem 413 for more than the limit beside it.
    """
    data, audio = without_form_audio(data) if len(data) > limit_bytes else (data, None)
    if len(data) > limit_bytes:
        raise too_large(f"the form beside {AUDIO_BASE64}", limit_bytes)
    text = _text(data, "the form", charset)
    if text.lstrip().startswith("{"):
        detail = "the body looks like JSON but is sent as a form: add the header `Content-Type: application/json`"
        raise HttpProblem(415, "unsupported_media_type", detail)
    if not text:
        raise HttpProblem(422, "empty_body", "the form is empty: send at least one field")
    if text.count("&") >= MAX_FORM_FIELDS:
        raise _bad("too_many_fields", f"the form has more than {MAX_FORM_FIELDS} fields")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise _bad("bad_encoding", "the form is not UTF-8") from None
    fields = _form_fields(pairs)
    return Body(fields if audio is None else fields | {AUDIO_BASE64: audio})


@dataclass(frozen=True)
class _Part:
    name: str
    content: bytes
    is_file: bool  # it has a file name, be it an empty one
    charset: str


class _Parts:
    """Collects the parts of a multipart body from python-multipart's callbacks."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.ended = False
        self._header = (bytearray(), bytearray())
        self._name: str | None = None
        self._is_file = False
        self._is_unchosen = False
        self._charset = UTF_8
        self._chunks: list[bytes] = []

    def begin(self) -> None:
        if len(self.parts) == MAX_FORM_FIELDS:
            raise _bad("too_many_fields", f"the form has more than {MAX_FORM_FIELDS} fields")
        self._name, self._is_file, self._is_unchosen = None, False, False
        self._charset, self._chunks = UTF_8, []

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def header_end(self) -> None:
        name, value = map(bytes, self._header)
        self._header = (bytearray(), bytearray())
        if name.lower() == b"content-disposition":
            _, options = parse_options_header(value)
            self._is_file = b"filename" in options  # what the file is called means nothing
            self._is_unchosen = options.get(b"filename") == b""
            if b"name" in options:
                self._name = _text(options[b"name"], "the name of a part")
        elif name.lower() == b"content-type":
            _, options = parse_options_header(value)
            self._charset = options.get(b"charset", b"utf-8").decode("latin-1")
        elif name.lower() == b"content-transfer-encoding" and value.strip().lower() not in PLAIN_TRANSFERS:
            raise _bad("bad_multipart", "a part has a Content-Transfer-Encoding: send its bytes as they are")

    def data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def part_end(self) -> None:
        if self._name is None:
            raise _bad("bad_multipart", "a part has no name in its Content-Disposition")
        content = b"".join(self._chunks)
        if self._is_unchosen and not content:
            return  # a browser's file input in which no file was chosen
        self.parts.append(_Part(self._name, content, self._is_file, self._charset))

    def end(self) -> None:
        self.ended = True


def parse_multipart(data: bytes, boundary: bytes, file_field: str | None, limit_bytes: int) -> Body:
    """Read a multipart form. Raises HttpProblem 400, and 413 for more than the limit beside the audio.

    The part called `file_field` is the file, whatever its type says. So is one called `file`, and the only part that
    has a file name and none of the names of fields.
    """
    collected = _Parts()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collected.begin,
                "on_header_field": collected.header_name,
                "on_header_value": collected.header_value,
                "on_header_end": collected.header_end,
                "on_part_data": collected.data,
                "on_part_end": collected.part_end,
                "on_end": collected.end,
            },
        )
        parser.write(data)
    except FormParserError:
        raise _bad("bad_multipart", "the multipart body does not follow its boundary") from None
    if not collected.ended:
        raise _bad("bad_multipart", "the multipart body ends before its closing boundary")
    found = _file_part(collected.parts, file_field)
    others = [part for part in collected.parts if part is not found]
    if sum(len(part.content) for part in others if part.name != AUDIO_BASE64) > limit_bytes:
        raise too_large("the text of the form", limit_bytes)
    texts = [(part.name, _text(part.content, f"the field '{printable(part.name)}'", part.charset)) for part in others]
    return Body(_form_fields(texts), {} if file_field is None or found is None else {file_field: found.content})


def _file_part(parts: list[_Part], file_field: str | None) -> _Part | None:
    """The part that is the file. Raises HttpProblem 422 for several files."""
    if file_field is None:
        return None
    named = [part for part in parts if part.name == file_field]
    if not named:
        named = [part for part in parts if part.name == "file"] or [
            part for part in parts if part.is_file and part.name not in TEXT_FIELDS
        ]
    if len(named) > 1:
        names = ", ".join(f"'{printable(part.name)}'" for part in named)
        problem = FieldProblem(file_field, f"is one file, but the form has {len(named)}, called {names}")
        raise HttpProblem(422, "invalid_request", f"{problem.field}: {problem.problem}", (problem,))
    return named[0] if named else None
