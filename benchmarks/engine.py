"""The engine in this process: seconds of each stage, and seconds of audio per second."""

import time
from dataclasses import replace
from statistics import median

from acestep_engine.audio import encode_audio
from acestep_engine.conditioning import EncodeRequest
from acestep_engine.engine import Engine
from acestep_engine.params import OUTPUT_SAMPLE_RATE_HZ, GenerationParams, ModelSpec
from acestep_engine.text_encoder import TextEncoder
from benchmarks.tables import print_table

LYRICS = "[verse]\nThe kettle hums a quarter note\nThe window learns the rain by rote"
BASE = GenerationParams("calm jazz, piano, brushes, 90 BPM", LYRICS, 10.0, seed=1)
SONGS = [(10.0, 27), (10.0, 60), (30.0, 27), (60.0, 27)]  # seconds, steps


def print_tables(spec: ModelSpec, repeats: int) -> None:
    maker = InProcess(spec)
    rows = []
    for duration_s, steps in SONGS:
        params = replace(BASE, duration_s=duration_s, steps=steps)
        maker.make(params)  # the first run of a shape pays for allocations
        taken = [maker.make(params) for _ in range(repeats)]
        stages = [median(column) for column in zip(*taken, strict=True)]
        rows.append((f"{duration_s:g} s", steps, *stages, sum(stages), duration_s / sum(stages)))
    columns = ("audio", "steps", "encode s", "diffusion s", "decode s", "write s", "song s", "audio s per s")
    print_table("The engine in process, one song at a time", columns, rows)


class InProcess:
    """Everything the service does to make a song, without HTTP and Ray."""

    def __init__(self, spec: ModelSpec) -> None:
        self.engine = Engine.load(spec)
        self.text_encoder = TextEncoder.load(spec, cache_entries=0)

    def make(self, params: GenerationParams) -> tuple[float, float, float, float]:
        """Make a WAV file. Answers seconds of encoding, diffusion, decoding and writing."""
        started = time.perf_counter()
        conditioning = self.text_encoder.encode([EncodeRequest(params.prompt, params.lyrics, params.weakens_text)])[0]
        encoded = time.perf_counter()
        song = self.engine.generate(params, conditioning)
        generated = time.perf_counter()
        encode_audio(song.audio, OUTPUT_SAMPLE_RATE_HZ, "wav", {"prompt": params.prompt})
        timings = song.timings
        return encoded - started, timings.diffusion_s, timings.decode_s, time.perf_counter() - generated
