"""Routes about one job, and about the queue of all of them."""

from dataclasses import asdict

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from deployments.messages import JobEndedError
from serve_app.accept import wanted
from serve_app.batches import batch_response
from serve_app.ids import SongAddress, known_form
from serve_app.openapi import AUDIO, CANCELLED, JOB, PROBLEMS, QUEUE, RESULT_QUERY, SONGS, STREAM_QUERY
from serve_app.responses import song_index, status_json
from serve_app.service import service_of
from serve_app.streaming import made_json, made_song, stream_song

router = APIRouter(tags=["Jobs"])


@router.get("/status/{request_id}", summary="How a job stands", response_model=None, responses={200: JOB, **PROBLEMS})
async def status(request: Request, request_id: str) -> Response:
    """`status` is pending, processing, completed or failed. `outcome` says more about the end (cancelled, expired), and
    `progress` about the way there. `result` appears when the job has completed."""
    view = await service_of(request).job_manager.status(known_form(request_id))
    return JSONResponse(status_json(request, view))


@router.get(
    "/result/{request_id}",
    summary="The music of a completed job",
    response_model=None,
    responses={200: SONGS, 206: AUDIO, **PROBLEMS},
    openapi_extra={"parameters": RESULT_QUERY},
)
async def result(request: Request, request_id: str) -> Response:
    """The audio file; ranges are served. `?index=` says which song of a batch, 0 is the first. For players that want
    one, the extension of the file may follow the id.

    `Accept: application/json` or `?format=json` answers JSON instead, with its parameters and the song as base64 under
    `audio`; `application/zip` or `?format=zip` all songs with their parameters, `multipart/mixed` or
    `?format=multipart` all songs as parts.
    400 with `Retry-After` while the job has not ended, 406 when Accept names other audio types only, 409 when it ended
    without music, 410 when its music is no longer kept.
    """
    address = SongAddress.parse(request_id, song_index(request))
    kind = wanted(request, "audio", "json", "zip", "multipart")
    if kind in ("zip", "multipart"):
        return await batch_response(request, address.request_id, kind)
    return await (made_song if kind == "audio" else made_json)(request, address)


@router.get(
    "/stream/{request_id}",
    summary="The music of a job, while it is made",
    response_model=None,
    responses={200: AUDIO, **PROBLEMS},
    openapi_extra={"parameters": STREAM_QUERY},
)
async def stream(request: Request, request_id: str) -> Response:
    """The audio file in chunks, as soon as they are decoded: every format can be played from its first bytes, and all
    chunks together are the file of `/result`. `?index=` says which song of a batch, 0 is the first.

    Waits for the first audio while the job waits or runs; 400 with `Retry-After` if none has come for as long as the
    server waits, 409 if the job ended without music, 410 if it is no longer kept. Should it fail later, the connection
    breaks before the end.
    """
    return await stream_song(request, SongAddress.parse(request_id, song_index(request)))


@router.get("/queue/status", summary="How long the queue is", response_model=None, responses={200: QUEUE, **PROBLEMS})
async def queue_status(request: Request) -> Response:
    """How many jobs wait, and how many there are in each state."""
    queue = await service_of(request).job_manager.queue_status()
    counts = {"pending": 0, "processing": 0, "completed": 0, "failed": 0, **queue.status_counts}
    return JSONResponse(asdict(queue) | {"status_counts": counts})


@router.delete(
    "/request/{request_id}", summary="Cancel a job", response_model=None, responses={200: CANCELLED, **PROBLEMS}
)
async def cancel(request: Request, request_id: str) -> Response:
    """Cancels a job that waits or runs; a running one stops within a step.

    Cancelling twice is fine; 409 is a job that has ended in another way.
    """
    try:
        view = await service_of(request).job_manager.cancel(known_form(request_id))
    except JobEndedError as error:
        if error.view.outcome != "cancelled":
            raise
        view = error.view
    body = {"success": True, "request_id": view.request_id, "status": view.status, "outcome": view.outcome}
    return JSONResponse(body | {"message": "Request has been cancelled"})
