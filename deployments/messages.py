"""What crosses a deployment handle: small frozen dataclasses, and large arrays by reference.

Bytes travel as one-dimensional uint8 arrays: numpy crosses Ray's object store without a copy, `bytes` does not.
"""

import uuid
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from acestep_engine.params import AudioFormat, GenerationParams, Progress, Task, Timings
from acestep_engine.requests import Latents

JOB_MANAGER = "JobManager"  # its name among the deployments

ByteArray = npt.NDArray[np.uint8]


def is_latents(source: ByteArray | Latents) -> TypeGuard[Latents]:
    """Whether a source is latents; else it is an encoded audio file."""
    return source.dtype == np.float32


Status = Literal["pending", "processing", "completed", "failed"]
Outcome = Literal["completed", "failed", "cancelled", "expired"]
ENDED: tuple[Status, ...] = ("completed", "failed")


@dataclass(frozen=True)
class Upload:
    """An audio file, still encoded, already checked. `digest` is its sha256, under which it is kept."""

    digest: str
    content: ByteArray


@dataclass(frozen=True)
class EarlierSong:
    """The latents of one song of a job that has completed."""

    request_id: str
    index: int = 0


Source = Upload | EarlierSong


@dataclass(frozen=True)
class SourceSong:
    """A song of an earlier job. `is_kept` says whether its latents are; what it was asked for is known longer."""

    params: GenerationParams
    duration_s: float
    is_kept: bool


@dataclass(frozen=True)
class Submission:
    """One accepted request, complete: nothing about it is decided later.

    `request_id` is the id that the job gets, unless another job has it already: a client may name the same one twice.
    `songs` are one or more, which differ in their seeds only.
    `request_json` is the request as a client would POST it again for the same music: seeds and duration are filled in.
    `key` is equal for submissions that are to make one job, however often they are sent; `request_digest` then too.
    """

    request_id: str
    songs: tuple[GenerationParams, ...]
    audio_format: AudioFormat
    request_json: dict[str, Any]
    source: Source | None = None
    save_file: bool = False  # also write its songs under ACE_OUTPUT_DIR
    priority: int = 5  # 0 to 9, the most urgent
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    request_digest: str = ""
    callback_url: str | None = None  # whom to tell of the end; already checked


@dataclass(frozen=True)
class Resend:
    """A request that was sent before: its key has a job already, and its digest is that job's."""

    key: str
    request_digest: str


RETAKE_SEED_TASKS: tuple[Task, ...] = ("retake", "repaint", "extend", "edit")  # they draw from `retake_seed` as well
EXACT_JSON_INTEGER = 2**53 - 1  # JavaScript rounds what is larger, so larger seeds are answered as strings


def json_seed(seed: int) -> int | str:
    """A seed as JSON carries it unharmed: a string where a JSON reader may round the number."""
    return seed if seed <= EXACT_JSON_INTEGER else str(seed)


def request_of_song(request_json: dict[str, Any], song: GenerationParams) -> dict[str, Any]:
    """The request that makes one song of a job again, alone."""
    alone: dict[str, Any] = {"batch_size": 1, "manual_seeds": json_seed(song.seed)}
    if song.task in RETAKE_SEED_TASKS:
        alone["retake_seeds"] = json_seed(song.retake_seed)
    return request_json | alone


@dataclass(frozen=True)
class RenderJob:
    """What a Generator needs for one song beside the conditioning and the source.

    `call_id` names this attempt alone: an earlier one may still be on its way out.
    """

    request_id: str
    params: GenerationParams
    audio_format: AudioFormat
    tags: dict[str, str]
    priority: int = 5
    latent_space: str = ""  # that its source latents lie in, if they say so
    call_id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Heartbeat:
    """A Generator is there, with nothing to tell of a song. `engine_steps` are those its engine has done for all."""

    engine_steps: int


@dataclass(frozen=True)
class Rendered:
    """A finished song. `rest` is what of its encoded file follows the parts that came before."""

    rest: ByteArray
    latents: Latents
    duration_s: float
    timings: Timings
    model: str
    device: str
    latent_space: str = ""  # that its latents lie in


@dataclass(frozen=True)
class SongResult:
    """What a finished song can tell without its audio."""

    model: str
    device: str
    duration_s: float
    audio_bytes: int
    timings: dict[str, float]
    audio_path: str | None = None  # under ACE_OUTPUT_DIR, for jobs that save files
    edition: str = ""  # of the file's bytes, for those who had begun to read it before
    shared_mtime: float = 0.0  # of the file where it is the saved song's too, which its owner may edit; else 0


def published_form(request: dict[str, Any], result: SongResult | None = None) -> dict[str, Any]:
    """A request with what the published pipeline writes beside its songs, so that its interface can load it.

    Posted again, it is the same request.
    """
    seeds = request.get("manual_seeds")
    timings = {} if result is None else result.timings
    names = {"diffusion": "diffusion_s", "latent2audio": "decode_s"}
    return request | {
        "actual_seeds": seeds if isinstance(seeds, list) else [seeds],
        "oss_steps": request.get("oss_steps") or [],
        "audio_path": None if result is None else result.audio_path,
        "timecosts": {name: timings[ours] for name, ours in names.items() if ours in timings},
    }


@dataclass(frozen=True)
class JobView:
    """A job as clients see it. Times are Unix seconds."""

    request_id: str
    status: Status
    created_at: float
    audio_format: AudioFormat
    request_json: dict[str, Any]
    songs: tuple[GenerationParams, ...]
    outcome: Outcome | None = None
    started_at: float | None = None
    completed_at: float | None = None
    expected_wait_s: float | None = None  # until it starts; None once it runs
    position: int | None = None  # how many waiting jobs were accepted before it; None once it runs
    remaining_s: float | None = None  # of diffusion, judged by the steps so far
    progress: Progress | None = None  # of the song that is least far
    error: str | None = None
    error_code: str | None = None
    results: tuple[SongResult, ...] = ()  # one for each song, while a completed job is kept

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True)
class AudioFile:
    """The audio of one song of a completed job, with what its response headers need."""

    view: JobView
    audio: ByteArray
    index: int = 0


@dataclass(frozen=True)
class AudioPart:
    """Some of a song's file, perhaps while it is made. Nothing follows a part that is the `last`."""

    view: JobView
    audio: ByteArray
    edition: str
    last: bool


@dataclass(frozen=True)
class LyricLineReading:
    """The reading of one line of lyrics, or of a part of it in a language of its own.

    `source` says why it has its language: tag, given or detected.
    """

    number: int  # from 1; the parts of a line have the same number
    text: str
    language: str
    source: str
    spelling: str  # numbers, abbreviations and foreign letters spelled out
    ids: tuple[int, ...]
    notes: tuple[str, ...]  # sentences on what was left out or taken for something else, and on brackets read as words
    tokens: tuple[str, ...]  # what the ids stand for


@dataclass(frozen=True)
class LyricReading:
    """How lyrics were read. `total` counts all tokens, also those between lines; over `limit` no song can be made."""

    model: str
    instrumental: bool
    total: int
    limit: int
    lines: tuple[LyricLineReading, ...]


EventKind = Literal["queued", "encoding", "diffusion", "decoding", "ended"]


@dataclass(frozen=True)
class JobEvent:
    """`event_id` grows within a job, also over restarts of the service; `data` is what a client reads, as JSON."""

    event_id: int
    kind: EventKind
    data: dict[str, Any]

    @property
    def last(self) -> bool:
        return self.kind == "ended"


@dataclass(frozen=True)
class EventBatch:
    """What happened to a job since an event. After the last there is none, and `over` says that none will come."""

    events: tuple[JobEvent, ...]
    over: bool


@dataclass(frozen=True)
class QueueStatus:
    """Counts over all jobs still kept; `queue_size` are those that wait, `priority_counts` the same by priority.

    `expected_wait_s` is how long one more job of the same priority would wait, `replicas` counts the Generators.
    """

    queue_size: int
    status_counts: dict[Status, int]
    total_requests: int
    priority_counts: dict[int, int]
    expected_wait_s: float
    replicas: int


@dataclass(frozen=True)
class ReplicaState:
    """One Generator replica, as it describes itself."""

    replica_id: str
    model: str
    device: str  # "cpu", or the GPU's name
    gpu_ids: tuple[str, ...] = ()
    precision: str = ""
    adapters: tuple[str, ...] = ()  # the digests of those on its device
    latent_space: str = ""  # of the model's latents


@dataclass(frozen=True)
class ServiceStatus:
    """What /health says. `loaded` is true once at least one Generator replica has its model in memory."""

    model: str
    notice: str | None  # what a user must know about this model, e.g. that it knows no voices
    loaded: bool
    replicas: tuple[ReplicaState, ...] = ()
    queue_size: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraInfo:
    """A registered LoRA adapter. `digest` is the sha256 of its files, `modules` the kinds of modules it adapts."""

    name: str
    digest: str
    path: str  # absolute, on every node that has a Generator
    rank: int  # the largest
    modules: tuple[str, ...]
    nbytes: int
    stamp: str  # of its file, to notice a change without reading it


class ServiceError(Exception):
    """Base of what the JobManager answers instead of a result. Arguments survive pickling.

    ServiceError
    ├── JobNotFoundError
    ├── SongNotFoundError     a job has fewer songs than that
    ├── SongChangedError      it had to be made again, and is no longer the song that somebody began to read
    ├── JobNotEndedError      its result was asked for too early
    ├── JobFailedError        its result was asked for, and there is none
    ├── JobEndedError         it cannot be cancelled any more
    ├── SourceOfOtherModelError  the latents that a song was to begin from mean nothing to the current model
    ├── SourceGoneError       what a song was to begin from is unknown or no longer kept
    ├── QueueFullError
    ├── KeyConflictError      its key belongs to a job that was asked for in other words
    ├── LoraNotFoundError     no adapter is registered under this name
    ├── LoraRefusedError      an adapter cannot be registered, and why
    ├── ModelUnavailableError the asked model is not configured or cannot be loaded
    └── StorageError          the job store or its disk cannot be written just now; nothing was accepted
    """


class JobNotFoundError(ServiceError):
    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id


class SongNotFoundError(ServiceError):
    def __init__(self, index: int, songs: int) -> None:
        super().__init__(index, songs)
        self.index, self.songs = index, songs


class SongChangedError(ServiceError):
    """Bytes of another edition of the song are all there is now."""


class JobStateError(ServiceError):
    """A job is not in the state the call needs; `view` says which it is in."""

    def __init__(self, view: JobView) -> None:
        super().__init__(view)
        self.view = view


class JobNotEndedError(JobStateError): ...


class JobFailedError(JobStateError): ...


class JobEndedError(JobStateError): ...


class SourceGoneError(ServiceError): ...


class SourceOfOtherModelError(ServiceError): ...


class QueueFullError(ServiceError):
    def __init__(self, waiting: int, limit: int, retry_after_s: float) -> None:
        super().__init__(waiting, limit, retry_after_s)
        self.waiting, self.limit, self.retry_after_s = waiting, limit, retry_after_s


class KeyConflictError(ServiceError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class LoraNotFoundError(ServiceError):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class LoraRefusedError(ServiceError): ...


class ModelUnavailableError(ServiceError): ...


class StorageError(ServiceError): ...
