"""The one request model. JSON bodies, forms and uploads are all read into it."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from acestep_engine.params import MAX_DURATION_S, MAX_STEPS, Task
from deployments.callbacks import MAX_URL_CHARACTERS
from serve_app.fields import (
    MAX_SEEDS_LISTED,
    NO_ADAPTER,
    AdapterName,
    Duration,
    FieldProblem,
    Flag,
    Format,
    Guidance,
    InvalidRequestError,
    LoraName,
    Lyrics,
    Number,
    OptionalText,
    OssSteps,
    Scheduler,
    Seeds,
    SongLyrics,
    Text,
    VocalLanguage,
    Whole,
    invalid,
    refuse,
)
from serve_app.names import hint
from serve_app.printable import printable, show
from serve_app.samples import DEFAULT_LYRICS, DEFAULT_PROMPT

MAX_PROBLEMS_LISTED = 20
MAX_FIELDS = 200
MAX_GUIDANCE = 200

_SOURCE_FILE = (
    "the source, as the relative path of a file under the server's audio folder, or an upload as params_json names it "
    "(`upload:` and its sha256). To send a file, use audio_file or audio_base64."
)


class GenerateRequest(BaseModel):
    """One song to make, or several that differ in their seeds. Every field has a default: `{}` is a request."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "example": {
                "prompt": "acoustic guitar, calm, peaceful",
                "lyrics": "[inst]",
                "audio_duration": 10.0,
                "infer_step": 20,
                "manual_seeds": "42",
            }
        },
    )

    format: Format = Field(
        "wav", description="Audio format. Where it is not given, an audio type in Accept decides. Also `audio_format`."
    )
    audio_duration: Duration = Field(
        60.0,
        description="Seconds of music, 1 to 240. 0 and less draw a length from 30 to 240 and report it. A song made "
        "from a source has the length of its source. Also `duration`.",
    )
    prompt: Text = Field(
        DEFAULT_PROMPT,
        max_length=2_000,
        description="Style, instruments, mood, tempo: tags separated by commas. Also `genre`, `tags`, `caption`.",
    )
    lyrics: SongLyrics = Field(
        DEFAULT_LYRICS,
        description="Words to sing, with [verse], [chorus] and [bridge] lines. Blank or [inst] is instrumental.",
    )
    vocal_language: VocalLanguage = Field(
        None,
        description="The language of all lines that do not name their own as `[lang:de]`. null detects each line's.",
    )
    infer_step: Whole = Field(
        60,
        ge=1,
        le=MAX_STEPS,
        description="Diffusion steps: more is finer and slower. Also `steps`, `infer_steps`, `num_inference_steps`.",
    )
    guidance_scale: Number = Field(
        15.0,
        ge=0,
        le=MAX_GUIDANCE,
        description="How closely the music follows prompt and lyrics. 0 and 1 switch guidance off. Also `cfg_scale`.",
    )
    scheduler_type: Scheduler = Field("euler", description="The sampler; case is ignored.")
    cfg_type: Guidance = Field("apg", description="The kind of guidance; case is ignored.")
    omega_scale: Number = Field(10.0, ge=-100, le=100, description="Granularity: the mean shift of each step.")
    manual_seeds: Seeds = Field(
        None,
        description="The seed, 0 to 2^64 - 1; the same seed makes the same music. null and -1 draw one and report it. "
        f"Lists and comma-separated text are read too (up to {MAX_SEEDS_LISTED}): a seed for each song of a batch; "
        "those that are missing are drawn. Also `seed`, `seeds`, `actual_seeds`.",
    )
    guidance_interval: Number = Field(
        0.5, ge=0, le=1, description="The share of the steps, around the middle, that are guided."
    )
    guidance_interval_decay: Number = Field(
        0.0, ge=0, le=1, description="How far guidance falls towards min_guidance_scale within that interval."
    )
    min_guidance_scale: Number = Field(
        3.0,
        ge=0,
        le=MAX_GUIDANCE,
        description="Where the decay of guidance ends: at most guidance_scale, where there is a decay.",
    )
    use_erg_tag: Flag = Field(True, description="Entropy rectifying guidance on the prompt.")
    use_erg_lyric: Flag = Field(False, description="Entropy rectifying guidance on the lyrics.")
    use_erg_diffusion: Flag = Field(True, description="Entropy rectifying guidance in the diffusion transformer.")
    oss_steps: OssSteps = Field(
        None, description="Run only these steps, increasing, 1 to 200: a list or comma-separated text."
    )
    guidance_scale_text: Number = Field(
        0.0,
        le=MAX_GUIDANCE,
        description="Guidance of the prompt alone. Both this and the next over 1 guide them apart, else neither acts.",
    )
    guidance_scale_lyric: Number = Field(0.0, le=MAX_GUIDANCE, description="Guidance of the lyrics alone.")
    audio2audio_enable: Flag = Field(False, description="Start from ref_audio_input instead of from noise.")
    ref_audio_strength: Number = Field(
        0.5, ge=0, le=1, description="How much of the reference stays: 0 nothing, 1 all of it."
    )
    ref_audio_input: OptionalText = Field(None, max_length=1_024, description=f"For audio2audio: {_SOURCE_FILE}")
    src_audio: OptionalText = Field(
        None,
        max_length=1_024,
        description=f"For repaint, extend and edit: {_SOURCE_FILE} The same as ref_audio_input. Also `src_audio_path`.",
    )
    source_request_id: OptionalText = Field(
        None,
        max_length=64,
        description="An earlier job whose song is the source, without decoding and encoding it again. Its prompt, "
        "lyrics and vocal_language hold where this request gives none; for retake also its seed and length.",
    )
    source_index: Whole = Field(0, ge=0, le=MAX_SEEDS_LISTED - 1, description="Which song of that job, from 0.")
    lora_name_or_path: AdapterName = Field(
        NO_ADAPTER,
        max_length=256,
        description="A registered LoRA adapter, see /loras; none for none, and unless given that of the song in "
        "source_request_id. `name@digest` says also which content it must have (16 or more of its hexadecimal digits), "
        "as params_json does.",
    )
    lora_weight: Number = Field(
        1.0, ge=-3, le=3, description="Strength of the adapter; 0 is exactly the model without it. Also `lora_scale`."
    )
    return_file_data: Flag = Field(
        False, description="Kept for old clients. To be answered with audio, send `Accept: audio/*`."
    )
    stream: Flag = Field(
        False,
        exclude=True,  # it is about the answer: with or without, the music is the same
        description="Of routes that answer audio: answer as soon as there is any, and go on while the rest is decoded.",
    )
    task: Task = Field(
        "text2music",
        description="text2music; retake: the same with other noise; or from a source: audio2audio (which is what "
        "audio2audio_enable stands for), repaint: a range anew; extend: seconds before or after; edit: other words.",
    )
    retake_seeds: Seeds = Field(
        None, description="retake, repaint, extend, edit: the seeds of the other noise, one for each song of a batch."
    )
    retake_variance: Number = Field(
        0.5,
        ge=0,
        le=1,
        description="retake, repaint, extend: how far the result goes from where it began. When not given, 1 for "
        "extend: with less, what is added begins as half silence.",
    )
    repaint_start: Number = Field(0.0, ge=0, le=MAX_DURATION_S, description="repaint: from this second of the source.")
    repaint_end: Number = Field(0.0, ge=0, le=MAX_DURATION_S, description="repaint: up to this second.")
    left_extend_length: Number = Field(0.0, ge=0, le=MAX_DURATION_S, description="extend: seconds before the source.")
    right_extend_length: Number = Field(
        0.0, ge=0, le=MAX_DURATION_S, description="extend: seconds after the source. At most 240 s in all."
    )
    edit_target_prompt: Text | None = Field(
        None, max_length=2_000, description="edit: what it is to become; prompt and lyrics say what the source is."
    )
    edit_target_lyrics: SongLyrics | None = Field(
        None, description="edit: its words. null keeps the prompt or the lyrics; one must be given."
    )
    edit_n_min: Number = Field(0.0, ge=0, le=1, description="edit: the part of the steps from which on it is edited.")
    edit_n_max: Number = Field(
        1.0, ge=0, le=1, description="edit: the part of the steps from which on it is sampled without its source."
    )
    edit_n_avg: Whole = Field(1, ge=1, le=10, description="edit: draws of noise that each step averages over.")
    batch_size: Whole = Field(
        1, ge=1, le=MAX_SEEDS_LISTED, description="Songs, each with its own seed, up to the server's limit."
    )
    priority: Whole = Field(
        5, ge=0, le=9, description="9 is the most urgent. One more is worth a minute of waiting in the queue."
    )
    callback_url: OptionalText = Field(
        None,
        max_length=MAX_URL_CHARACTERS,
        exclude=True,  # the same request made again calls nobody, unless it says so itself
        description="POSTed to when the job has ended, on a host that the operator allows: `{type: job.ended, "
        "request_id, attempt, status, outcome, error, error_code, completed_at}`, signed as Standard Webhooks are. "
        "Repeated with growing pauses for about a day, until the answer is 2xx, or 410 for no more.",
    )

    @field_validator("min_guidance_scale")
    @classmethod
    def _below_the_maximum(cls, minimum: float, info: ValidationInfo) -> float:
        # Runs only for a value the client sent: the default of 3 must not forbid a guidance_scale of 2. Clients send 3
        # with any scale; without a decay it means nothing.
        maximum, decay = info.data.get("guidance_scale"), info.data.get("guidance_interval_decay")
        if maximum is not None and decay and maximum not in (0.0, 1.0) and minimum > maximum:
            raise refuse(f"{minimum:g} is over guidance_scale, which is {maximum:g}")
        return minimum


class LoraRequest(BaseModel):
    """An adapter to register."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"example": {"name": "rap", "path": "ACE-Step-v1-chinese-rap-LoRA"}},
    )

    name: LoraName = Field(description="What requests call it: letters, digits, dots, dashes and underscores.")
    path: Text = Field(
        min_length=1,
        max_length=1_024,
        description="A folder (of diffusers, peft or the Hugging Face cache) or a .safetensors file, relative to the "
        "server's folder for adapters.",
    )


class LyricsRequest(BaseModel):
    """Lyrics to be read, as a request for a song has them."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"example": {"lyrics": "[verse]\n[lang:de] Ich zähle 3 Rosen\nand a bridge"}},
    )

    lyrics: Lyrics = Field(description="The lyrics, line by line.")
    vocal_language: VocalLanguage = Field(None, description="The language of lines that do not name their own.")


class InitializeRequest(BaseModel):
    """The model to run, and how to run it. What equals its default stays as it is."""

    # Clients of the earlier server send more than that; they always did.
    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_extra={"example": {"checkpoint_path": "nano"}})

    checkpoint_path: Text = Field(
        "", max_length=1_024, description="A configured checkpoint, by name or folder. Empty: the current one."
    )
    device_id: Whole = Field(
        0, ge=0, le=1_023, description="Accepted from old clients. Ray decides which GPU a replica gets."
    )
    bf16: Flag = Field(True, description="false computes in float32, on a GPU too.")
    torch_compile: Flag = Field(False, description="true compiles the transformer: slow first song, faster later ones.")
    cpu_offload: Flag = Field(False, description="true keeps models in main memory while they do not compute.")
    overlapped_decode: Flag = Field(False, description="true decodes long songs in overlapping pieces.")

    @property
    def options(self) -> dict[str, bool]:
        """The switches that differ from their defaults, which clients send by habit."""
        return self.model_dump(exclude={"checkpoint_path", "device_id"}, exclude_defaults=True)


def parse_generate(fields: Mapping[str, object], sent_as: Mapping[str, str] | None = None) -> GenerateRequest:
    """Read the fields of a request. `sent_as` has the names that a client used in place of ours.

    Raises InvalidRequestError with everything that is wrong with them.
    """
    return _parse(GenerateRequest, fields, sent_as or {})


def parse_lyrics(fields: Mapping[str, object]) -> LyricsRequest:
    """Read the fields of JSON, a form or a query. Raises InvalidRequestError."""
    return _parse(LyricsRequest, fields)


def parse_initialize(fields: Mapping[str, object]) -> InitializeRequest:
    """Read the fields of JSON, a form or a query. Raises InvalidRequestError."""
    return _parse(InitializeRequest, fields)


def parse_lora(fields: Mapping[str, object]) -> LoraRequest:
    """Read the fields of JSON or a form. Raises InvalidRequestError."""
    return _parse(LoraRequest, fields)


M = TypeVar("M", bound=BaseModel)
NO_NAMES: Mapping[str, str] = {}


def _parse(model: type[M], fields: Mapping[str, object], sent_as: Mapping[str, str] = NO_NAMES) -> M:
    if len(fields) > MAX_FIELDS:
        raise invalid("body", f"{len(fields)} fields are over the limit of {MAX_FIELDS}")
    given = {name: value for name, value in fields.items() if value is not None or not _has_default(model, name)}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False)[:MAX_PROBLEMS_LISTED]
        raise InvalidRequestError(*(_describe(model, details, sent_as) for details in found)) from None


def _has_default(model: type[BaseModel], name: str) -> bool:
    """Return whether null means that the field is not given: it has a default, and null is none of its values."""
    known = model.model_fields.get(name)
    return known is not None and not known.is_required() and known.default is not None


def _describe(model: type[BaseModel], error: ErrorDetails, sent_as: Mapping[str, str]) -> FieldProblem:
    name = str(error["loc"][0]) if error["loc"] else "body"
    field = printable(sent_as.get(name, name))
    value, context = show(error["input"]), error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            meant = hint(field, model.model_fields)
            problem = "is not a field of this request" + (f"; {meant}" if meant else "")
        case "missing":
            problem = "is missing"
        case "greater_than_equal":
            problem = f"{value} is under the limit of {context['ge']:g}"
        case "less_than_equal":
            problem = f"{value} is over the limit of {context['le']:g}"
        case "string_too_long" | "too_long":
            length = len(error["input"])
            problem = f"{length:,} characters are over the limit of {context['max_length']:,}"
        case "string_unicode":
            problem = "has a lone surrogate, which no text can hold"
        case "string_type":
            problem = f"{value} is not text"
        case "literal_error":
            problem = f"{value} is not one of {context['expected']}"
        case "refused":
            problem = context["problem"]
        case _:
            problem = printable(error["msg"], 200)
    return FieldProblem(field, problem)
