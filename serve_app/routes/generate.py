"""Routes that make music from words."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from acestep_engine.params import OUTPUT_SAMPLE_RATE_HZ
from deployments.messages import AudioFile, JobView
from serve_app.accept import Kind, wanted
from serve_app.batches import batch_response
from serve_app.intake import Intake, read_order, submit, submit_and_wait, wait_for_end
from serve_app.openapi import ACCEPTED, GENERATED, MADE_BY_GENERATE, PROBLEMS, QUEUED, SONGS, takes
from serve_app.responses import accepted_response, audio_response, prefers_async, result_json
from serve_app.service import service_of
from serve_app.streaming import stream_accepted_song, stream_new_song

router = APIRouter(tags=["Generate"])

FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")
INSTRUMENTAL: dict[str, object] = {"prompt": "", "lyrics": ""}  # a form that leaves them out has no words
KEEPS_FILE = Intake(save_file=True)
DIRECT = Intake(ends_with_client=True)
FORM = Intake(defaults={"infer_step": 27, "audio_duration": -1.0, **INSTRUMENTAL})
GENERATE_FORM = Intake(
    save_file=True,
    usual_format="mp3",
    defaults={"infer_step": 50, "audio_duration": -1.0, "use_erg_lyric": True, **INSTRUMENTAL},
)


async def queue(request: Request, intake: Intake) -> Response:
    """Queue songs and answer at once."""
    order = await read_order(request, intake)
    return accepted_response(request, await submit(service_of(request), order), order.ignored)


async def answer_with_audio(request: Request, intake: Intake, kind: Kind | None = None) -> Response:
    """Make songs and answer the first one, or all as zip or multipart.

    The answer waits as long as the song needs. What takes longer than `sync_wait_s` is sent as it is made: the
    connection is in use then, and proxies do not end it.
    """
    kind = kind or wanted(request, "audio", "zip", "multipart")
    service = service_of(request)
    order = await read_order(request, intake, answers_audio=kind == "audio")
    if order.stream:
        return await stream_new_song(request, order)
    with service.waiting.enter():
        answer = await submit_and_wait(service, order, wants_audio=kind == "audio")
        if isinstance(answer, AudioFile):
            return audio_response(request, answer)
        if kind == "audio":
            return await stream_accepted_song(request, order, answer)
        await wait_for_end(service, order, answer)
    return await batch_response(request, answer.request_id, kind)


async def _answer_with_json(
    request: Request, intake: Intake, body_of: Callable[[Request, JobView], dict[str, Any]]
) -> Response:
    """Make songs and answer what is known of them, or that they take longer than an answer waits."""
    service = service_of(request)
    order = await read_order(request, intake)
    with service.waiting.enter():
        view = await submit_and_wait(service, order, wants_audio=False)
    assert isinstance(view, JobView)
    if not view.ended:
        return accepted_response(request, view, order.ignored, "processing")
    return JSONResponse(body_of(request, view) | {"ignored_fields": [*order.ignored]})


@router.post(
    "/generate_music",
    summary="Make a song and wait for it",
    response_model=None,
    responses={200: GENERATED, 202: ACCEPTED, **PROBLEMS},
    openapi_extra=takes("GenerateRequest"),
)
async def generate_music(request: Request) -> Response:
    """Waits for the song and answers where it was saved (`audio_path`), its id and its complete parameters.

    A song that takes longer than the server waits is answered with its `request_id` and the status `processing`: ask
    `/status/{request_id}`, then fetch `/result/{request_id}`. It is made even if the client leaves.

    `Accept: audio/*` is answered with the audio itself, of the first song where there are several; `application/zip`
    and `multipart/mixed` with all of them. `Prefer: respond-async` is answered at once with 202.
    """
    if prefers_async(request):
        return await queue(request, KEEPS_FILE)
    kind = wanted(request, "json", "audio", "zip", "multipart")
    if kind != "json":
        return await answer_with_audio(request, KEEPS_FILE, kind)
    return await _answer_with_json(request, KEEPS_FILE, result_json)


@router.post(
    "/generate_music_direct",
    summary="Make a song and receive the audio",
    response_model=None,
    responses={200: SONGS, **PROBLEMS},
    openapi_extra=takes("GenerateRequest"),
)
async def generate_music_direct(request: Request) -> Response:
    """Waits for the song and answers the audio file. The server saves no file in its output folder.

    With `stream` the answer begins as soon as there is any audio, and goes on while the rest is decoded. A client that
    leaves cancels its song.
    Of a batch it is the first song; `Accept: application/zip` or `multipart/mixed`, or `?format=`, answers all of them.
    """
    return await answer_with_audio(request, DIRECT)


@router.post(
    "/generate_music_async",
    summary="Queue a song",
    response_model=None,
    responses={200: QUEUED, 202: ACCEPTED, **PROBLEMS},
    openapi_extra=takes("GenerateRequest"),
)
async def generate_music_async(request: Request) -> Response:
    """Answers at once with a `request_id` for `/status`, `/result` and `DELETE /request`.

    200, or 202 with `Prefer: respond-async`: the job is accepted either way.
    """
    return await queue(request, KEEPS_FILE)


@router.post(
    "/generate_music_form",
    summary="Make a song from a form and receive the audio",
    response_model=None,
    responses={200: SONGS, **PROBLEMS},
    openapi_extra=takes("FormRequest"),
)
async def generate_music_form(request: Request) -> Response:
    """The form of old clients: `genre` is the prompt; without `lyrics` the song has none, without a duration one is
    drawn, and 27 steps are made. Answers audio. A client that leaves does not cancel its song."""
    return await answer_with_audio(request, FORM)


@router.post(
    "/generate",
    summary="Make a song as other ACE-Step servers do",
    response_model=None,
    responses={200: MADE_BY_GENERATE, **PROBLEMS},
    openapi_extra=takes("GenerateRequest"),
)
async def generate(request: Request) -> Response:
    """For clients of the published `infer-api.py` and `trainer-api.py`, which send JSON and read JSON, and of
    `ace_server.py`, which send a form and read an MP3. `Accept: audio/*` is answered with audio in any case.

    A form has defaults of its own: MP3, 50 steps, a drawn length, `use_erg_lyric` true, no prompt and no lyrics.
    """
    from_form = request.headers.get("content-type", "").partition(";")[0].strip().lower() in FORM_TYPES
    kind = wanted(request, "audio" if from_form else "json", "json", "audio")
    intake = GENERATE_FORM if from_form else KEEPS_FILE
    if kind == "audio":
        return await answer_with_audio(request, intake, kind)
    return await _answer_with_json(request, intake, _generate_json)


def _generate_json(request: Request, view: JobView) -> dict[str, Any]:
    """A completed job under all names that clients of the published servers read."""
    result = result_json(request, view)
    path = result["audio_path"]
    return {
        "success": True,
        "status": "success",
        "message": "Audio generated successfully",
        "request_id": view.request_id,
        "output_path": path,
        "audio_path": path,
        "path": path,
        "prompt": view.songs[0].prompt,
        "seed": result["seed"],
        "sample_rate": OUTPUT_SAMPLE_RATE_HZ,
        "params_json": result["params_json"],
    }
