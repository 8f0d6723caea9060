"""Answers that hold all songs of a job: a zip file, or a multipart body. Both are sent song by song."""

import io
import json
import time
import uuid
import zipfile
from collections.abc import AsyncIterator
from pathlib import PurePath

from fastapi import Request
from fastapi.responses import Response

from acestep_engine.audio import MEDIA_TYPES
from deployments.messages import JobView, ServiceError, published_form, request_of_song
from serve_app.accept import Kind
from serve_app.errors import BackendError
from serve_app.ids import SongAddress
from serve_app.responses import file_name
from serve_app.service import Service, service_of
from serve_app.streaming import BrokenStreamError, SongResponse, made_view, song_parts


async def batch_response(request: Request, request_id: str, kind: Kind) -> Response:
    """All songs of a completed job as `kind`, zip or multipart. Raises as `made_song`.

    No more of a song is read than the client takes.
    """
    service = service_of(request)
    view = await made_view(service, SongAddress(request_id, 0))
    first = await song_parts(service, view, 0)  # before anything is answered: files that are gone are an error
    headers = {"X-Request-ID": request_id}
    if kind == "zip":
        archive = PurePath(file_name(view)).with_suffix(".zip").name
        headers |= {"Content-Type": "application/zip", "Content-Disposition": f'attachment; filename="{archive}"'}
        body = _zip(view, _songs(service, view, first))
    else:
        boundary = uuid.uuid4().hex
        headers["Content-Type"] = f"multipart/mixed; boundary={boundary}"
        body = _multipart(view, _songs(service, view, first), boundary)
    return SongResponse(body, headers, readers=service.readers)


async def _songs(service: Service, view: JobView, first: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """The parts of each song. Raises BrokenStreamError for one whose file is gone meanwhile."""
    yield first
    for index in range(1, len(view.songs)):
        try:
            yield await song_parts(service, view, index)
        except (ServiceError, BackendError):
            raise BrokenStreamError(view.request_id) from None


class _Pipe(io.RawIOBase):
    """What was written to it since it was last emptied."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        self._written += data
        return len(data)

    def empty(self) -> bytes:
        written = bytes(self._written)
        self._written.clear()
        return written


async def _zip(view: JobView, songs: AsyncIterator[AsyncIterator[bytes]]) -> AsyncIterator[bytes]:
    """Each song and the request that makes it alone.

    Audio hardly gets smaller, so it is deflated at level 0: readers that go forward only refuse entries that are stored
    with their lengths behind them.
    """
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:
        index = 0
        async for parts in songs:
            name = file_name(view, index)
            entry = _entry(name, view)
            entry.file_size = view.results[index].audio_bytes
            with archive.open(entry, "w") as file:
                async for part in parts:
                    file.write(part)
                    yield pipe.empty()
            asked = published_form(request_of_song(view.request_json, view.songs[index]), view.results[index])
            text = json.dumps(asked, ensure_ascii=False, indent=2)
            archive.writestr(_entry(f"{PurePath(name).stem}_input_params.json", view), text)
            index += 1
    yield pipe.empty()


def _entry(name: str, view: JobView) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, time.localtime(view.completed_at)[:6])  # zip files have no time zone
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry._compresslevel = 0  # type: ignore[attr-defined]  # zipfile takes the archive's level for names only
    return entry


async def _multipart(view: JobView, songs: AsyncIterator[AsyncIterator[bytes]], boundary: str) -> AsyncIterator[bytes]:
    """Each song as a part with headers of its own."""
    index = 0
    async for parts in songs:
        headers = {
            "Content-Type": MEDIA_TYPES[view.audio_format],
            "Content-Disposition": f'attachment; filename="{file_name(view, index)}"',
            "Content-Length": str(view.results[index].audio_bytes),
            "X-Seed": str(view.songs[index].seed),
        }
        lines = [f"--{boundary}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        yield "\r\n".join(lines).encode()
        async for part in parts:
            yield part
        yield b"\r\n"
        index += 1
    yield f"--{boundary}--\r\n".encode()
