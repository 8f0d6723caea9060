"""What can be asked of the engine. Plain dataclasses: no torch, no pydantic, safe to pickle."""

from dataclasses import dataclass, field
from typing import Literal, get_args

Task = Literal["text2music", "audio2audio", "retake", "repaint", "extend", "edit"]
SchedulerType = Literal["euler", "heun", "pingpong"]
CfgType = Literal["apg", "cfg", "cfg_star"]
AudioFormat = Literal["wav", "wav32", "mp3", "ogg", "flac", "opus"]
Precision = Literal["auto", "bfloat16", "float32"]

TASKS: tuple[Task, ...] = get_args(Task)
SOURCE_TASKS: tuple[Task, ...] = ("audio2audio", "repaint", "extend", "edit")  # those that need a source
SCHEDULERS: tuple[SchedulerType, ...] = get_args(SchedulerType)
CFG_TYPES: tuple[CfgType, ...] = get_args(CfgType)
AUDIO_FORMATS: tuple[AudioFormat, ...] = get_args(AudioFormat)

MAX_DURATION_S = 240.0
MAX_STEPS = 200
MAX_SEED = 2**64 - 1

MODEL_SAMPLE_RATE_HZ = 44_100  # what the mel filter bank and the vocoder work at
OUTPUT_SAMPLE_RATE_HZ = 48_000
MEL_HOP_SAMPLES = 512
MEL_FRAMES_PER_LATENT = 8
SAMPLES_PER_LATENT = MEL_HOP_SAMPLES * MEL_FRAMES_PER_LATENT  # at the model's rate
LATENT_RATE_HZ = MODEL_SAMPLE_RATE_HZ / SAMPLES_PER_LATENT

# Seconds are counted in whole ticks. A second has so many that a millisecond, and a sample at every multiple or usual
# fraction of 44.1 and 48 kHz, is a whole number of them.
TICKS_PER_S = 705_600_000
TICKS_PER_LATENT = TICKS_PER_S // MODEL_SAMPLE_RATE_HZ * SAMPLES_PER_LATENT


def file_extension(audio_format: AudioFormat) -> str:
    """Return how the names of such files end, without the dot. Two formats may share one."""
    return "wav" if audio_format == "wav32" else audio_format


def latent_frames(duration_s: float) -> int:
    """Return the whole latent frames within `duration_s` of audio, about 10.77 per second.

    It is the published `int(duration_s * 44100 / 512 / 8)` for every duration of whole milliseconds. That product is
    rounded, and so one frame short for 168 of the 2,583 durations that are a whole number of frames; this is not.
    """
    return round(duration_s * TICKS_PER_S) // TICKS_PER_LATENT


def latent_duration_s(frames: int) -> float:
    """Return the seconds that `frames` latent frames last; `latent_frames` answers the same frames for them."""
    return frames * SAMPLES_PER_LATENT / MODEL_SAMPLE_RATE_HZ


MAX_LATENT_FRAMES = latent_frames(MAX_DURATION_S)


def encoded_frames(samples: int, sample_rate_hz: int) -> int:
    """Return the latent frames that audio of `samples` per channel is encoded to: its end is filled with silence."""
    return -(-samples * MODEL_SAMPLE_RATE_HZ // (sample_rate_hz * SAMPLES_PER_LATENT))


def longest_source_samples(sample_rate_hz: int) -> int:
    """Return the samples per channel of a source that are used: what is past the longest song is left out."""
    return MAX_LATENT_FRAMES * SAMPLES_PER_LATENT * sample_rate_hz // MODEL_SAMPLE_RATE_HZ


def decoded_frames(duration_s: float) -> int:
    """Return the latent frames that a finished song of `duration_s` was decoded from: the nearest whole number.

    A song has a whole number of samples at 48 kHz, so that it lasts a little more or less than its frames.
    """
    return (2 * round(duration_s * TICKS_PER_S) + TICKS_PER_LATENT) // (2 * TICKS_PER_LATENT)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter and how strongly it acts: 0 is the model itself. `digest` says what `path` must hold."""

    name: str
    digest: str
    path: str
    weight: float = 1.0


@dataclass(frozen=True)
class AdapterLimits:
    """How many adapters are on the device at a time, and how many bytes of them that no song uses may stay."""

    most: int = 8
    most_bytes: int = 4 * 2**30


@dataclass(frozen=True)
class GenerationParams:
    """One song. Everything is decided: the seed is drawn, -1 durations are resolved, lists are parsed.

    Units: seconds for what ends in `_s`; guidance scales and omega are the published pipeline's. `duration_s` is the
    length of the whole result, also where a source decides it.
    The same params on the same checkpoint give the same music.
    """

    prompt: str
    lyrics: str
    duration_s: float
    seed: int
    task: Task = "text2music"
    steps: int = 60
    scheduler: SchedulerType = "euler"
    cfg_type: CfgType = "apg"
    guidance_scale: float = 15.0
    omega_scale: float = 10.0
    guidance_interval: float = 0.5
    guidance_interval_decay: float = 0.0
    min_guidance_scale: float = 3.0
    use_erg_tag: bool = True
    use_erg_lyric: bool = False
    use_erg_diffusion: bool = True
    oss_steps: tuple[int, ...] = ()
    guidance_scale_text: float = 0.0
    guidance_scale_lyric: float = 0.0
    ref_audio_strength: float = 0.5  # audio2audio: 0 keeps nothing of the reference, 1 all of it
    retake_seed: int = 0  # of the noise that retake, repaint, extend turn to, and of all noise of edit
    retake_variance: float = 0.5  # how far retake, repaint and extend go from the song they begin with, 0 to 1
    repaint_start_s: float = 0.0
    repaint_end_s: float = 0.0
    left_extend_s: float = 0.0
    right_extend_s: float = 0.0
    edit_target_prompt: str = ""  # what an edited song is to become; `prompt` and `lyrics` say what it is
    edit_target_lyrics: str = ""
    edit_n_min: float = 0.0  # the part of the steps, 0 to 1, from which on a song is edited, ...
    edit_n_max: float = 1.0  # ... and from which on the result is sampled without its source
    edit_n_avg: int = 1  # draws of noise that each step of an edit averages over
    vocal_language: str | None = None  # a language for every line that does not name its own
    adapter: Adapter | None = None

    @property
    def active_adapter(self) -> Adapter | None:
        """The adapter, unless its weight makes it nothing."""
        return self.adapter if self.adapter is not None and self.adapter.weight != 0 else None

    @property
    def guided(self) -> bool:
        """Whether a second, unconditional prediction is made at all: scales 0 and 1 switch guidance off."""
        return self.guidance_scale not in (0.0, 1.0)

    @property
    def weakens_text(self) -> bool:
        """Whether the weakened hidden states of the prompt are used: the published pipeline asks both switches."""
        return self.guided and self.use_erg_tag and self.use_erg_lyric and self.task != "edit"

    @property
    def double_guided(self) -> bool:
        """Text and lyrics guided apart: both scales over 1."""
        return self.guidance_scale_text > 1.0 and self.guidance_scale_lyric > 1.0


@dataclass(frozen=True)
class ModelSpec:
    """Which checkpoint to run and how. Two equal specs are the same loaded model."""

    name: str  # what X-Model and /health say: "nano", "v1-3.5b", or the configured name
    path: str  # a checkpoint folder in the published layout
    precision: Precision = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    torch_compile: bool | None = None  # None: on a GPU, if it is faster there
    cuda_graphs: bool | None = None  # None: on a GPU, for forwards that are faster so
    cpu_offload: bool = False
    overlapped_decode: bool = False


@dataclass(frozen=True)
class Progress:
    """Where a running request is. `step` counts finished forwards, or windows of its decoding, from 0 to `steps`."""

    stage: Literal["encoding", "diffusion", "decoding"]
    step: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Timings:
    """Wall seconds of the stages of one request. `first_audio_s` is the part of `decode_s` before the first audio."""

    diffusion_s: float = 0.0
    decode_s: float = 0.0
    first_audio_s: float = 0.0
    write_s: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)
