"""The one request model. JSON bodies, forms and uploads are all read into it."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from acestep_engine.params import MAX_DURATION_S, MAX_STEPS, CfgType, SchedulerType, Task
from deployments.callbacks import MAX_URL_CHARACTERS
from serve_app.fields import (
    CONTEXT_FORM,
    MAX_SEEDS_LISTED,
    NO_ADAPTER,
    AdapterName,
    Duration,
    FieldProblem,
    Flag,
    Format,
    InvalidRequestError,
    LoraName,
    Lyrics,
    Number,
    OptionalText,
    OssSteps,
    Seeds,
    Text,
    VocalLanguage,
    Whole,
    invalid,
    refuse,
)
from serve_app.printable import printable, show
from serve_app.samples import DEFAULT_LYRICS, DEFAULT_PROMPT

MAX_PROBLEMS_LISTED = 20
MAX_FIELDS = 200

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

    format: Format = Field("wav", description="Audio format; case is ignored.")
    audio_duration: Duration = Field(
        60.0, description="Seconds of music, 1 to 240. -1 draws a length from 30 to 240 and reports it."
    )
    prompt: Text = Field(
        DEFAULT_PROMPT, max_length=2_000, description="Style, instruments, mood, tempo: tags separated by commas."
    )
    lyrics: Lyrics = Field(
        DEFAULT_LYRICS,
        description="Words to sing, with [verse], [chorus] and [bridge] lines. Blank or [inst] is instrumental.",
    )
    vocal_language: VocalLanguage = Field(
        None,
        description="The language of all lines that do not name their own as `[lang:de]`. null detects each line's.",
    )
    infer_step: Whole = Field(60, ge=1, le=MAX_STEPS, description="Diffusion steps: more is finer and slower.")
    guidance_scale: Number = Field(
        15.0, ge=0, le=30, description="How closely the music follows prompt and lyrics. 0 and 1 switch guidance off."
    )
    scheduler_type: SchedulerType = Field("euler", description="The sampler.")
    cfg_type: CfgType = Field("apg", description="The kind of guidance.")
    omega_scale: Number = Field(10.0, ge=-100, le=100, description="Granularity: the mean shift of each step.")
    manual_seeds: Seeds = Field(
        None,
        description="The seed, 0 to 2^64 - 1; the same seed makes the same music. null and -1 draw one and report it. "
        f"Lists and comma-separated text are read too (up to {MAX_SEEDS_LISTED}): a seed for each song of a batch; "
        "those that are missing are drawn.",
    )
    guidance_interval: Number = Field(
        0.5, ge=0, le=1, description="The share of the steps, around the middle, that are guided."
    )
    guidance_interval_decay: Number = Field(
        0.0, ge=0, le=1, description="How far guidance falls towards min_guidance_scale within that interval."
    )
    min_guidance_scale: Number = Field(
        3.0, ge=0, le=200, description="Where the decay of guidance ends. When given, at most guidance_scale."
    )
    use_erg_tag: Flag = Field(True, description="Entropy rectifying guidance on the prompt.")
    use_erg_lyric: Flag = Field(False, description="Entropy rectifying guidance on the lyrics.")
    use_erg_diffusion: Flag = Field(True, description="Entropy rectifying guidance in the diffusion transformer.")
    oss_steps: OssSteps = Field(
        None, description="Run only these steps, increasing, 1 to 200: a list or comma-separated text."
    )
    guidance_scale_text: Number = Field(
        0.0, ge=0, le=10, description="Guidance of the prompt alone; both this and the next over 1 guide them apart."
    )
    guidance_scale_lyric: Number = Field(0.0, ge=0, le=10, description="Guidance of the lyrics alone.")
    audio2audio_enable: Flag = Field(False, description="Start from ref_audio_input instead of from noise.")
    ref_audio_strength: Number = Field(
        0.5, ge=0, le=1, description="How much of the reference stays: 0 nothing, 1 all of it."
    )
    ref_audio_input: OptionalText = Field(None, max_length=1_024, description=f"For audio2audio: {_SOURCE_FILE}")
    src_audio: OptionalText = Field(
        None, max_length=1_024, description=f"For repaint, extend and edit: {_SOURCE_FILE} The same as ref_audio_input."
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
        1.0, ge=-3, le=3, description="Strength of the adapter; 0 is exactly the model without it."
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
    edit_target_lyrics: Lyrics | None = Field(
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
        # Runs only for a value the client sent: the default of 3 must not forbid a guidance_scale of 2.
        maximum = info.data.get("guidance_scale")
        if maximum is not None and maximum not in (0.0, 1.0) and minimum > maximum:
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
    """Which model to run, and how. What is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"example": {"checkpoint_path": "nano"}})

    checkpoint_path: Text = Field(
        "", max_length=1_024, description="A configured checkpoint, by name or folder. Empty: the current one."
    )
    device_id: Whole = Field(
        0, ge=0, le=1_023, description="Accepted from old clients. Ray decides which GPU a replica gets."
    )
    bf16: Flag = Field(True, description="bfloat16 on a GPU; false computes in float32.")
    torch_compile: Flag = Field(False, description="Compile the transformer: slow first song, faster later ones.")
    cpu_offload: Flag = Field(False, description="Keep models in main memory while they do not compute.")
    overlapped_decode: Flag = Field(False, description="Decode long songs in overlapping pieces.")

    @property
    def options(self) -> dict[str, bool]:
        """The switches that were asked for by name."""
        return self.model_dump(include=self.model_fields_set - {"checkpoint_path", "device_id"})


def parse_generate(fields: Mapping[str, object], *, from_form: bool) -> GenerateRequest:
    """Fields to a request. Raises InvalidRequestError with everything that is wrong with them."""
    return _parse(GenerateRequest, fields, from_form=from_form)


def parse_lyrics(fields: Mapping[str, object], *, from_form: bool) -> LyricsRequest:
    """Fields, from JSON, a form or a query, to the request. Raises InvalidRequestError."""
    return _parse(LyricsRequest, fields, from_form=from_form)


def parse_initialize(fields: Mapping[str, object], *, from_form: bool) -> InitializeRequest:
    """Fields, from JSON or a query, to the request. Raises InvalidRequestError."""
    return _parse(InitializeRequest, fields, from_form=from_form)


def parse_lora(fields: Mapping[str, object], *, from_form: bool) -> LoraRequest:
    """Raises InvalidRequestError."""
    return _parse(LoraRequest, fields, from_form=from_form)


M = TypeVar("M", bound=BaseModel)


def _parse(model: type[M], fields: Mapping[str, object], *, from_form: bool) -> M:
    if len(fields) > MAX_FIELDS:
        raise invalid("body", f"{len(fields)} fields are over the limit of {MAX_FIELDS}")
    try:
        return model.model_validate(dict(fields), context={CONTEXT_FORM: from_form})
    except ValidationError as error:
        found = error.errors(include_url=False)[:MAX_PROBLEMS_LISTED]
        raise InvalidRequestError(*(_describe(model, details) for details in found)) from None


def _describe(model: type[BaseModel], error: ErrorDetails) -> FieldProblem:
    field = printable(str(error["loc"][0])) if error["loc"] else "body"
    value, context = show(error["input"]), error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(field.lower(), [*model.model_fields], n=1, cutoff=0.5)
            problem = "is not a field of this request" + (f"; did you mean {near[0]}?" if near else "")
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
