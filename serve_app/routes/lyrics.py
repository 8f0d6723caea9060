"""Routes that show how the model reads lyrics."""

from dataclasses import asdict

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve_app.bodies import read_body
from serve_app.openapi import LYRICS_QUERY, LYRICS_READ, PROBLEMS, takes
from serve_app.schemas import LyricsRequest, parse_lyrics
from serve_app.service import body_limits, service_of

router = APIRouter(tags=["Lyrics"])


async def _answer(request: Request, asked: LyricsRequest) -> Response:
    reading = await service_of(request).job_manager.read_lyrics(asked.lyrics, asked.vocal_language)
    return JSONResponse({"vocal_language": asked.vocal_language, **asdict(reading)})


@router.get(
    "/lyrics/tokens",
    summary="Read lyrics",
    response_model=None,
    responses={200: LYRICS_READ, **PROBLEMS},
    openapi_extra={"parameters": LYRICS_QUERY},
)
async def lyrics_tokens_of_query(request: Request) -> Response:
    """Return the language, spelling, tokens and notes of each line, as the model reads it. This makes no song.

    A note names a bracket or a heading that is read as words, such as `(Chorus)`.
    """
    return await _answer(request, parse_lyrics(dict(request.query_params)))


@router.post(
    "/lyrics/tokens",
    summary="Read long lyrics",
    response_model=None,
    responses={200: LYRICS_READ, **PROBLEMS},
    openapi_extra=takes("LyricsRequest"),
)
async def lyrics_tokens(request: Request) -> Response:
    """Read lyrics from a JSON body or a form: they are often too long for an address."""
    service = service_of(request)
    with service.bodies.enter() as room:
        body = await read_body(request, body_limits(service.settings), room)
    return await _answer(request, parse_lyrics(body.fields))
