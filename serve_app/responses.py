"""Answers: a job as JSON, a song as bytes."""

import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from acestep_engine.audio import MEDIA_TYPES
from acestep_engine.params import file_extension
from deployments.messages import RETAKE_SEED_TASKS, AudioFile, ByteArray, JobView, json_seed, published_form
from serve_app.errors import RETRY_SOON_S, HttpProblem
from serve_app.printable import printable
from serve_app.service import service_of

CHUNK_BYTES = 1024 * 1024  # what is copied at a time: a song of 240 s as wav is 46 MB

QUEUED_MESSAGE = "Request has been queued for processing"


def job_url(request: Request, view: JobView, what: str = "status") -> str:
    return f"{request.scope.get('root_path', '').rstrip('/')}/{what}/{view.request_id}"


def prefers_async(request: Request) -> bool:
    """Return whether the header Prefer asks for an answer before the work is done."""
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    return any(one.partition(";")[0].strip() == "respond-async" for one in preferences)


def accepted_response(
    request: Request, view: JobView, ignored: Sequence[str], status: Literal["queued", "processing"] = "queued"
) -> Response:
    """Answer that a job is accepted and goes on; Location says where to ask for it.

    200 is what clients of the earlier server check. Those that know of 202 ask for it, with `Prefer: respond-async`.
    """
    body = {
        "success": True,
        "request_id": view.request_id,
        "status": status,
        "message": QUEUED_MESSAGE,
        "ignored_fields": [*ignored],
    }
    headers = {"Location": job_url(request, view), "Retry-After": str(RETRY_SOON_S)}
    if prefers_async(request):
        return JSONResponse(body, 202, headers | {"Preference-Applied": "respond-async"})
    return JSONResponse(body, 200, headers)


def result_json(request: Request, view: JobView) -> dict[str, Any]:
    """A completed job: what /generate_music answers and /status carries under `result`."""
    body: dict[str, Any] = {
        "success": True,
        "request_id": view.request_id,
        "status": view.status,
        "format": view.audio_format,
        "content_type": MEDIA_TYPES[view.audio_format],
        "params_json": published_form(view.request_json, view.results[0]),
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
        "audio_size_bytes": result.audio_bytes,
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
        "params_json": published_form(view.request_json, view.results[0] if view.results else None),
        "error": printable(view.error, 500) if view.error else None,
        "error_code": view.error_code,
    }
    if view.results:
        body["result"] = result_json(request, view)
    return body


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
    answer = AudioAnswer.of(request, file.view, file.index, file.audio.size)
    return StreamingResponse(chunks(file.audio, answer.start, answer.end), answer.status, answer.headers)


@dataclass(frozen=True)
class AudioAnswer:
    """The answer with a song that is made: its bytes from `start` to `end`."""

    status: int
    headers: Mapping[str, str]
    start: int
    end: int

    @classmethod
    def of(cls, request: Request, view: JobView, index: int, size: int, disposition: str = "attachment") -> Self:
        """The song, or the range of it that was asked for; nothing if the client has it. Raises HttpProblem 416."""
        tag = f'"{view.request_id}.{index}"'
        if _is_known(request.headers.get("if-none-match", ""), tag):
            return cls(304, {"ETag": tag, **_kept_by_clients(request, view)}, 0, 0)
        ranged = request.headers.get("range") if request.headers.get("if-range", tag) == tag else None
        asked = _asked_range(ranged, size)
        start, end = asked or (0, size)
        name = file_name(view, index if len(view.songs) > 1 else None)
        headers = {
            "Content-Type": MEDIA_TYPES[view.audio_format],
            "Content-Length": str(end - start),
            "Content-Disposition": f'{disposition}; filename="{name}"',
            "Accept-Ranges": "bytes",
            "ETag": tag,
            "X-Request-ID": view.request_id,
            "X-Seed": str(view.songs[index].seed),
            "X-Model": printable(view.results[index].model).encode("ascii", "replace").decode(),
        }
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if request.method == "GET":
            headers |= _kept_by_clients(request, view)
        return cls(206 if asked else 200, headers, start, end)


def _is_known(if_none_match: str, tag: str) -> bool:
    """Return whether a client has the song with this tag already (RFC 9110, weak comparison)."""
    known = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return tag in known or known == ["*"]


def _kept_by_clients(request: Request, view: JobView) -> dict[str, str]:
    """A song never changes, but it expires. JSON and archives have the same address."""
    expires_at = (view.completed_at or 0.0) + service_of(request).settings.jobs.result_ttl_s
    left_s = max(0, int(expires_at - time.time()))
    return {"Cache-Control": f"private, max-age={left_s}, immutable", "Vary": "Accept, Origin"}


def file_name(view: JobView, index: int | None = None) -> str:
    """What a song is called where it is downloaded; with its number among several."""
    number = "" if index is None else f"_{index}"
    return f"generated_music_{int(view.completed_at or time.time())}{number}.{file_extension(view.audio_format)}"
