"""From an HTTP request to an accepted job, and on to its end: the one way that every generating route takes."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from fastapi import Request

from acestep_engine.params import SOURCE_TASKS, AudioFormat, Task
from deployments.callbacks import CallbackError, check_url
from deployments.messages import (
    AudioFile,
    JobEndedError,
    JobView,
    KeyConflictError,
    Resend,
    ServiceError,
    Submission,
)
from serve_app.accept import wanted_format
from serve_app.bodies import AUDIO_BASE64, read_body
from serve_app.bounds import BodyRoom
from serve_app.errors import BackendError, BackendUnavailableError, job_problem, request_id_of, wait_ended
from serve_app.fields import FieldProblem, InvalidRequestError, invalid
from serve_app.idempotency import digest_of, key_of
from serve_app.loras import find_adapter
from serve_app.names import ALIASES
from serve_app.request_fields import translate
from serve_app.resolve import RouteRules, resolve, task_of
from serve_app.schemas import GenerateRequest, parse_generate
from serve_app.service import Service, body_limits, service_of
from serve_app.sources import AUDIO_FILE, FILE_FIELDS, NamedSource, digest_of_file, find_source, named_source

logger = logging.getLogger("ray.serve.acestep")  # Ray Serve's handlers write it

QUERY_IS_WRONG_FOR = {*GenerateRequest.model_fields, *ALIASES, AUDIO_BASE64} - {"format"}
FOLLOW_S = 10.0  # how long one question for the end of a job waits


@dataclass(frozen=True)
class Intake:
    """How one route's requests differ from another's."""

    save_file: bool = False  # also write the songs under ACE_OUTPUT_DIR
    usual_task: Task = "text2music"  # where the request names none
    audio_format: AudioFormat | None = None  # promised by the route's name, whatever the request says
    usual_format: AudioFormat = "wav"  # where neither the request nor its Accept names one
    defaults: Mapping[str, object] = field(default_factory=dict)  # where they differ from the request model's
    ends_with_client: bool = False  # a client that leaves cancels its song: nothing else would fetch it


@dataclass(frozen=True)
class Order:
    """A request, complete.

    With `stream`, its answer is to begin as soon as there is any audio. `ignored` are the fields that mean nothing.
    `ends_with_client` says that the job is cancelled if its client leaves before the end.
    """

    submission: Submission | Resend
    stream: bool
    ignored: tuple[str, ...]
    ends_with_client: bool


async def read_order(request: Request, intake: Intake, *, answers_audio: bool = False) -> Order:
    """Read, validate and decide everything about a request. Nothing is accepted yet.

    With `answers_audio`, the answer is the audio of one song: Accept may choose its format, and it may be streamed.
    """
    service = service_of(request)
    _check_query(request)
    with service.bodies.enter() as room:
        return await _read_order(request, service, intake, room, answers_audio)


async def _read_order(request: Request, service: Service, intake: Intake, room: BodyRoom, answers_audio: bool) -> Order:
    limits = service.settings.limits
    key = key_of(request)
    body = await read_body(request, body_limits(service.settings, with_audio=True), room, AUDIO_FILE)
    named = translate({name: value for name, value in body.fields.items() if name != AUDIO_BASE64})
    asked = parse_generate(named.fields, named.sent_as)
    if asked.stream and not answers_audio:
        raise invalid("stream", "is for answers of one song's audio: here, GET /stream/{request_id} once it is queued")
    asked, unread = _without_unread_sources(asked, intake)
    if intake.audio_format is not None:
        asked = asked.model_copy(update={"format": intake.audio_format})
    source = await named_source(service, body, asked)
    ignored = (*named.ignored, *unread)
    digest = ""
    if key is not None:
        digest = digest_of(request, asked, None if source is None else await source.digest())
        if (resend := await _resend(service, request, key, digest, asked, source)) is not None:
            return Order(resend, asked.stream, ignored, ends_with_client=False)
    _check_callback(service, asked)
    found = None if source is None else await find_source(service, source)
    defaults = _defaults(request, intake, answers_audio and "format" not in asked.model_fields_set)
    rules = RouteRules(limits.batch_size, intake.usual_task, defaults)
    adapter = await find_adapter(service, asked, found.song if found is not None else None)
    resolved = resolve(asked, found, rules, adapter)
    needs_source = resolved.songs[0].task in SOURCE_TASKS
    submission = Submission(
        request_id=request_id_of(request),
        songs=resolved.songs,
        audio_format=resolved.audio_format,
        request_json=resolved.request_json,
        source=found.source if found is not None and needs_source else None,
        save_file=intake.save_file,
        priority=asked.priority,
        key=key or uuid.uuid4().hex,
        request_digest=digest,
        callback_url=asked.callback_url,
    )
    return Order(submission, asked.stream, ignored, intake.ends_with_client and key is None)


async def _resend(
    service: Service, request: Request, key: str, digest: str, asked: GenerateRequest, source: NamedSource | None
) -> Resend | None:
    """Return what stands for a request whose key has a job already; None if it has none.

    It is answered as it was then, even if its source, its adapter or its callback's host would be refused by now.
    Raises KeyConflictError where the job was asked for in other words.
    """
    known = await service.job_manager.digest_of_key(key)
    if known is None:
        return None
    if known != digest:
        # Earlier versions also counted the content of a file that a request names.
        content = None if source is None else await digest_of_file(service, source)
        if content is None or known != digest_of(request, asked, content):
            raise KeyConflictError(key)
    return Resend(key, known)


def _check_query(request: Request) -> None:
    """Refuse fields in the address, which are not read there. `format` is another one there, that of the answer."""
    misplaced = [name for name in request.query_params if name in QUERY_IS_WRONG_FOR]
    if misplaced:
        problem = "stands in the address: send it in the body, as JSON or as a form"
        raise InvalidRequestError(*(FieldProblem(name, problem) for name in misplaced))


def _without_unread_sources(asked: GenerateRequest, intake: Intake) -> tuple[GenerateRequest, tuple[str, ...]]:
    """Drop the files that a song of words names, as the published pipeline does while audio2audio is not enabled."""
    if task_of(asked, intake.usual_task) != "text2music":
        return asked, ()
    unread = {name: None for name in FILE_FIELDS if getattr(asked, name) is not None}
    return asked.model_copy(update=unread), tuple(unread)


def _defaults(request: Request, intake: Intake, answers_audio: bool) -> Mapping[str, object]:
    """Return the values of fields that a request does not give. Raises HttpProblem 406 for unknown audio types."""
    audio_format = wanted_format(request, intake.usual_format) if answers_audio else intake.usual_format
    return {"format": audio_format, **intake.defaults}


def _check_callback(service: Service, asked: GenerateRequest) -> None:
    if asked.callback_url is not None:
        try:
            check_url(asked.callback_url, service.settings.callbacks.rules)
        except CallbackError as error:
            raise invalid("callback_url", str(error)) from None


async def submit(service: Service, order: Order) -> JobView:
    """Accept a job that belongs to nobody's connection."""
    return await asyncio.shield(service.spawn(service.job_manager.submit(order.submission)))


async def submit_and_wait(service: Service, order: Order, *, wants_audio: bool) -> JobView | AudioFile:
    """Accept a job and wait for its end, or for `sync_wait_s`.

    With `wants_audio`, a job that completed is answered as its AudioFile. Raises HttpProblem where the job ended
    without music.
    """
    answers = service.job_manager.submit_and_wait(order.submission, service.settings.jobs.sync_wait_s, wants_audio)
    accepting = service.spawn(_accepted(answers))
    try:
        accepted = await asyncio.shield(accepting)
        last = await asyncio.shield(service.spawn(_last(accepted, answers)))
    except asyncio.CancelledError:
        if order.ends_with_client:
            service.spawn(abandon(service, accepting))
        raise
    view = last.view if isinstance(last, AudioFile) else last
    if view.ended and view.outcome != "completed":  # a job that is sent again may have expired
        raise job_problem(view)
    return last


async def wait_for_end(service: Service, order: Order, view: JobView) -> None:
    """Wait until an accepted job has completed, however long it takes.

    Raises HttpProblem where it ends without music, and 504 where its end cannot be waited for.
    """
    try:
        after, over = 0, False
        while not over:
            batch = await service.job_manager.events(view.request_id, after, FOLLOW_S)
            after, over = batch.events[-1].event_id if batch.events else after, batch.over
        ended = await service.job_manager.status(view.request_id)
    except BackendUnavailableError:
        raise wait_ended(view) from None
    except asyncio.CancelledError:
        if order.ends_with_client:
            service.spawn(cancel_without_client(service, view.request_id))
        raise
    if ended.status == "failed":
        raise job_problem(ended)


async def _accepted(answers: AsyncIterator[JobView | AudioFile]) -> JobView:
    view = await anext(answers)
    assert isinstance(view, JobView)  # the first answer is no audio yet
    return view


async def _last(accepted: JobView, answers: AsyncIterator[JobView | AudioFile]) -> JobView | AudioFile:
    last: JobView | AudioFile = accepted
    try:
        async for answer in answers:
            last = answer
    except BackendUnavailableError:
        pass  # the job is accepted and kept; its client is sent to /status for the rest
    return last


async def abandon(service: Service, accepting: "asyncio.Task[JobView]") -> None:
    """Cancel a job whose client has left, once it is accepted."""
    try:
        view = await accepting
    except (ServiceError, BackendError):
        return  # there is no job
    await cancel_without_client(service, view.request_id)


async def cancel_without_client(service: Service, request_id: str) -> None:
    """Cancel a job whose client has left."""
    try:
        await service.job_manager.cancel(request_id, client_left=True)
        logger.info("%s the client left; its job is cancelled", request_id)
    except JobEndedError:
        pass
    except (ServiceError, BackendError) as error:
        logger.warning("%s the client left, but its job could not be cancelled: %s", request_id, type(error).__name__)
