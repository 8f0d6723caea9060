"""Exception to HTTP answer, in one table. Every error body is RFC 9457 `application/problem+json`.

HttpProblem                  an answer already: status, code and sentence; the body parsers raise it
BackendError                 the deployments behind the ingress did not do their part
├── BackendUnavailableError    they cannot be reached just now; ask again
└── BackendFailedError         they failed in a way nobody foresaw; the log says how
"""

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from acestep_engine.errors import AudioError, AudioTooLargeError, EngineError, ParameterError, RequestError
from deployments.messages import (
    JobEndedError,
    JobFailedError,
    JobNotEndedError,
    JobNotFoundError,
    JobView,
    KeyConflictError,
    LoraNotFoundError,
    LoraRefusedError,
    ModelUnavailableError,
    QueueFullError,
    ServiceError,
    SongNotFoundError,
    SourceGoneError,
    SourceOfOtherModelError,
    StorageError,
)
from serve_app.fields import FieldProblem, InvalidRequestError
from serve_app.printable import printable

logger = logging.getLogger("ray.serve.acestep")  # Ray Serve's handlers write it

PROBLEM_MEDIA_TYPE = "application/problem+json"
RETRY_SOON_S = 2
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class BackendError(Exception):
    """The deployments behind the ingress did not do their part."""


class BackendUnavailableError(BackendError):
    """They cannot be reached just now."""


class BackendFailedError(BackendError):
    """They raised what nobody foresaw."""


class HttpProblem(Exception):
    """An error as it is answered. `detail` is a sentence for a person, `code` a stable word for a program.

    `request_id` is that of the job which the error is about, where it is not that of the HTTP request.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: tuple[FieldProblem, ...] = (),
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(status, code, detail, errors, headers, request_id)
        self.status, self.code, self.detail = status, code, detail
        self.errors, self.headers, self.request_id = errors, dict(headers or {}), request_id


def too_large(what: str, limit_bytes: int) -> HttpProblem:
    return HttpProblem(413, "too_large", f"{what} is over the limit of {limit_bytes / 2**20:g} MiB")


# The nearest class wins. Sentences that need the exception's fields are made in `problem_of`.
TABLE: Mapping[type[Exception], tuple[int, str]] = {
    InvalidRequestError: (422, "invalid_request"),
    ParameterError: (422, "invalid_request"),
    AudioError: (422, "unreadable_audio"),
    AudioTooLargeError: (413, "audio_too_large"),
    RequestError: (422, "invalid_request"),
    EngineError: (500, "generation_failed"),
    JobNotFoundError: (404, "job_not_found"),
    SongNotFoundError: (404, "song_not_found"),
    SourceGoneError: (410, "source_gone"),
    SourceOfOtherModelError: (409, "source_of_other_model"),
    JobNotEndedError: (400, "job_not_ended"),  # what the users' clients read; Retry-After says when to come back
    JobFailedError: (409, "job_failed"),
    JobEndedError: (409, "job_ended"),
    QueueFullError: (429, "queue_full"),
    KeyConflictError: (422, "idempotency_key_reused"),
    LoraNotFoundError: (404, "lora_not_found"),
    LoraRefusedError: (422, "lora_refused"),
    ModelUnavailableError: (503, "model_unavailable"),
    StorageError: (503, "storage_unavailable"),
    ServiceError: (500, "internal_error"),
    BackendUnavailableError: (503, "service_unavailable"),
    BackendFailedError: (500, "internal_error"),
    ClientDisconnect: (400, "client_disconnected"),
}

# How a job's own end is answered by a route that waited for it; everything else is a 500 with the job's code.
JOB_ERROR_STATUS: Mapping[str, int] = {
    "cancelled": 409,
    "expired": 410,
    "invalid_request": 422,
    "unreadable_audio": 422,
    "audio_too_large": 413,
    "timeout": 504,
    "storage": 503,
    "model_unavailable": 503,
    "adapter_changed": 409,
    "source_of_other_model": 409,
    "adapter_unusable": 422,
}

FIXED_DETAILS: Mapping[str, str] = {
    "job_not_found": "there is no job with this id: it is unknown, malformed or long past",
    "lora_not_found": "no adapter is registered under this name; GET /loras lists them",
    "source_gone": "what the song was to begin from is unknown or no longer kept",
    "source_of_other_model": "another model made the song to begin from: its latents mean nothing to the current one; "
    "send its audio instead",
    "idempotency_key_reused": "this Idempotency-Key belongs to a job that was asked for in other words: send a new key",
    "internal_error": "something failed inside the service; its log has the details under this request_id",
    "generation_failed": "the music could not be generated; the service's log has the details under this request_id",
    "service_unavailable": "the service is starting or restarting; ask again in a moment",
    "storage_unavailable": "nothing was accepted: the job store cannot be written just now, or the disk has too little "
    "room left (jobs.disk_reserve); ask again in a moment",
    "model_unavailable": "the model is not configured or could not be loaded; the service's log says why",
    "client_disconnected": "the client left before its request was complete",
}


def problem_of(error: Exception) -> HttpProblem:
    """The answer to an exception, from the table; an unknown one is an internal error."""
    if isinstance(error, HttpProblem):
        return error
    status, code = next((TABLE[base] for base in type(error).__mro__ if base in TABLE), (500, "internal_error"))
    headers = {"Retry-After": str(RETRY_SOON_S)} if status in (503, 429) or code == "job_not_ended" else {}
    errors: tuple[FieldProblem, ...] = ()
    match error:
        case InvalidRequestError():
            errors = error.problems
            detail = "; ".join(f"{one.field}: {one.problem}" for one in errors)
        case ParameterError():
            errors = (FieldProblem(error.field, printable(error.problem, 300)),)
            detail = f"{error.field}: {printable(error.problem, 300)}"
        case RequestError():
            detail = printable(str(error), 300)
        case SongNotFoundError():
            detail = f"there is no song {error.index} in this job: it has {error.songs}, counted from 0"
        case JobNotEndedError():
            detail = f"the job is {error.view.status}; its result is there once /status says completed"
        case JobFailedError():
            status, code = (410, "job_expired") if error.view.outcome == "expired" else (status, code)
            detail = f"the job has no result: {job_error(error.view)}"
        case JobEndedError():
            detail = f"the job is {error.view.outcome or error.view.status}; it cannot be cancelled any more"
        case LoraRefusedError():
            detail = f"the adapter cannot be registered: {printable(str(error), 1_000)}"
        case QueueFullError():
            detail = f"{error.waiting} jobs wait, and the queue holds {error.limit}; ask again later"
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        case _:
            detail = FIXED_DETAILS[code]
    return HttpProblem(status, code, detail, errors, headers)


def job_error(view: JobView) -> str:
    """Why a job has no music, on one line."""
    return printable(view.error or view.outcome or view.status, 500)


def job_problem(view: JobView) -> HttpProblem:
    """The answer of a route that waited for a job which then failed or was cancelled."""
    code = view.error_code or view.outcome or "generation_failed"
    code = "generation_failed" if code == "failed" else code
    detail = f"no music was made: {job_error(view)}"
    return HttpProblem(JOB_ERROR_STATUS.get(code, 500), code, detail, request_id=view.request_id)


def wait_ended(view: JobView) -> HttpProblem:
    """The answer of a route that promises audio and can wait no longer, although the job goes on."""
    detail = f"the song is not made yet; its job goes on: ask /status/{view.request_id}, then /result/{view.request_id}"
    headers = {"Retry-After": str(RETRY_SOON_S)}
    return HttpProblem(504, "still_processing", detail, headers=headers, request_id=view.request_id)


def problem_body(problem: HttpProblem, request_id: str) -> dict[str, Any]:
    """The JSON of an error: RFC 9457's members, and those that the users' clients read."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "success": False,
        "error_message": problem.detail,
        "code": problem.code,
        "request_id": request_id,
    }
    if problem.errors:
        body["errors"] = [{"field": one.field, "problem": one.problem} for one in problem.errors]
    return body


def request_id_of(request: Request) -> str:
    """The id of this HTTP request; a job that it creates has the same one."""
    request_id: str = request.state.request_id
    return request_id


def problem_response(request: Request, problem: HttpProblem) -> JSONResponse:
    body = problem_body(problem, problem.request_id or request_id_of(request))
    return JSONResponse(body, problem.status, problem.headers, PROBLEM_MEDIA_TYPE)


def allowed_methods(request: Request) -> str:
    """The methods that the routes of a request's path take, as `Allow` lists them."""
    routes = request.app.routes
    methods = [
        method
        for method in METHODS
        if any(route.matches(dict(request.scope) | {"method": method})[0] is Match.FULL for route in routes)
    ]
    if "GET" in methods:
        methods.insert(1, "HEAD")
    return ", ".join(methods)


async def _answer_known(request: Request, error: Exception) -> JSONResponse:
    problem = problem_of(error)
    if problem.status >= 500:
        cause = printable(f"{type(error).__name__}: {error}", 500)
        logger.error("%s %s: %s", request_id_of(request), problem.code, cause)
    return problem_response(request, problem)


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own refusals: unknown routes and methods."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    codes = {404: "not_found", 405: "method_not_allowed"}
    details = {404: "there is no such route; /docs lists them", 405: "this route does not take this method; see Allow"}
    detail = details.get(status, HTTPStatus(status).phrase)
    headers = {"Allow": allowed_methods(request)} if status == 405 else error.headers
    problem = HttpProblem(status, codes.get(status, "http_error"), detail, headers=headers)
    return problem_response(request, problem)


async def _answer_unknown(request: Request, error: Exception) -> JSONResponse:
    """A mistake of ours. Starlette raises it again after this answer, so that the server logs its traceback."""
    logger.error("%s unhandled %s", request_id_of(request), type(error).__name__, exc_info=error)
    return problem_response(request, problem_of(error))


def install(app: FastAPI) -> None:
    """Answer every exception of the app with a problem body."""
    known_errors: list[type[Exception]] = [HttpProblem, *TABLE]
    for known in known_errors:
        app.add_exception_handler(known, _answer_known)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unknown)
