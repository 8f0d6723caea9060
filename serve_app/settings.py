"""The settings of the application: `args` in serve_config.yaml, environment variables, the command line's flags.

A key that is not listed here is refused at start, with its name.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from deployments.callbacks import CallbackRules
from deployments.store.urls import url_problem
from serve_app.fields import LoraName

Megabytes = Annotated[int, Field(ge=1, le=65_536)]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]


def _readable(url: str) -> str:
    problem = url_problem(url)
    if problem is not None:
        raise ValueError(problem)
    return url


StoreUrl = Annotated[str, Field(pattern=r"^(sqlite|(redis|rediss|unix)://.+)$"), AfterValidator(_readable)]
# A name, or an IPv6 address. A port behind it is refused: it would match nothing.
CallbackHost = Annotated[str, Field(pattern=r"^((\*\.)?[A-Za-z0-9._-]+|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$")]

# As a browser sends it: scheme and host, without a path. Editors and desktop applications have schemes of their own.
Origin = Annotated[str, Field(pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^/\s*]+)$")]


def variable(name: str, default: str) -> str:
    """Return an environment variable, or the default where it is unset or empty."""
    value = os.environ.get(name, "")
    return value if value.strip() else default


class Section(BaseModel):
    # An error does not repeat the input: it may be a key, or a URL with a password.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class GeneratorSettings(Section):
    """The deployment that runs diffusion and decoding."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Annotated[int, Field(ge=1)] | None = None  # None: one per GPU the cluster has, one on a CPU
    use_gpu: bool | None = None  # None: a GPU each where the cluster has any, else the CPU
    cluster_autoscales: bool = False  # nodes with GPUs may join later: do not check that they exist now
    loras_on_gpu: Annotated[int, Field(ge=1, le=1_000)] = 8  # adapters that a replica keeps in its memory at most...
    loras_mb: Megabytes = 4_096  # ...and how much of those that no song uses
    songs_per_size: Annotated[int, Field(ge=1, le=64)] = 8  # that a replica works on at a time, of each of five sizes
    downscale_delay_s: Annotated[float, Field(ge=0)] = 300.0  # a model takes long to load
    graceful_shutdown_timeout_s: Annotated[float, Field(ge=0)] = 600.0


class TextEncoderSettings(Section):
    replicas: Annotated[int, Field(ge=1)] = 1
    num_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0  # a share of a GPU; 0 encodes on the CPU
    max_batch_size: Annotated[int, Field(ge=1, le=256)] = 16
    cache_entries: Annotated[int, Field(ge=0)] = 512


class Limits(Section):
    """Bounds on what one client can make the server hold. Sizes in MiB (2**20 bytes)."""

    json_mb: Megabytes = 1
    upload_mb: Megabytes = 32
    base64_mb: Megabytes = 44
    source_duration_s: Annotated[float, Field(gt=0)] = 600.0
    source_channels: Annotated[int, Field(ge=1)] = 8
    source_min_rate_hz: Annotated[int, Field(ge=1)] = 8_000
    source_max_rate_hz: Annotated[int, Field(ge=1)] = 192_000
    batch_size: Annotated[int, Field(ge=1, le=64)] = 8  # songs of one job
    queue_size: Annotated[int, Field(ge=1)] = 200
    # Open at each proxy that `acestep-serve` starts; other proxies read the variable ACESTEP_MAX_CONNECTIONS.
    connections: Annotated[int, Field(ge=1, lt=10**9)] = 20_000
    followers: Annotated[int, Field(ge=1)] = 1_000  # clients that follow jobs live, of each ingress replica
    waiting: Annotated[int, Field(ge=1)] = 1_000  # requests that wait for their songs, of each ingress replica
    readers: Annotated[int, Field(ge=1)] = 1_000  # songs that are being sent, by each ingress replica
    bodies: Annotated[int, Field(ge=1)] = 500  # being read at a time, by each ingress replica...
    bodies_mb: Megabytes = 512  # ...and what they hold together, but for the first 64 KiB of each
    body_timeout_s: Annotated[float, Field(gt=0)] = 60.0  # the longest time in which nothing of a body comes
    body_bytes_per_s: Annotated[int, Field(ge=0)] = 4_096  # the slowest that a body may come, on average


class JobSettings(Section):
    sync_wait_s: Annotated[float, Field(gt=0)] = 600.0  # the longest that an answer in JSON waits for its song
    lease_s: Annotated[float, Field(ge=10)] = 30.0  # without a word from a replica, its songs are given to another
    job_timeout_s: Annotated[float, Field(gt=0)] = (
        600.0  # without a step of the engine that makes a song, it has failed
    )
    result_ttl_s: Annotated[float, Field(gt=0)] = 24 * 3600.0
    result_quota_mb: Annotated[int, Field(ge=1)] | None = None  # of results, latents and uploads; the oldest go first
    # The share of the disk that stays free: results go, then 503. None: a tenth, or 20 GiB where that is less.
    disk_reserve: Annotated[float, Field(ge=0, lt=1)] | None = None
    row_ttl_s: Annotated[float, Field(gt=0)] = 7 * 24 * 3600.0


class CallbackSettings(Section):
    """Where `callback_url` may go. Without hosts, callbacks are off."""

    hosts: tuple[CallbackHost, ...] = ()  # names, or *.name for all below one
    allow_private: bool = False  # also addresses of private networks and of this machine
    secret: str = Field(default_factory=lambda: variable("ACESTEP_CALLBACK_SECRET", ""), repr=False)

    @property
    def rules(self) -> CallbackRules:
        return CallbackRules(self.hosts, self.allow_private, self.secret)


class Settings(Section):
    """All of it. Environment variables give the defaults of the fields that say so."""

    model: str = "auto"  # auto, nano, v1-3.5b, a name of `checkpoints`, or a checkpoint folder
    checkpoints: dict[str, str] = {}  # further names that /initialize may ask for, each with its folder
    checkpoint_dir: Path = Path("~/.cache/ace-step/checkpoints")  # where v1-3.5b is kept
    download: bool = False  # fetch v1-3.5b from its published place when it is not there
    bf16: bool | None = None  # None: bfloat16 on a GPU, float32 on a CPU
    torch_compile: bool | None = None  # None: on a GPU, if a start that tries it finds it faster
    cuda_graphs: bool | None = None  # None: on a GPU, for the forwards that a start finds to be faster so
    cpu_offload: bool = False
    overlapped_decode: bool = False

    generator: GeneratorSettings = GeneratorSettings()
    text_encoder: TextEncoderSettings = TextEncoderSettings()
    ingress_replicas: Annotated[int, Field(ge=1)] = 1
    cors_origins: tuple[Origin, ...] = ()  # web pages of other origins that may read the answers; "*": of any
    # Names that a request may call this server, without ports; none: any. A web page can have its own name mean this
    # machine, so that `acestep-serve` at a loopback address allows only loopback names.
    allowed_hosts: tuple[str, ...] = ()
    jobs: JobSettings = JobSettings()
    limits: Limits = Limits()
    callbacks: CallbackSettings = Field(default_factory=CallbackSettings)

    output_dir: Path = Field(default_factory=lambda: Path(variable("ACE_OUTPUT_DIR", "./outputs")))
    store: StoreUrl = Field(
        default="sqlite", repr=False
    )  # where jobs are kept: sqlite (in state_dir), or a Redis by its URL
    state_dir: Path = Path("./.acestep")  # the job store, results and latents
    audio_root: Path | None = None  # where ref_audio_input may name files; None: nowhere
    lora_root: Path | None = None  # where POST /loras may name adapters; None: nowhere
    loras: dict[LoraName, str] = {}  # adapters to register at start, each with its path, which may lie anywhere
    admin_key: str | None = Field(
        default_factory=lambda: variable("ACESTEP_ADMIN_KEY", "") or None, repr=False
    )  # None: /initialize and POST /loras are off...
    admin_open: bool = False  # ...unless this says that anyone may administer (a laptop)
    log_level: LogLevel = Field(default_factory=lambda: variable("LOG_LEVEL", "INFO"), validate_default=True)
