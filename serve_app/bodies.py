"""Request bodies to fields: bounded reading, then JSON, form or multipart.

Read here and not by FastAPI, whose 422 echoes the input and so fails on NaN and lone surrogates, and which has no
bound on a body. Each bad body gets its own answer: 400 where it is not what its type says, 413 before too much of it is
read, 408 where it comes too slowly, 415 for types that no route takes, 422 where it holds the wrong thing.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from serve_app.errors import HttpProblem, too_large
from serve_app.printable import printable

MAX_FORM_FIELDS = 100
MAX_INTEGER_DIGITS = 1_000
PARSE_ASIDE_BYTES = 256 * 1024  # parsing more than this would hold up the event loop


@dataclass(frozen=True)
class Body:
    """What a body says. `files` are the parts named in the route's file fields, judged by nobody yet."""

    fields: dict[str, object]
    files: dict[str, bytes] = field(default_factory=dict)
    from_form: bool = False


def _bad(code: str, detail: str) -> HttpProblem:
    return HttpProblem(400, code, detail)


async def read_bytes(request: Request, limit_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Refuses one that says it is over the limit unread, and one that turns out to be at the limit."""
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdecimal()):
        raise _bad("bad_length", "Content-Length is not a number")
    if len(declared) > 18 or int(declared) > limit_bytes:
        raise too_large("the body", limit_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit_bytes:
                    raise too_large("the body", limit_bytes)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        detail = f"the body was not complete after {timeout_s:g} s"
        raise HttpProblem(408, "body_timeout", detail, headers={"Connection": "close"}) from None


async def read_body(request: Request, limit_bytes: int, timeout_s: float, file_fields: frozenset[str]) -> Body:
    """The body by its Content-Type; JSON when it has none. Raises HttpProblem."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise HttpProblem(415, "unsupported_encoding", "send the body uncompressed, without Content-Encoding")
    media_type, options = parse_options_header(request.headers.get("content-type", "application/json"))
    parse: Callable[[bytes], Body]
    if media_type == b"application/json" or media_type.endswith(b"+json"):
        parse = parse_json
    elif media_type == b"application/x-www-form-urlencoded":
        parse = parse_form
    elif media_type == b"multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise _bad("bad_multipart", "the Content-Type of a multipart body must name its boundary")

        def parse(data: bytes) -> Body:
            return parse_multipart(data, boundary, file_fields)
    else:
        shown = printable(media_type.decode("latin-1"))
        accepted = "application/json, multipart/form-data or application/x-www-form-urlencoded"
        raise HttpProblem(415, "unsupported_media_type", f"the body is '{shown}': send {accepted}")
    data = await read_bytes(request, limit_bytes, timeout_s)
    if len(data) > PARSE_ASIDE_BYTES:
        return await anyio.to_thread.run_sync(parse, data)
    return parse(data)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad("bad_encoding", f"{what} is not UTF-8: byte {error.start} does not fit") from None


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


def parse_json(data: bytes) -> Body:
    """A JSON object. Raises HttpProblem: 400 where it is no JSON, 422 where it is empty or no object."""
    text = _text(data, "the JSON body").strip(" \t\r\n")
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
    return Body(parsed)


def _without_blanks(fields: Mapping[str, str]) -> dict[str, object]:
    """A form sends every field it has: a blank one is left out, except where blank text means something."""
    return {name: value for name, value in fields.items() if value.strip() or name in ("prompt", "lyrics")}


def parse_form(data: bytes) -> Body:
    """An urlencoded form. Raises HttpProblem 400 or, where the body is mislabelled JSON, 415."""
    text = _text(data, "the form")
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
    return Body(_without_blanks(_object_without_duplicates(pairs)), from_form=True)


class _Parts:
    """Collects the parts of a multipart body from python-multipart's callbacks."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.ended = False
        self._header = (bytearray(), bytearray())
        self._name: str | None = None
        self._chunks: list[bytes] = []

    def begin(self) -> None:
        if len(self.parts) == MAX_FORM_FIELDS:
            raise _bad("too_many_fields", f"the form has more than {MAX_FORM_FIELDS} fields")
        self._name, self._chunks = None, []

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def header_end(self) -> None:
        name, value = map(bytes, self._header)
        self._header = (bytearray(), bytearray())
        if name.lower() == b"content-disposition":
            _, options = parse_options_header(value)  # the file's name, if any, is nobody's business
            if b"name" in options:
                self._name = _text(options[b"name"], "the name of a part")

    def data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def part_end(self) -> None:
        if self._name is None:
            raise _bad("bad_multipart", "a part has no name in its Content-Disposition")
        self.parts.append((self._name, b"".join(self._chunks)))

    def end(self) -> None:
        self.ended = True


def parse_multipart(data: bytes, boundary: bytes, file_fields: frozenset[str]) -> Body:
    """A multipart form. Parts named in `file_fields` stay bytes, whatever their type says. Raises HttpProblem 400."""
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
    parts = _object_without_duplicates(list(collected.parts))
    files = {name: parts.pop(name) for name in file_fields & parts.keys()}
    fields = {name: _text(value, f"the field '{printable(name)}'") for name, value in parts.items()}
    return Body(_without_blanks(fields), files, from_form=True)
