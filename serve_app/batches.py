"""Answers that hold all songs of a job: a zip file, or a multipart body. Both are sent song by song."""

import io
import json
import time
import uuid
import zipfile
from collections.abc import AsyncIterator
from pathlib import PurePath

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from acestep_engine.audio import MEDIA_TYPES
from deployments.messages import AudioFile, JobView, published_form, request_of_song
from serve_app.accept import Kind
from serve_app.responses import chunks, file_name
from serve_app.service import JobManagerClient, service_of


async def batch_response(request: Request, request_id: str, kind: Kind) -> Response:
    """All songs of a completed job as `kind`, zip or multipart. Raises as `JobManagerClient.result`."""
    jobs = service_of(request).job_manager
    first = await jobs.result(request_id, 0)
    headers = {"X-Request-ID": request_id}
    if kind == "zip":
        archive = PurePath(file_name(first.view)).with_suffix(".zip").name
        headers |= {"Content-Type": "application/zip", "Content-Disposition": f'attachment; filename="{archive}"'}
        body = _zip(_songs(jobs, first))
    else:
        boundary = uuid.uuid4().hex
        headers["Content-Type"] = f"multipart/mixed; boundary={boundary}"
        body = _multipart(_songs(jobs, first), boundary)
    return StreamingResponse(body, headers=headers)


async def _songs(jobs: JobManagerClient, first: AudioFile) -> AsyncIterator[AudioFile]:
    yield first
    for index in range(1, len(first.view.songs)):
        yield await jobs.result(first.view.request_id, index)


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


async def _zip(songs: AsyncIterator[AudioFile]) -> AsyncIterator[bytes]:
    """Each song and the request that makes it alone.

    Audio hardly gets smaller, so it is deflated at level 0: readers that go forward only refuse entries that are stored
    with their lengths behind them.
    """
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:
        async for song in songs:
            name = file_name(song.view, song.index)
            entry = _entry(name, song.view)
            entry.file_size = song.audio.size
            with archive.open(entry, "w") as file:
                async for chunk in chunks(song.audio, 0, song.audio.size):
                    file.write(chunk)
                    yield pipe.empty()
            asked = request_of_song(song.view.request_json, song.view.songs[song.index])
            asked = published_form(asked, song.view.results[song.index])
            text = json.dumps(asked, ensure_ascii=False, indent=2)
            archive.writestr(_entry(f"{PurePath(name).stem}_input_params.json", song.view), text)
    yield pipe.empty()


def _entry(name: str, view: JobView) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, time.localtime(view.completed_at)[:6])  # zip files have no time zone
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry._compresslevel = 0  # type: ignore[attr-defined]  # zipfile takes the archive's level for names only
    return entry


async def _multipart(songs: AsyncIterator[AudioFile], boundary: str) -> AsyncIterator[bytes]:
    """Each song as a part with headers of its own."""
    async for song in songs:
        view = song.view
        headers = {
            "Content-Type": MEDIA_TYPES[view.audio_format],
            "Content-Disposition": f'attachment; filename="{file_name(view, song.index)}"',
            "Content-Length": str(song.audio.size),
            "X-Seed": str(view.songs[song.index].seed),
        }
        lines = [f"--{boundary}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        yield "\r\n".join(lines).encode()
        async for chunk in chunks(song.audio, 0, song.audio.size):
            yield chunk
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()
