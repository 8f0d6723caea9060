"""From an HTTP request to an accepted job, and on to its end: the one way that every generating route takes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import anyio.to_thread
from fastapi import Request

from acestep_engine.params import AudioFormat
from deployments.messages import AudioFile, JobEndedError, JobView, ServiceError, Submission, Upload
from serve_app.bodies import Body, read_body
from serve_app.errors import BackendError, BackendUnavailableError, job_problem, request_id_of
from serve_app.fields import invalid
from serve_app.schemas import GenerateRequest, parse_generate
from serve_app.service import Service, service_of
from serve_app.uploads import MIB, checked_source, decode_base64, read_confined

logger = logging.getLogger("ray.serve.acestep")  # Ray Serve's handlers write it

AUDIO_FILE = "audio_file"
AUDIO_BASE64 = "audio_base64"


@dataclass(frozen=True)
class Intake:
    """How one route's requests differ from another's."""

    save_file: bool = False  # also write the song under ACE_OUTPUT_DIR
    takes_upload: bool = False  # needs one of `audio_file` and `audio_base64`, and makes audio2audio of it
    audio_format: AudioFormat | None = None  # promised by the route's name, whatever the request says
    defaults: Mapping[str, object] = field(default_factory=dict)  # where they differ from the request model's
    renamed: Mapping[str, str] = field(default_factory=dict)  # old names of fields


def _body_limit_bytes(service: Service, intake: Intake) -> int:
    limits = service.settings.limits
    upload_mb = max(limits.upload_mb, limits.base64_mb) if intake.takes_upload else 0
    return (limits.json_mb + upload_mb) * MIB


def _request_of(body: Body, intake: Intake) -> GenerateRequest:
    fields = {**body.fields}
    for old, new in intake.renamed.items():
        if old in fields:
            if new in fields:
                raise invalid(old, f"is another name of {new}: send one of them")
            fields[new] = fields.pop(old)
    if intake.takes_upload:
        fields.pop(AUDIO_BASE64, None)
    decided: dict[str, object] = {"audio2audio_enable": True} if intake.takes_upload else {}
    if intake.audio_format is not None:
        decided["format"] = intake.audio_format
    request = parse_generate(fields, from_form=body.from_form)
    missing = {name: value for name, value in intake.defaults.items() if name not in request.model_fields_set}
    return request.model_copy(update=missing | decided)


async def _uploaded(service: Service, body: Body) -> Upload:
    """The audio that came with the request. Raises InvalidRequestError, AudioError, AudioTooLargeError, HttpProblem."""
    limits = service.settings.limits
    if AUDIO_FILE in body.files and AUDIO_BASE64 in body.fields:
        raise invalid(AUDIO_FILE, f"comes with {AUDIO_BASE64}: send one of them")
    if AUDIO_FILE in body.files:
        name, data = AUDIO_FILE, body.files[AUDIO_FILE]
    elif AUDIO_BASE64 in body.fields:
        name = AUDIO_BASE64
        decode = partial(decode_base64, name, body.fields[name], limits.base64_mb * MIB)
        data = await anyio.to_thread.run_sync(decode)
    else:
        raise invalid(AUDIO_FILE, f"is missing: this route needs an audio file, as this part or in {AUDIO_BASE64}")
    if not data:
        raise invalid(name, "is empty: send an audio file")
    return await _checked(service, name, data)


async def _named(service: Service, name: str) -> Upload:
    """The audio that `ref_audio_input` names. Raises as `_uploaded` does."""
    settings = service.settings
    read = partial(read_confined, settings.audio_root, name, settings.limits.upload_mb * MIB)
    data = await anyio.to_thread.run_sync(read)
    return await _checked(service, "ref_audio_input", data)


async def _checked(service: Service, field_name: str, data: bytes) -> Upload:
    check = partial(checked_source, field_name, data, service.settings.limits)
    return await anyio.to_thread.run_sync(check, limiter=service.decoding)


async def read_submission(request: Request, intake: Intake) -> Submission:
    """Read, validate and decide everything about a request. Nothing is accepted yet."""
    service = service_of(request)
    limits = service.settings.limits
    file_fields = frozenset((AUDIO_FILE,) if intake.takes_upload else ())
    body = await read_body(request, _body_limit_bytes(service, intake), limits.body_timeout_s, file_fields)
    asked = _request_of(body, intake)
    if intake.takes_upload:
        if asked.ref_audio_input is not None:
            raise invalid("ref_audio_input", "names a file beside the uploaded one: leave it out")
        source: Upload | None = await _uploaded(service, body)
    else:
        source = await _named(service, asked.ref_audio_input) if asked.ref_audio_input is not None else None
    resolved = asked.resolve(has_source=source is not None)
    return Submission(
        request_id=request_id_of(request),
        songs=resolved.songs,
        audio_format=resolved.audio_format,
        request_json=resolved.request_json,
        source=source if resolved.songs[0].task == "audio2audio" else None,
        save_file=intake.save_file,
        priority=asked.priority,
    )


async def submit(request: Request, intake: Intake) -> JobView:
    """Accept a job that belongs to nobody's connection."""
    service = service_of(request)
    submission = await read_submission(request, intake)
    return await asyncio.shield(service.spawn(service.job_manager.submit(submission)))


async def submit_and_wait(request: Request, intake: Intake, *, wants_audio: bool) -> JobView | AudioFile:
    """Accept a job and wait for its end, or for `sync_wait_s`. It is cancelled if the client leaves before.

    With `wants_audio`, a job that completed is answered as its AudioFile. Raises HttpProblem where the job ended
    without music.
    """
    service = service_of(request)
    submission = await read_submission(request, intake)
    answers = service.job_manager.submit_and_wait(submission, service.settings.jobs.sync_wait_s, wants_audio)
    accepting = service.spawn(_accepted(answers))
    try:
        accepted = await asyncio.shield(accepting)
        last = await asyncio.shield(service.spawn(_last(accepted, answers)))
    except asyncio.CancelledError:
        service.spawn(_abandon(service, accepting))
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


async def _abandon(service: Service, accepting: "asyncio.Task[JobView]") -> None:
    request_id = "a job"
    try:
        request_id = (await accepting).request_id
        await service.job_manager.cancel(request_id)
        logger.info("%s the client left; its job is cancelled", request_id)
    except JobEndedError:
        pass
    except (ServiceError, BackendError) as error:
        logger.warning("%s the client left, but its job could not be cancelled: %s", request_id, type(error).__name__)
