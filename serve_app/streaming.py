"""Songs as they are made: the answer begins with the first audio, and goes on while the rest is decoded."""

import asyncio
import base64
import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from acestep_engine.audio import MEDIA_TYPES
from acestep_engine.params import file_extension
from deployments.messages import (
    AudioPart,
    JobFailedError,
    JobNotEndedError,
    JobView,
    ServiceError,
    SongNotFoundError,
)
from serve_app.accept import check_acceptable
from serve_app.bounds import Places
from serve_app.errors import BackendError, BackendUnavailableError, HttpProblem, job_problem, wait_ended
from serve_app.ids import SongAddress
from serve_app.intake import Order, abandon, cancel_without_client
from serve_app.middleware import wants_only_headers
from serve_app.printable import printable
from serve_app.responses import AudioAnswer, file_name, result_json
from serve_app.service import Service, service_of

logger = logging.getLogger("ray.serve.acestep")  # Ray Serve's handlers write it

JSON_END = b'"}'
LISTEN_S = 10.0  # how long one question to the JobManager waits for audio


class BrokenStreamError(Exception):
    """The rest of a song will not come. After the first bytes only a broken connection can say so."""


class _Listener:
    """Asks for one song's file, part by part: no more is on its way than the reader takes."""

    def __init__(self, service: Service, request_id: str, index: int) -> None:
        self._service = service
        self._request_id = request_id
        self._index = index

    async def first(self, wait_s: float = math.inf) -> AudioPart:
        """The first bytes; none after `wait_s`. Raises JobNotFoundError, JobFailedError, SongNotFoundError."""
        give_up_at = asyncio.get_running_loop().time() + wait_s
        while True:
            left_s = give_up_at - asyncio.get_running_loop().time()
            part = await self._listen(0, None, min(LISTEN_S, max(left_s, 0.0)))
            if part.audio.size or left_s <= 0:
                return part

    async def at(self, start: int, edition: str) -> AudioPart:
        """Bytes of a song that is made. Raises JobFailedError where its file is gone."""
        return await self._listen(start, edition, 0.0)

    async def rest(self, part: AudioPart, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """These bytes, which begin at `start`, and all that follow them, or those before `end`.

        Raises BrokenStreamError.
        """
        heard = start
        while True:
            audio = part.audio if end is None else part.audio[: end - heard]
            heard += audio.size
            if audio.size:
                yield audio.tobytes()
            if heard == end or (part.last and end is None):
                return
            if part.last:
                logger.error("%s ends after %d bytes of %d", self._request_id, heard, end)
                raise BrokenStreamError(self._request_id)
            try:
                part = await self._listen(heard, part.edition, LISTEN_S)
            except (ServiceError, BackendError) as error:
                logger.warning("%s breaks off after %d bytes: %s", self._request_id, heard, type(error).__name__)
                raise BrokenStreamError(self._request_id) from None

    async def _listen(self, heard: int, edition: str | None, wait_s: float) -> AudioPart:
        return await self._service.job_manager.listen(self._request_id, self._index, heard, edition, wait_s)


class SongResponse(StreamingResponse):
    """Tells when its client leaves before the end. Where the rest of a song will not come, it ends without an end."""

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        headers: Mapping[str, str],
        status: int = 200,
        *,
        readers: Places,
        on_leave: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(self._watched(parts), status, headers)
        self._readers = readers
        self._on_leave = on_leave
        self._complete = False

    async def _watched(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in parts:
            yield part
        self._complete = True

    async def stream_response(self, send: Send) -> None:
        with suppress(BrokenStreamError):  # the server closes the connection of an answer without an end
            await super().stream_response(send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._readers.taken += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._readers.taken -= 1
            if self._on_leave is not None and not self._complete:
                self._on_leave()


async def stream_song(request: Request, address: SongAddress) -> Response:
    """A song of a job in any state: once it is made as `made_song`, else what there is of it, then what comes.

    Raises JobNotFoundError, SongNotFoundError, JobFailedError, JobNotEndedError if nothing comes for as long as a route
    waits.
    """
    service = service_of(request)
    view = await _view(service, address)
    index = address.index
    if view.ended:
        return await _made(request, view, index, "inline")
    if wants_only_headers(request):
        return Response(headers=await _headers(service, view, index))
    listener = _Listener(service, view.request_id, index)
    with service.waiting.enter():
        first = await listener.first(service.settings.jobs.sync_wait_s)
    if not first.audio.size:
        raise JobNotEndedError(first.view)
    return await _response(service, listener, first, index)


async def made_song(request: Request, address: SongAddress) -> Response:
    """A song that is made, or the range of it that was asked for; no more of it is read than its client takes.

    Raises JobNotFoundError, SongNotFoundError, JobNotEndedError, JobFailedError, HttpProblem 406 and 416.
    """
    view = await _view(service_of(request), address)
    check_acceptable(request, view.audio_format)
    return await _made(request, view, address.index, "attachment")


async def _made(request: Request, view: JobView, index: int, disposition: str) -> Response:
    _check_made(view)
    service = service_of(request)
    result = view.results[index]
    answer = AudioAnswer.of(request, view, index, result.audio_bytes, disposition)
    if answer.status == 304:
        return Response(status_code=304, headers=answer.headers)
    listener = _Listener(service, view.request_id, index)
    # Before anything is answered: a file that is gone is an error. Behind its end there is nothing to read.
    at = result.audio_bytes if wants_only_headers(request) else answer.start
    first = await listener.at(at, result.edition)
    return SongResponse(
        listener.rest(first, answer.start, answer.end), answer.headers, answer.status, readers=service.readers
    )


async def made_json(request: Request, address: SongAddress) -> Response:
    """A song that is made as JSON: what is known of it, and its file as base64 under `audio`.

    Raises as `made_song`. No more of the file is read than the client takes.
    """
    service = service_of(request)
    view = await _view(service, address)
    _check_made(view)
    size = view.results[address.index].audio_bytes
    head = f'{json.dumps(result_json(request, view), ensure_ascii=False)[:-1]}, "audio": "'.encode()
    length = len(head) + 4 * -(-size // 3) + len(JSON_END)
    headers = {"Content-Type": "application/json", "Content-Length": str(length)}
    listener = _Listener(service, view.request_id, address.index)
    at = size if wants_only_headers(request) else 0
    first = await listener.at(at, view.results[address.index].edition)
    return SongResponse(_json_parts(head, listener.rest(first, at, size)), headers, readers=service.readers)


async def made_view(service: Service, address: SongAddress) -> JobView:
    """The job of a song that is made. Raises as `made_song`."""
    view = await _view(service, address)
    _check_made(view)
    return view


async def song_parts(service: Service, view: JobView, index: int) -> AsyncIterator[bytes]:
    """The whole file of a song that is made, part by part. Raises JobFailedError where it is gone."""
    result = view.results[index]
    listener = _Listener(service, view.request_id, index)
    return listener.rest(await listener.at(0, result.edition), 0, result.audio_bytes)


async def _json_parts(head: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    rest = b""
    async for part in parts:
        content = rest + part
        whole = len(content) // 3 * 3  # base64 of so many bytes can be joined with what follows
        rest = content[whole:]
        yield base64.b64encode(content[:whole])
    yield base64.b64encode(rest) + JSON_END


async def _view(service: Service, address: SongAddress) -> JobView:
    """The job of a song that is to be sent.

    Raises JobNotFoundError, SongNotFoundError, HttpProblem 404 for another extension and 503 where too many are sent.
    """
    service.readers.check()
    view = await service.job_manager.status(address.request_id)
    if address.index >= len(view.songs):
        raise SongNotFoundError(address.index, len(view.songs))
    extension = file_extension(view.audio_format)
    if address.extension not in (None, extension):
        detail = f"the song is a .{extension} file"
        raise HttpProblem(404, "song_not_found", detail, request_id=view.request_id)
    return view


def _check_made(view: JobView) -> None:
    if not view.ended:
        raise JobNotEndedError(view)
    if view.outcome != "completed":
        raise JobFailedError(view)


async def stream_new_song(request: Request, order: Order) -> Response:
    """Accept a job and answer its first song as it is made. Raises as `stream_accepted_song`."""
    service = service_of(request)
    service.readers.check()
    with service.waiting.enter():
        accepting = service.spawn(service.job_manager.submit(order.submission))
        try:
            view = await asyncio.shield(accepting)
        except asyncio.CancelledError:
            if order.ends_with_client:
                service.spawn(abandon(service, accepting))
            raise
        return await stream_accepted_song(request, order, view)


async def stream_accepted_song(request: Request, order: Order, view: JobView) -> Response:
    """Answer the first song of an accepted job as it is made, however long it takes to begin.

    Raises HttpProblem where the job ends before there is any audio, and 504 where it cannot be waited for.
    """
    service = service_of(request)

    def leave() -> None:
        if order.ends_with_client:
            service.spawn(cancel_without_client(service, view.request_id))

    listener = _Listener(service, view.request_id, 0)
    try:
        first = await listener.first()
    except asyncio.CancelledError:
        leave()
        raise
    except BackendUnavailableError:  # the job is accepted and kept
        raise wait_ended(view) from None
    except JobFailedError as error:
        raise job_problem(error.view) from None
    return await _response(service, listener, first, 0, leave)


async def _response(
    service: Service, listener: _Listener, first: AudioPart, index: int, on_leave: Callable[[], None] | None = None
) -> Response:
    headers = await _headers(service, first.view, index)
    return SongResponse(listener.rest(first), headers, readers=service.readers, on_leave=on_leave)


async def _headers(service: Service, view: JobView, index: int) -> dict[str, str]:
    """Return the headers of a song that is being made."""
    status = await service.watch.latest(0)
    model = view.results[index].model if view.results else status.model if status is not None else ""
    return {
        "Content-Type": MEDIA_TYPES[view.audio_format],
        "Content-Disposition": f'inline; filename="{file_name(view, index if len(view.songs) > 1 else None)}"',
        "Cache-Control": "no-store, no-transform",  # proxies that compress would hold it back
        "X-Accel-Buffering": "no",
        "X-Request-ID": view.request_id,
        "X-Seed": str(view.songs[index].seed),
        "X-Model": printable(model).encode("ascii", "replace").decode(),
    }
