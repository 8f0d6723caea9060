"""What /docs says: the schema of every answer, and of the bodies, which we parse ourselves.

The answers are built as plain dictionaries where they are sent; these models describe them, and the tests hold every
answer against its model.
"""

import copy
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from acestep_engine.params import AudioFormat
from deployments.messages import Outcome, Status
from serve_app.schemas import GenerateRequest, InitializeRequest, LoraRequest, LyricsRequest

DESCRIPTION = """\
Makes music from a description and lyrics, or from a song of yours, with the ACE-Step v1 model.

**Wait for it:** `POST /generate_music_direct` answers the audio, `POST /generate_music` where it was saved.
**Or queue it:** `POST /generate_music_async`, then `GET /status/{request_id}` until `completed`, then
`GET /result/{request_id}`.
**Or listen while it is made:** `GET /stream/{request_id}`, or `stream` in the request of a route that answers audio.

Every generating route takes the same fields, as JSON, as a form or as multipart, and every field has a default. The
same `manual_seeds` and fields make the same music: `params_json` in an answer can be posted again as it is.

`task` says what is made: a song of words, another take of one (retake), or from a source one like it (audio2audio),
with a range made anew (repaint), with seconds before or after it (extend), with other words (edit). The source is
`audio_file`, `audio_base64`, or an earlier job as `source_request_id`. `batch_size` makes several songs in one job.

**Follow it:** `GET /events/{request_id}` or `WS /ws/{request_id}` tell live what happens to a job, and `callback_url`
in a request is called when it has ended. `priority` says how urgent it is. A request with an `Idempotency-Key` may be
sent again: the same key and body are one job.

Names that other ACE-Step servers have for fields are read on every route (`genre`, `tags`, `duration`, `seed`, `steps`,
`cfg_scale`, ...; each field lists its own), and so are the published pipeline's `*_input_params.json` files. What such
clients send beside them means nothing (`checkpoint_path`, `bf16`, `device_id`, `output_path`, `timecosts`, ...) and is
listed under `ignored_fields` in the answer. Every other unknown field is a 422.

Errors are `application/problem+json` with a stable `code`; wrong fields are listed under `errors`.
"""

TAGS = [
    {"name": "Generate", "description": "Music from words."},
    {"name": "Generate from audio", "description": "Music from a song you upload."},
    {"name": "Lyrics", "description": "How words become what the model sings."},
    {"name": "Jobs", "description": "Follow, fetch and cancel what was queued."},
    {"name": "Adapters", "description": "LoRA adapters that requests may name."},
    {"name": "Service", "description": "Health, the model, ideas."},
]

# Text where JSON readers would round the number. `oneOf` and the format are what generators of clients understand.
Seed = Annotated[int | str, WithJsonSchema({"oneOf": [{"type": "integer", "format": "int64"}, {"type": "string"}]})]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Accepted(Answer):
    """The job is accepted and goes on; `Location` says where to ask for it."""

    success: bool
    request_id: str
    status: str = Field(description="queued; or processing, when it takes longer than an answer waits")
    message: str
    ignored_fields: list[str] = Field(description="Fields of the request that mean nothing here.")


class Made(Answer):
    """What is known of a song."""

    seed: Seed
    retake_seed: Seed | None = Field(None, description="Only of tasks that draw from it.")
    audio_path: str | None = Field(description="Where the server saved it; null for routes that save no file.")
    audio_url: str
    model: str
    device: str
    duration_s: float
    audio_bytes: int
    audio_size_bytes: int = Field(description="The same, for older clients.")
    timings: dict[str, float]


class Output(Made):
    """One song of a job."""

    index: int = Field(description="What `/result/{request_id}?index=` takes.")


class Generated(Made):
    """A completed job. What is said of a song is said of the first one."""

    success: bool
    request_id: str
    status: Status
    format: AudioFormat
    content_type: str
    params_json: dict[str, Any] = Field(
        description="The complete request, which the published interface can load, too. POST it again for the same "
        "music."
    )
    outputs: list[Output] = Field(description="All songs.")
    audio: str | None = Field(None, description="The song as base64. Only of `/result`.")
    ignored_fields: list[str] | None = Field(
        None, description="Fields of the request that mean nothing here. Only in the answer to a request for a song."
    )


class MadeByGenerate(Answer):
    """A song as `/generate` answers it: under the names that clients of the published servers read."""

    success: bool
    status: str = Field(description="success")
    message: str
    request_id: str
    output_path: str
    audio_path: str
    path: str
    prompt: str
    seed: Seed
    sample_rate: int
    params_json: dict[str, Any]
    ignored_fields: list[str]


class JobProgress(Answer):
    stage: str
    step: int
    steps: int


class Job(Answer):
    """A job as it stands. Times are Unix seconds."""

    request_id: str
    status: Status
    outcome: Outcome | None = Field(description="How it ended; null while it has not.")
    created_at: float
    started_at: float | None
    completed_at: float | None
    position: int | None = Field(description="How many waiting jobs come before it.")
    expected_wait_s: float | None = Field(description="Until it starts, judged by the last jobs that ended.")
    remaining_s: float | None = Field(description="Of diffusion, judged by the steps so far.")
    progress: JobProgress | None
    format: AudioFormat
    seed: Seed
    params_json: dict[str, Any]
    error: str | None
    error_code: str | None
    result: Generated | None = Field(None, description="Only when completed.")


class Queue(Answer):
    queue_size: int = Field(description="Jobs that wait.")
    status_counts: dict[Status, int]
    total_requests: int
    priority_counts: dict[int, int] = Field(description="Those that wait, by priority.")
    expected_wait_s: float = Field(description="How long one more job would wait, judged by the last that ended.")
    replicas: int = Field(description="Generators that are there now.")


class Cancelled(Answer):
    success: bool
    request_id: str
    status: Status
    outcome: Outcome | None
    message: str


class LyricLine(Answer):
    """The reading of one line, or of a part of it: structure tags and words of different languages are listed apart."""

    number: int = Field(
        description="From 1, as sent; blank lines count and are not listed, nor are headers of LRC and subtitle files. "
        "The parts of a line have the same number."
    )
    text: str = Field(description="Without invisible characters, and with letters and quotes as the model knows them.")
    language: str
    source: str = Field(description="Why it has this language: tag (of structure: English), given or detected.")
    spelling: str = Field(description="Numbers, abbreviations and foreign letters spelled out.")
    ids: list[int]
    notes: list[str] = Field(
        description="Sentences on markup and times that were left out, on headings that were read as structure tags, "
        "and on brackets and headings that are read as words, such as `(Chorus)` or `[Verse 1]`."
    )
    tokens: list[str] = Field(description="What the ids stand for.")


class LyricsRead(Answer):
    """How lyrics were read."""

    model: str
    vocal_language: str | None
    instrumental: bool = Field(description="Whether there is no word to sing, beside structure tags.")
    total: int = Field(description="All tokens, also those between lines.")
    limit: int = Field(description="Over so many, no song can be made.")
    lines: list[LyricLine]


class Initialized(Answer):
    success: bool
    message: str
    model: str
    notice: str | None
    ignored_fields: list[str] = Field(description="Fields of the request that mean nothing here.")


class Lora(Answer):
    """A registered LoRA adapter."""

    name: str
    digest: str = Field(description="The sha256 of its files.")
    rank: int = Field(description="The largest of its modules.")
    modules: list[str] = Field(description="The kinds of modules it adapts.")
    bytes: int


class LoraList(Answer):
    loras: list[Lora]


class LoraRemoved(Answer):
    success: bool
    name: str
    message: str


class SampleFields(Answer):
    prompt: str
    lyrics: str
    audio_duration: float
    infer_step: int
    guidance_scale: float


class SampleData(Answer):
    success: bool
    sample: SampleFields


class Health(Answer):
    status: str = Field(description="healthy, loading, idle, starting or unreachable")
    pipeline_loaded: bool
    model: str | None
    notice: str | None = Field(description="What to know about this model, e.g. that it knows no voices.")
    device: str | None
    replicas: int = Field(description="Generator replicas with a model in memory.")
    queue_size: int
    version: str


class ServiceState(Health):
    initialized: bool


class WrongField(Answer):
    field: str
    problem: str


class Problem(Answer):
    """An error (RFC 9457), with the members that older clients read."""

    type: str
    title: str
    status: int
    detail: str
    success: bool
    error_message: str
    code: str = Field(description="A stable word for programs.")
    request_id: str
    errors: list[WrongField] | None = Field(None, description="The wrong fields, when there are any.")


Documented = dict[str, Any]

ACCEPTED: Documented = {"model": Accepted, "description": "Accepted, with `Prefer: respond-async`."}
QUEUED: Documented = {"model": Accepted, "description": "Accepted; the job goes on."}
MADE_BY_GENERATE: Documented = {"model": MadeByGenerate, "description": "The song is made."}
GENERATED: Documented = {"model": Generated, "description": "The song is made."}
JOB: Documented = {"model": Job, "description": "The job."}
EVENTS: Documented = {
    "description": "The job's events, as they come.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
QUEUE: Documented = {"model": Queue, "description": "The queue."}
CANCELLED: Documented = {"model": Cancelled, "description": "Cancelled, now or before."}
LYRICS_READ: Documented = {"model": LyricsRead, "description": "Line by line."}
INITIALIZED: Documented = {"model": Initialized, "description": "The model is loaded."}
LORA: Documented = {"model": Lora, "description": "The adapter is registered."}
LORAS: Documented = {"model": LoraList, "description": "The registered adapters."}
LORA_REMOVED: Documented = {"model": LoraRemoved, "description": "No request may name it any more."}
SAMPLE: Documented = {"model": SampleData, "description": "An idea."}
INITIAL: Documented = {"model": ServiceState, "description": "How the service stands."}
HEALTH: Documented = {"model": Health, "description": "Ready (200) or not (503)."}

_BINARY = {"schema": {"type": "string", "format": "binary"}}
AUDIO: Documented = {
    "description": "The audio, 48 kHz stereo, with `X-Request-ID`, `X-Seed` and `X-Model`.",
    "content": dict.fromkeys(("audio/wav", "audio/mpeg", "audio/ogg", "audio/flac"), _BINARY),
}
SONGS: Documented = {
    "description": AUDIO["description"] + " Of a batch the first song, or all of them as zip or multipart.",
    "content": AUDIO["content"] | dict.fromkeys(("application/zip", "multipart/mixed"), _BINARY),
}
_INDEX = {
    "name": "index",
    "in": "query",
    "schema": {"type": "integer", "minimum": 0, "default": 0},
    "description": "Which song of a batch.",
}
STREAM_QUERY = [_INDEX]
RESULT_QUERY = [
    _INDEX,
    {
        "name": "format",
        "in": "query",
        "schema": {"type": "string", "enum": ["audio", "json", "zip", "multipart"]},
        "description": "What to answer, instead of what `Accept` says; zip and multipart hold all songs.",
    },
]
LYRICS_QUERY = [
    {"name": name, "in": "query", "required": name == "lyrics", "schema": schema, "description": schema["description"]}
    for name, schema in LyricsRequest.model_json_schema()["properties"].items()
]


def _problem(description: str) -> Documented:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}


PROBLEMS: dict[int | str, Documented] = {
    "4XX": _problem("The request cannot be served as it is; `code` and `errors` say why."),
    "5XX": _problem("The service cannot serve it now."),
}


WITH_AUDIO = ("GenerateRequest", "FormRequest", "UploadRequest")  # a multipart body of these may have a file
FORMS_FIRST = ("FormRequest", "UploadRequest")  # /docs shows the first type's form


def takes(schema: str, *, required: bool = True) -> dict[str, Any]:
    """`openapi_extra` of a route whose body has the named schema, in every content type that we read."""
    names = {
        "application/json": schema,
        "multipart/form-data": f"{schema}Parts" if schema in WITH_AUDIO else schema,
        "application/x-www-form-urlencoded": schema,
    }
    types = sorted(names, key=lambda one: one == "application/json") if schema in FORMS_FIRST else [*names]
    content = {one: {"schema": {"$ref": f"#/components/schemas/{names[one]}"}} for one in types}
    return {"requestBody": {"required": required, "content": content}}


def _body_schemas() -> dict[str, Any]:
    generate = GenerateRequest.model_json_schema()
    in_base64 = "Source audio as base64 of the standard alphabet; a data URI is read too."
    generate["properties"]["audio_base64"] = {"type": "string", "format": "byte", "description": in_base64}
    form = copy.deepcopy(generate)
    form |= {"title": "FormRequest", "description": "A song from a form; `genre` is the prompt."}
    form["properties"] = {"genre": form["properties"].pop("prompt"), **form["properties"]}
    form["properties"]["genre"]["default"] = form["properties"]["lyrics"]["default"] = ""
    form["properties"]["infer_step"]["default"] = 27
    form["properties"]["audio_duration"]["default"] = -1
    form["example"] = {"genre": "pop ballad, piano, emotional", "audio_duration": 20, "infer_step": 10}
    upload = copy.deepcopy(generate)
    upload |= {"title": "UploadRequest", "description": "A song from yours; the task is audio2audio if none is named."}
    upload["properties"]["task"]["default"] = "audio2audio"
    del upload["example"]
    schemas = {"GenerateRequest": generate, "FormRequest": form, "UploadRequest": upload}
    return {
        **schemas,
        **{f"{name}Parts": _with_file(name, schema) for name, schema in schemas.items()},
        **{model.__name__: model.model_json_schema() for model in (InitializeRequest, LoraRequest, LyricsRequest)},
    }


def _with_file(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The same as parts of a multipart body, one of which may be a file."""
    file = {"type": "string", "format": "binary", "description": "Source audio. A part called `file` is read as well."}
    parts = {"title": f"{name}Parts", "properties": {"audio_file": file, **schema["properties"]}}
    return {key: value for key, value in schema.items() if key != "example"} | parts


def _drop_unknown_json(described: dict[str, Any]) -> None:
    """Remove the JSON of any kind that FastAPI adds to answers of another type: generated clients would read it."""
    for path in described["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                if len(content) > 1 and content.get("application/json") == {"schema": {}}:
                    del content["application/json"]


def install(app: FastAPI) -> None:
    """Make `app.openapi()` carry the bodies that FastAPI does not know."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                tags=app.openapi_tags,
                routes=app.routes,
            )
            _drop_unknown_json(described)
            components = described.setdefault("components", {})
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            nested = problem.pop("$defs", {})
            components["schemas"] = components.get("schemas", {}) | _body_schemas() | nested | {"Problem": problem}
            components["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            app.openapi_schema = described
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
