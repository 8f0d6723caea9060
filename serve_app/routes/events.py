"""Routes that follow a job live: server-sent events, and the same over a WebSocket."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress

from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import Response, StreamingResponse

from deployments.messages import EventBatch, JobEvent, JobNotFoundError
from serve_app.errors import BackendUnavailableError, HttpProblem
from serve_app.ids import known_form
from serve_app.openapi import EVENTS, PROBLEMS
from serve_app.service import Service, service_of

router = APIRouter(tags=["Jobs"])

KEEP_ALIVE_S = 15.0
RECONNECT_MS = 2_000
EVENT_ID = re.compile(r"[0-9]{1,19}")
MAX_EVENT_ID = 2**63 - 1
POLICY_VIOLATION, TRY_AGAIN_LATER, NORMAL = 1008, 1013, 1000  # WebSocket close codes (RFC 6455)


@router.get(
    "/events/{request_id}", summary="Follow a job live", response_model=None, responses={200: EVENTS, **PROBLEMS}
)
async def events(request: Request, request_id: str) -> Response:
    """Server-sent events: `queued` with the position, `encoding`, `diffusion` with step, steps and remaining seconds,
    `decoding`, and exactly one `ended`, after which the stream closes.

    `Last-Event-ID` (or `?after=`) goes on after that event. 204 says that the end was heard already.
    """
    service, known = service_of(request), known_form(request_id)
    after = _event_id(request.headers.get("last-event-id") or request.query_params.get("after"))
    batch = await service.job_manager.events(known, after, 0.0)
    if batch.over and not batch.events:
        return Response(status_code=204)
    service.followers.check()
    headers = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}  # proxies would hold events back
    return StreamingResponse(_as_text(service, known, batch, after), 200, headers, "text/event-stream")


@router.websocket("/ws/{request_id}")
async def websocket(socket: WebSocket, request_id: str) -> None:
    """The events as JSON texts `{id, event, data}`, closed with 1000 after `ended`; 1008 for an unknown job."""
    service: Service = socket.app.state.service
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(offered[0] if offered else None)  # browsers close where none of theirs is taken
    try:
        known = known_form(request_id)
        after = _event_id(socket.query_params.get("after"))
        batch = await service.job_manager.events(known, after, 0.0)
        service.followers.check()
    except (JobNotFoundError, HttpProblem) as error:
        late = isinstance(error, HttpProblem) and error.status == 503
        reason = error.detail if isinstance(error, HttpProblem) else "there is no job with this id"
        await socket.close(TRY_AGAIN_LATER if late else POLICY_VIOLATION, reason)
        return
    telling = asyncio.create_task(_tell(socket, _follow(service, known, batch, after)))
    listening = asyncio.create_task(_until_left(socket))
    try:
        await asyncio.wait([telling, listening], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (telling, listening):
            task.cancel()
        await asyncio.gather(telling, listening, return_exceptions=True)


async def _tell(socket: WebSocket, events: AsyncIterator[JobEvent | None]) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):  # who has left is not told any more
        async for event in events:
            if event is not None:
                await socket.send_json({"id": event.event_id, "event": event.kind, "data": event.data})
        await socket.close(NORMAL)


async def _until_left(socket: WebSocket) -> None:
    """Read what a follower sends, text or bytes, until it leaves. It means nothing."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _as_text(service: Service, request_id: str, first: EventBatch, after: int) -> AsyncIterator[str]:
    yield f"retry: {RECONNECT_MS}\n\n"
    async for event in _follow(service, request_id, first, after):
        if event is None:
            yield ": still there\n\n"
        else:
            yield f"id: {event.event_id}\nevent: {event.kind}\ndata: {json.dumps(event.data)}\n\n"


async def _follow(service: Service, request_id: str, first: EventBatch, after: int) -> AsyncIterator[JobEvent | None]:
    """Every event behind `after`, up to the last; None where nothing happened for a while, or nobody could be asked."""
    with service.followers.enter():
        batch = first
        while True:
            for event in batch.events:
                after = event.event_id
                yield event
            if batch.over:
                return
            try:
                batch = await service.job_manager.events(request_id, after, KEEP_ALIVE_S)
            except BackendUnavailableError:  # restarting: its events go on behind those that were told
                batch = EventBatch((), over=False)
            except JobNotFoundError:
                return
            if not batch.events and not batch.over:
                yield None


def _event_id(text: str | None) -> int:
    if not text:
        return 0
    if EVENT_ID.fullmatch(text) is None or int(text) > MAX_EVENT_ID:
        raise HttpProblem(422, "invalid_request", "Last-Event-ID: is not the id of an event")
    return int(text)
