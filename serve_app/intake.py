"""From an HTTP request to an accepted job, and on to its end: the one way that every generating route takes."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from fastapi import Request

from acestep_engine.params import SOURCE_TASKS, AudioFormat, Task
from deployments.callbacks import CallbackError, check_url
from deployments.messages import AudioFile, JobEndedError, JobView, ServiceError, Submission
from serve_app.bodies import Body, read_body
from serve_app.errors import BackendError, BackendUnavailableError, job_problem, request_id_of
from serve_app.fields import invalid
from serve_app.idempotency import digest_of, key_of
from serve_app.loras import find_adapter
from serve_app.resolve import RouteRules, resolve
from serve_app.schemas import GenerateRequest, parse_generate
from serve_app.service import Service, service_of
from serve_app.sources import AUDIO_BASE64, AUDIO_FILE, find_source, source_name
from serve_app.uploads import MIB

logger = logging.getLogger("ray.serve.acestep")  # Ray Serve's handlers write it


@dataclass(frozen=True)
class Intake:
    """How one route's requests differ from another's."""

    save_file: bool = False  # also write the songs under ACE_OUTPUT_DIR
    usual_task: Task = "text2music"  # where the request names none
    audio_format: AudioFormat | None = None  # promised by the route's name, whatever the request says
    defaults: Mapping[str, object] = field(default_factory=dict)  # where they differ from the request model's
    renamed: Mapping[str, str] = field(default_factory=dict)  # old names of fields


def _request_of(body: Body, intake: Intake) -> GenerateRequest:
    fields = {name: value for name, value in body.fields.items() if name != AUDIO_BASE64}
    for old, new in intake.renamed.items():
        if old in fields:
            if new in fields:
                raise invalid(old, f"is another name of {new}: send one of them")
            fields[new] = fields.pop(old)
    request = parse_generate(fields, from_form=body.from_form)
    return request if intake.audio_format is None else request.model_copy(update={"format": intake.audio_format})


@dataclass(frozen=True)
class Order:
    """A request, complete. With `stream`, its answer is to begin as soon as there is any audio."""

    submission: Submission
    stream: bool


async def read_order(request: Request, intake: Intake, *, can_stream: bool = False) -> Order:
    """Read, validate and decide everything about a request. Nothing is accepted yet."""
    service = service_of(request)
    limits = service.settings.limits
    key = key_of(request)
    limit_bytes = (limits.json_mb + max(limits.upload_mb, limits.base64_mb)) * MIB
    body = await read_body(request, limit_bytes, limits.body_timeout_s, frozenset((AUDIO_FILE,)))
    asked = _request_of(body, intake)
    if asked.stream and not can_stream:
        raise invalid("stream", "is for answers of one song's audio: here, GET /stream/{request_id} once it is queued")
    _check_callback(service, asked)
    found = await find_source(service, body, asked)
    rules = RouteRules(limits.batch_size, intake.usual_task, intake.defaults)
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
        request_digest="" if key is None else digest_of(request, asked, source_name(found)),
        callback_url=asked.callback_url,
    )
    return Order(submission, asked.stream)


def _check_callback(service: Service, asked: GenerateRequest) -> None:
    if asked.callback_url is not None:
        try:
            check_url(asked.callback_url, service.settings.callbacks.rules)
        except CallbackError as error:
            raise invalid("callback_url", str(error)) from None


async def submit(request: Request, intake: Intake) -> JobView:
    """Accept a job that belongs to nobody's connection."""
    service = service_of(request)
    order = await read_order(request, intake)
    return await asyncio.shield(service.spawn(service.job_manager.submit(order.submission)))


async def submit_and_wait(request: Request, submission: Submission, *, wants_audio: bool) -> JobView | AudioFile:
    """Accept a job and wait for its end, or for `sync_wait_s`. It is cancelled if the client leaves before.

    One with an Idempotency-Key is not: its client may come back. With `wants_audio`, a job that completed is answered
    as its AudioFile. Raises HttpProblem where the job ended without music.
    """
    service = service_of(request)
    answers = service.job_manager.submit_and_wait(submission, service.settings.jobs.sync_wait_s, wants_audio)
    accepting = service.spawn(_accepted(answers))
    try:
        accepted = await asyncio.shield(accepting)
        last = await asyncio.shield(service.spawn(_last(accepted, answers)))
    except asyncio.CancelledError:
        if key_of(request) is None:
            service.spawn(abandon(service, accepting))
        raise
    view = last.view if isinstance(last, AudioFile) else last
    if view.status == "failed":
        raise job_problem(view)
    return last


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
    """Cancel a job whose client has left."""
    request_id = "a job"
    try:
        request_id = (await accepting).request_id
        await service.job_manager.cancel(request_id)
        logger.info("%s the client left; its job is cancelled", request_id)
    except JobEndedError:
        pass
    except (ServiceError, BackendError) as error:
        logger.warning("%s the client left, but its job could not be cancelled: %s", request_id, type(error).__name__)
