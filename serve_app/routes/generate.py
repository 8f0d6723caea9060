"""Routes that make music from words."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from deployments.messages import AudioFile, JobView
from serve_app.batches import batch_response
from serve_app.intake import Intake, read_order, submit, submit_and_wait
from serve_app.openapi import ACCEPTED, GENERATED, PROBLEMS, SONGS, takes
from serve_app.responses import Kind, accepted_response, audio_response, result_json, wanted
from serve_app.streaming import stream_new_song

router = APIRouter(tags=["Generate"])

KEEPS_FILE = Intake(save_file=True)
DIRECT = Intake()
FORM = Intake(defaults={"infer_step": 27, "audio_duration": -1.0}, renamed={"genre": "prompt"})


def prefers_async(request: Request) -> bool:
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    return any(one.partition(";")[0].strip() == "respond-async" for one in preferences)


async def answer_with_audio(request: Request, intake: Intake, kind: Kind | None = None) -> Response:
    """Make songs and answer the first one, or all as zip or multipart; 202 when they take longer than a route waits."""
    kind = kind or wanted(request, "audio", "zip", "multipart")
    order = await read_order(request, intake, can_stream=kind == "audio")
    if order.stream:
        return await stream_new_song(request, order.submission)
    answer = await submit_and_wait(request, order.submission, wants_audio=kind == "audio")
    if isinstance(answer, AudioFile):
        return audio_response(request, answer)
    if not answer.ended:
        return accepted_response(request, answer, answer.status)
    return await batch_response(request, answer.request_id, kind)


@router.post(
    "/generate_music",
    summary="Make a song and wait for it",
    response_model=None,
    responses={200: GENERATED, 202: ACCEPTED, **PROBLEMS},
    openapi_extra=takes("GenerateRequest"),
)
async def generate_music(request: Request) -> Response:
    """Waits for the song and answers where it was saved (`audio_path`), its id and its complete parameters.

    `Accept: audio/*` is answered with the audio itself, of the first song where there are several; `application/zip`
    and `multipart/mixed` with all of them. `Prefer: respond-async` is answered at once with 202, and so
    is a song that takes longer than the server waits: ask `/status/{request_id}`, then fetch `/result/{request_id}`.
    A client that disconnects cancels its song.
    """
    if prefers_async(request):
        return accepted_response(request, await submit(request, KEEPS_FILE), preferred=True)
    kind = wanted(request, "json", "audio", "zip", "multipart")
    if kind != "json":
        return await answer_with_audio(request, KEEPS_FILE, kind)
    order = await read_order(request, KEEPS_FILE)
    view = await submit_and_wait(request, order.submission, wants_audio=False)
    assert isinstance(view, JobView)
    if not view.ended:
        return accepted_response(request, view, view.status)
    return JSONResponse(result_json(request, view))


@router.post(
    "/generate_music_direct",
    summary="Make a song and receive the audio",
    response_model=None,
    responses={200: SONGS, 202: ACCEPTED, **PROBLEMS},
    openapi_extra=takes("GenerateRequest"),
)
async def generate_music_direct(request: Request) -> Response:
    """Waits for the song and answers the audio file. The server saves no file in its output folder.

    With `stream` the answer begins as soon as there is any audio, and goes on while the rest is decoded.
    Of a batch it is the first song; `Accept: application/zip` or `multipart/mixed`, or `?format=`, answers all of them.
    """
    return await answer_with_audio(request, DIRECT)


@router.post(
    "/generate_music_async",
    summary="Queue a song",
    status_code=202,
    response_model=None,
    responses={202: ACCEPTED, **PROBLEMS},
    openapi_extra=takes("GenerateRequest"),
)
async def generate_music_async(request: Request) -> Response:
    """Answers at once with a `request_id` for `/status`, `/result` and `DELETE /request`."""
    return accepted_response(request, await submit(request, KEEPS_FILE))


@router.post(
    "/generate_music_form",
    summary="Make a song from a form and receive the audio",
    response_model=None,
    responses={200: SONGS, 202: ACCEPTED, **PROBLEMS},
    openapi_extra=takes("FormRequest"),
)
async def generate_music_form(request: Request) -> Response:
    """The form of old clients: `genre` is the prompt, the defaults are 27 steps and a drawn length. Answers audio."""
    return await answer_with_audio(request, FORM)
