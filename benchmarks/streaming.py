"""How soon a song can be heard after its last step, beside how soon all of it is there; in process and over HTTP."""

import time
from dataclasses import replace
from statistics import median

import httpx

from acestep_engine.encode import AudioEncoder
from acestep_engine.params import AUDIO_FORMATS, AudioFormat, GenerationParams, ModelSpec
from acestep_engine.requests import Decoded, Failed, Finished, Inputs, Moved
from benchmarks.engine import BASE, InProcess
from benchmarks.service import request_body, running_server
from benchmarks.tables import print_table

DURATIONS_S = (10.0, 60.0, 240.0)
SONG = replace(BASE, steps=2, guidance_scale=1.0)  # its diffusion is short


def print_tables(spec: ModelSpec, repeats: int) -> None:
    _print_in_process(InProcess(spec), repeats)
    with running_server(spec) as url, httpx.Client(base_url=url, timeout=600.0) as client:
        _print_over_http(client, repeats)


def _print_in_process(maker: InProcess, repeats: int) -> None:
    rows = []
    for duration_s in DURATIONS_S:
        for audio_format in AUDIO_FORMATS:
            params = replace(SONG, duration_s=duration_s)
            taken = [_seconds_after_the_last_step(maker, params, audio_format) for _ in range(repeats + 1)][1:]
            first, whole = (median(column) for column in zip(*taken, strict=True))
            rows.append((f"{duration_s:g} s", audio_format, first * 1e3, whole * 1e3, whole / first))
    columns = ("audio", "format", "first bytes of it ms", "whole file ms", "ratio")
    print_table("After the last step, alone in process; the same thread decodes and encodes", columns, rows)


def _seconds_after_the_last_step(
    maker: InProcess, params: GenerationParams, audio_format: AudioFormat
) -> tuple[float, float]:
    """Until the file's first sound, and until its last byte."""
    maker.engine.add("", params, Inputs(maker.encode(params)))
    encoder: AudioEncoder | None = None
    last_step = first = 0.0
    while True:
        for event in maker.engine.step():
            match event:
                case Moved(progress=progress) if progress.stage == "decoding" and progress.step == 0:
                    last_step = time.perf_counter()
                case Decoded():
                    encoder = encoder or AudioEncoder(audio_format, event.song_samples, {})
                    if encoder.push(event.samples):
                        first = first or time.perf_counter()
                case Finished():
                    assert encoder is not None
                    encoder.finish()
                    return first - last_step, time.perf_counter() - last_step
                case Failed():
                    raise event.error


def _print_over_http(client: httpx.Client, repeats: int) -> None:
    """A song of 60 s as a stream and as a file, in turn. Diffusion is taken off both; all else counts."""
    rows = []
    for audio_format in AUDIO_FORMATS:
        pairs = []
        for number in range(repeats + 1):
            body = request_body(replace(SONG, duration_s=60.0, seed=number)) | {"format": audio_format}
            pairs.append((_first_byte_s(client, body), _whole_file_s(client, body)))
        first, whole = (median(column) for column in zip(*pairs[1:], strict=True))
        rows.append((audio_format, first * 1e3, whole * 1e3, whole / first))
    columns = ("format", "first byte of the stream ms", "whole file ms", "ratio")
    print_table("A song of 60 s over HTTP, without its diffusion", columns, rows)


def _first_byte_s(client: httpx.Client, body: dict[str, object]) -> float:
    started = time.perf_counter()
    with client.stream("POST", "/generate_music_direct", json=body | {"stream": True}) as response:
        response.raise_for_status()
        parts = response.iter_raw()
        next(parts)
        first = time.perf_counter() - started
        for _ in parts:
            pass
    return first - _diffusion_s(client, response)


def _whole_file_s(client: httpx.Client, body: dict[str, object]) -> float:
    started = time.perf_counter()
    response = client.post("/generate_music_direct", json=body).raise_for_status()
    return time.perf_counter() - started - _diffusion_s(client, response)


def _diffusion_s(client: httpx.Client, response: httpx.Response) -> float:
    answer = client.get(f"/result/{response.headers['X-Request-ID']}?format=json").raise_for_status()
    return float(answer.json()["timings"]["diffusion_s"])
