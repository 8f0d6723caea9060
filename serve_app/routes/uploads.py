"""Routes that make music from a song: audio2audio, where no other task is named."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve_app.intake import Intake
from serve_app.openapi import ACCEPTED, PROBLEMS, QUEUED, SONGS, takes
from serve_app.routes.generate import answer_with_audio, queue

router = APIRouter(tags=["Generate from audio"])

UPLOAD = Intake(save_file=True, usual_task="audio2audio")
UPLOAD_MP3 = Intake(save_file=True, usual_task="audio2audio", audio_format="mp3")
DIRECT_MP3 = Intake(usual_task="audio2audio", audio_format="mp3", ends_with_client=True)


async def queue_upload(request: Request) -> Response:
    """Queues a new song made from yours; `ref_audio_strength` says how much of yours stays. `task` may say another way.

    WAV, AIFF, AU, FLAC, MP3, Ogg Vorbis and Opus are read, judged by their bytes; with the extra `media` also what
    phones and browsers record (M4A, WebM, AAC, ...). Answers a `request_id` for `/status` and `/result`.
    """
    return await queue(request, UPLOAD)


async def queue_upload_mp3(request: Request) -> Response:
    """As the route without `_mp3`, and the result is an MP3 file whatever `format` says."""
    return await queue(request, UPLOAD_MP3)


for path, how in (
    ("/generate_music_with_audio", "as the part `audio_file`"),
    ("/generate_music_with_audio_base64", "as the form field `audio_base64`"),
    ("/generate_music_with_audio_json", "as `audio_base64` in JSON"),
):
    for twin, endpoint, answer in ((path, queue_upload, "a song"), (f"{path}_mp3", queue_upload_mp3, "an MP3")):
        router.add_api_route(
            twin,
            endpoint,
            methods=["POST"],
            name=twin.strip("/"),
            summary=f"Queue {answer} from audio sent {how}",
            response_model=None,
            responses={200: QUEUED, 202: ACCEPTED, **PROBLEMS},
            openapi_extra=takes("UploadRequest"),
        )


@router.post(
    "/generate_music_with_audio_direct_mp3",
    summary="Make an MP3 from your audio and receive it",
    response_model=None,
    responses={200: SONGS, **PROBLEMS},
    openapi_extra=takes("UploadRequest"),
)
async def generate_music_with_audio_direct_mp3(request: Request) -> Response:
    """Waits for the song and answers the MP3 file. The server saves no file in its output folder."""
    return await answer_with_audio(request, DIRECT_MP3)
