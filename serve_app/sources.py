"""Where the source of a request comes from: with it, from the operator's folder, from an earlier upload or job."""

import hashlib
import re
from dataclasses import dataclass
from functools import partial

import anyio.to_thread
import numpy as np

from acestep_engine.params import (
    MAX_LATENT_FRAMES,
    GenerationParams,
    decoded_frames,
    encoded_frames,
    latent_duration_s,
)
from deployments.messages import (
    ByteArray,
    EarlierSong,
    JobFailedError,
    JobNotEndedError,
    JobNotFoundError,
    SongNotFoundError,
    Source,
    SourceGoneError,
)
from serve_app.bodies import AUDIO_BASE64, Body
from serve_app.errors import RETRY_SOON_S, HttpProblem, job_error
from serve_app.fields import FieldProblem, InvalidRequestError, invalid
from serve_app.ids import known_form
from serve_app.schemas import GenerateRequest
from serve_app.service import Service
from serve_app.uploads import MIB, checked_upload, decode_base64, read_confined

AUDIO_FILE = "audio_file"
SENT_FIELDS = (AUDIO_FILE, AUDIO_BASE64)
FILE_FIELDS = ("ref_audio_input", "src_audio")
JOB_FIELD = "source_request_id"

UPLOAD_NAME = re.compile(r"upload:([0-9a-f]{64})")


@dataclass(frozen=True)
class FoundSource:
    """What songs may begin from. `field` is where the request names it, `name` what it is called in a later request;
    an earlier song has none. `frames` are those of its latents.
    """

    field: str
    source: Source
    frames: int
    name: str | None = None
    song: GenerationParams | None = None  # what an earlier song was asked for
    is_kept: bool = True  # its latents are; what it was asked for is known longer

    @property
    def duration_s(self) -> float:
        return latent_duration_s(self.frames)


@dataclass(frozen=True)
class NamedSource:
    """A source as a request brings or names it. Whether it is there, and what is in it, is not known yet.

    `audio` came with the request. Else `name` is a file's, an upload's or a job's, as `field` has it, and `index` says
    which song of that job.
    """

    field: str
    audio: ByteArray | None = None
    name: str = ""
    index: int = 0

    @property
    def upload_digest(self) -> str | None:
        """The digest of the earlier upload that it names."""
        found = UPLOAD_NAME.fullmatch(self.name)
        return None if found is None else found[1]

    @property
    def is_file(self) -> bool:
        """Whether it names a file of the operator's folder."""
        return self.audio is None and self.field != JOB_FIELD and self.upload_digest is None

    async def digest(self) -> str | None:
        """Return what tells this source from others that a request of the same words brings; None for a file."""
        if self.audio is not None:
            return await _sha256(self.audio)
        if self.field == JOB_FIELD:
            return f"{self.name}/{self.index}"
        return self.upload_digest


async def _sha256(data: ByteArray) -> str:
    return await anyio.to_thread.run_sync(lambda: hashlib.sha256(data.data).hexdigest())


async def named_source(service: Service, body: Body, asked: GenerateRequest) -> NamedSource | None:
    """Return the source that a request brings or names; None if it has none.

    Raises InvalidRequestError, and HttpProblem 413 for base64 text over its limit.
    """
    sent = body.fields | body.files
    given = {name: sent[name] for name in SENT_FIELDS if sent.get(name) not in (None, "")}
    given |= {name: value for name in (*FILE_FIELDS, JOB_FIELD) if (value := getattr(asked, name)) is not None}
    if asked.source_index and asked.source_request_id is None:
        raise invalid("source_index", f"says which song of a job, but there is no {JOB_FIELD}")
    if not given:
        return None
    (field, value), *others = given.items()
    if others:
        raise invalid(others[0][0], f"comes with {field}: a song has one source, send one of them")
    if field in SENT_FIELDS:
        return NamedSource(field, audio=await _sent(service, field, value))
    return NamedSource(field, name=str(value), index=asked.source_index)


async def find_source(service: Service, source: NamedSource) -> FoundSource:
    """Return a source, checked.

    Raises InvalidRequestError, AudioError, AudioTooLargeError, and HttpProblem where it is not there.
    """
    if source.audio is not None:
        return await _checked(service, source.field, source.audio)
    if source.field == JOB_FIELD:
        return await _earlier_song(service, source.name, source.index)
    if source.upload_digest is not None:
        audio = await _uploaded_before(service, source.field, source.upload_digest)
        return await _checked(service, source.field, audio)
    return await _checked(service, source.field, await _file(service, source), name=source.name)


async def digest_of_file(service: Service, source: NamedSource) -> str | None:
    """Return the digest of the file that a request names; None if it names none, or if the file cannot be read."""
    try:
        return await _sha256(await _file(service, source)) if source.is_file else None
    except (InvalidRequestError, HttpProblem):
        return None


async def _file(service: Service, source: NamedSource) -> ByteArray:
    """The content of a file of the operator's folder. Raises InvalidRequestError, and HttpProblem for a large file."""
    settings = service.settings
    read = partial(read_confined, source.field, settings.audio_root, source.name, settings.limits.upload_mb * MIB)
    return _as_array(await anyio.to_thread.run_sync(read))


async def _sent(service: Service, field: str, value: object) -> ByteArray:
    """The audio that came with the request."""
    data: bytes | bytearray
    if isinstance(value, bytes):
        data = value
    else:
        limit_bytes = service.settings.limits.base64_mb * MIB
        decode = partial(decode_base64, field, value, limit_bytes)
        data = await anyio.to_thread.run_sync(decode, limiter=service.decoding)
    if not data:
        raise invalid(field, "is empty: send an audio file")
    return _as_array(data)


async def _uploaded_before(service: Service, field: str, digest: str) -> ByteArray:
    try:
        return await service.job_manager.upload(digest)
    except SourceGoneError:
        raise _problem(404, "source_not_found", field, "there is no such upload: it is unknown or long past") from None


async def _checked(service: Service, field: str, data: ByteArray, name: str | None = None) -> FoundSource:
    check = partial(checked_upload, field, data, service.settings.limits)
    upload, info = await anyio.to_thread.run_sync(check, limiter=service.decoding)
    frames = min(encoded_frames(info.frames, info.sample_rate_hz), MAX_LATENT_FRAMES)
    return FoundSource(field, upload, frames, name or f"upload:{upload.digest}")


async def _earlier_song(service: Service, request_id: str, index: int) -> FoundSource:
    try:
        song = await service.job_manager.source_song(known_form(request_id), index)
    except JobNotFoundError:
        detail = "there is no job with this id: it is unknown, malformed or long past"
        raise _problem(404, "job_not_found", JOB_FIELD, detail) from None
    except JobNotEndedError as error:
        detail = f"that job is {error.view.status}; its song is a source once it has completed"
        raise _problem(409, "source_not_completed", JOB_FIELD, detail, retry=True) from None
    except JobFailedError as error:
        raise _problem(409, "source_failed", JOB_FIELD, f"that job has no song: {job_error(error.view)}") from None
    except SongNotFoundError as error:
        raise invalid("source_index", f"{error.index} is no song of that job: it has {error.songs}, from 0") from None
    frames = decoded_frames(song.duration_s)
    return FoundSource(JOB_FIELD, EarlierSong(request_id, index), frames, song=song.params, is_kept=song.is_kept)


def source_gone(field: str) -> HttpProblem:
    """The answer where a source was there and is no longer."""
    return _problem(410, "source_gone", field, "the song is no longer kept")


def _problem(status: int, code: str, field: str, problem: str, *, retry: bool = False) -> HttpProblem:
    headers = {"Retry-After": str(RETRY_SOON_S)} if retry else {}
    return HttpProblem(status, code, f"{field}: {problem}", (FieldProblem(field, problem),), headers)


def _as_array(data: bytes | bytearray) -> ByteArray:
    return np.frombuffer(data, dtype=np.uint8)
