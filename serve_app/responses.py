"""Answers: a job as JSON, a song as bytes, and which of the two a client asked for."""

import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from acestep_engine.audio import MEDIA_TYPES
from acestep_engine.params import file_extension
from deployments.messages import RETAKE_SEED_TASKS, AudioFile, ByteArray, JobView, json_seed
from serve_app.errors import RETRY_SOON_S, HttpProblem
from serve_app.printable import printable

CHUNK_BYTES = 1024 * 1024  # what is copied at a time: a song of 240 s as wav is 46 MB

Kind = Literal["json", "audio", "zip", "multipart"]
KINDS: tuple[Kind, ...] = ("zip", "multipart", "audio", "json")  # the first of those that are liked equally
MEDIA_RANGES: Mapping[Kind, tuple[str, ...]] = {
    "json": ("application/json", "application/*"),
    "audio": ("audio/", "application/octet-stream"),
    "zip": ("application/zip",),
    "multipart": ("multipart/mixed",),
}

QUEUED_MESSAGE = "Request has been queued for processing"


def job_url(request: Request, view: JobView, what: str = "status") -> str:
    return f"{request.scope.get('root_path', '').rstrip('/')}/{what}/{view.request_id}"


def accepted_response(request: Request, view: JobView, status: str = "queued", *, preferred: bool = False) -> Response:
    """202: the job goes on, and Location says where to ask for it."""
    body = {"success": True, "request_id": view.request_id, "status": status, "message": QUEUED_MESSAGE}
    headers = {"Location": job_url(request, view), "Retry-After": str(RETRY_SOON_S)}
    if preferred:
        headers["Preference-Applied"] = "respond-async"
    return JSONResponse(body, 202, headers)


def result_json(request: Request, view: JobView) -> dict[str, Any]:
    """A completed job: what /generate_music answers and /status carries under `result`."""
    body: dict[str, Any] = {
        "success": True,
        "request_id": view.request_id,
        "status": view.status,
        "format": view.audio_format,
        "params_json": view.request_json,
        "outputs": [_output_json(request, view, index) for index in range(len(view.results))],
    }
    first = _output_json(request, view, 0)
    del first["index"]
    return body | first


def _output_json(request: Request, view: JobView, index: int) -> dict[str, Any]:
    """One song of a completed job."""
    song, result = view.songs[index], view.results[index]
    url = job_url(request, view, "result")
    body: dict[str, Any] = {"index": index, "seed": json_seed(song.seed)}
    if song.task in RETAKE_SEED_TASKS:
        body["retake_seed"] = json_seed(song.retake_seed)
    return body | {
        "audio_path": result.audio_path,
        "audio_url": url if len(view.songs) == 1 else f"{url}?index={index}",
        "model": result.model,
        "device": result.device,
        "duration_s": result.duration_s,
        "audio_bytes": result.audio_bytes,
        "timings": result.timings,
    }


def status_json(request: Request, view: JobView) -> dict[str, Any]:
    """A job in any state. `result` is there once it has completed, until it expires."""
    progress = view.progress
    body: dict[str, Any] = {
        "request_id": view.request_id,
        "status": view.status,
        "outcome": view.outcome,
        "created_at": view.created_at,
        "started_at": view.started_at,
        "completed_at": view.completed_at,
        "position": view.position,
        "expected_wait_s": view.expected_wait_s,
        "progress": {"stage": progress.stage, "step": progress.step, "steps": progress.steps} if progress else None,
        "remaining_s": view.remaining_s,
        "format": view.audio_format,
        "seed": json_seed(view.songs[0].seed),
        "params_json": view.request_json,
        "error": printable(view.error, 500) if view.error else None,
        "error_code": view.error_code,
    }
    if view.results:
        body["result"] = result_json(request, view)
    return body


def _media_ranges(accept: str) -> dict[str, float]:
    """An Accept header to the quality of each media range it lists."""
    ranges: dict[str, float] = {}
    for part in accept.lower().split(",")[:50]:
        media, _, parameters = part.partition(";")
        found = re.search(r"(?:^|;)\s*q=([01](?:\.\d{0,3})?)\s*(?:;|$)", parameters)
        ranges[media.strip()] = float(found[1]) if found else 1.0
    return ranges


def wanted(request: Request, usual: Kind, *others: Kind) -> Kind:
    """Which of the kinds that a route has is asked for, by `?format=` or by Accept; `*/*` is the usual one.

    Raises HttpProblem 422 for a `format` that the route does not have.
    """
    offered = [kind for kind in KINDS if kind in (usual, *others)]
    asked = request.query_params.get("format")
    if asked is not None:
        if asked not in offered:
            problem = f"format: '{printable(asked)}' is not one of {', '.join(offered)}"
            raise HttpProblem(422, "invalid_request", f"{problem}; that of the audio is a field of the body")
        return next(kind for kind in offered if kind == asked)
    ranges = _media_ranges(request.headers.get("accept", "*/*"))
    qualities = {kind: _quality(ranges, kind) for kind in offered}
    qualities[usual] = max(qualities[usual], ranges.get("*/*", 0.0))
    best = max(offered, key=lambda kind: qualities[kind])
    return best if qualities[best] > 0 else usual


def _quality(ranges: dict[str, float], kind: Kind) -> float:
    return max((quality for name, quality in ranges.items() if name.startswith(MEDIA_RANGES[kind])), default=0.0)


def song_index(request: Request) -> int:
    """Which song of a job `?index=` asks for; the first when it does not. Raises HttpProblem 422."""
    asked = request.query_params.get("index", "0")
    if not re.fullmatch(r"[0-9]{1,4}", asked, re.ASCII):
        raise HttpProblem(422, "invalid_request", f"index: '{printable(asked)}' is no number of a song: 0 is the first")
    return int(asked)


def _asked_range(header: str | None, size: int) -> tuple[int, int] | None:
    """A Range header of one range to [start, end); None where the whole file is the answer. Raises HttpProblem 416."""
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", header or "", re.ASCII | re.IGNORECASE)
    if found is None or not (found[1] or found[2]):
        return None  # no range, several of them, or another unit: RFC 9110 lets a server answer with the whole file
    if found[1] and found[2] and int(found[2]) < int(found[1]):
        return None  # the last byte before the first: no valid range either
    if found[1]:
        start, end = int(found[1]), int(found[2]) + 1 if found[2] else size
    else:
        start, end = max(0, size - int(found[2])), size
    if start >= min(end, size):
        detail = f"the range starts behind the last of {size} bytes"
        raise HttpProblem(416, "range_not_satisfiable", detail, headers={"Content-Range": f"bytes */{size}"})
    return start, min(end, size)


async def chunks(audio: ByteArray, start: int, end: int) -> AsyncIterator[bytes]:
    """The bytes from `start` to `end`, some at a time."""
    for at in range(start, end, CHUNK_BYTES):
        yield audio[at : min(at + CHUNK_BYTES, end)].tobytes()


def audio_response(request: Request, file: AudioFile) -> Response:
    """The encoded song, or the range of it that was asked for. Raises HttpProblem 416."""
    view, size = file.view, file.audio.size
    song, result = view.songs[file.index], view.results[file.index]
    tag = f'"{view.request_id}.{file.index}"'
    ranged = request.headers.get("range")
    if request.headers.get("if-range", tag) != tag:
        ranged = None
    asked = _asked_range(ranged, size)
    start, end = asked or (0, size)
    headers = {
        "Content-Type": MEDIA_TYPES[view.audio_format],
        "Content-Length": str(end - start),
        "Content-Disposition": f'attachment; filename="{file_name(view, file.index if len(view.songs) > 1 else None)}"',
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "X-Request-ID": view.request_id,
        "X-Seed": str(song.seed),
        "X-Model": printable(result.model).encode("ascii", "replace").decode(),
    }
    if asked:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if asked else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(chunks(file.audio, start, end), status, headers)


def file_name(view: JobView, index: int | None = None) -> str:
    """What a song is called where it is downloaded; with its number among several."""
    number = "" if index is None else f"_{index}"
    return f"generated_music_{int(view.completed_at or time.time())}{number}.{file_extension(view.audio_format)}"
