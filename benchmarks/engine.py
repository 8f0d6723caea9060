"""The engine in this process: stages of single songs, songs that share forwards, short songs among long ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np
import torch

from acestep_engine.conditioning import Conditioning, EncodeRequest
from acestep_engine.decode import decode_latents
from acestep_engine.encode import encode_audio
from acestep_engine.engine import Engine
from acestep_engine.lanes import Lanes
from acestep_engine.live_request import Unit
from acestep_engine.params import GenerationParams, ModelSpec
from acestep_engine.requests import Event, Failed, Finished, Inputs, Moved, Song, songs_of
from acestep_engine.text_encoder import TextEncoder
from benchmarks.tables import percentile, print_table

LYRICS = "[verse]\nThe kettle hums a quarter note\nThe window learns the rain by rote"
BASE = GenerationParams("calm jazz, piano, brushes, 90 BPM", LYRICS, 10.0, seed=1)
SONGS = [(10.0, 27), (10.0, 60), (20.0, 27), (30.0, 27), (60.0, 27)]  # seconds, steps
MIX = [(10.0, 27), (20.0, 60), (30.0, 27), (10.0, 60), (20.0, 27), (30.0, 60), (10.0, 27), (20.0, 27)]
SHORT = replace(BASE, steps=27)
LONG = replace(BASE, duration_s=240.0, steps=27)
LONG_SONGS = 4
SHORT_SONGS = 20


def print_tables(spec: ModelSpec, repeats: int) -> None:
    maker = InProcess(spec)
    print(f"up to {maker.engine.calibration.max_tokens} tokens share a forward\n")
    print_stages(maker, SONGS, repeats)
    print_mix(maker, repeats)
    print_repeated_prompt(spec, repeats)
    _print_short_among_long(maker)
    print_decoding(maker, repeats)


class InProcess:
    """Everything the service does to make a song, without HTTP and Ray. It has one lane, unless others are given."""

    def __init__(self, spec: ModelSpec, cache_entries: int = 512, lanes: Lanes[Unit] | None = None) -> None:
        self._lanes = lanes = lanes or Lanes()
        self.engine = lanes.call(lambda: Engine.load(spec, lanes=lanes))
        self.text_encoder = lanes.call(lambda: TextEncoder.load(spec, cache_entries=cache_entries))

    def encode(self, params: GenerationParams) -> Conditioning:
        return self._lanes.call(lambda: self.text_encoder.encode([EncodeRequest.of_song(params)])[0])

    def add(self, request_id: str, params: GenerationParams) -> None:
        """Have the engine begin a song."""
        self.engine.add(request_id, params, Inputs(self.encode(params)))

    def make(self, params: GenerationParams) -> tuple[float, float, float, float]:
        """Make a WAV file. Answers seconds of encoding, diffusion, decoding and writing."""
        started = time.perf_counter()
        conditioning = self.encode(params)
        encoded = time.perf_counter()
        song = self.engine.generate(params, Inputs(conditioning))
        generated = time.perf_counter()
        encode_audio(song.audio, "wav", {"prompt": params.prompt})
        timings = song.timings
        return encoded - started, timings.diffusion_s, timings.decode_s, time.perf_counter() - generated


def print_stages(maker: InProcess, songs: Sequence[tuple[float, int]], repeats: int) -> None:
    """Single songs of so many seconds and steps, stage by stage."""
    rows = []
    for duration_s, steps in songs:
        params = replace(BASE, duration_s=duration_s, steps=steps)
        maker.make(params)  # the first run of a shape pays for allocations
        taken = [maker.make(params) for _ in range(repeats)]
        stages = [median(column) for column in zip(*taken, strict=True)]
        rows.append((f"{duration_s:g} s", steps, *stages, sum(stages), duration_s / sum(stages)))
    columns = ("audio", "steps", "encode s", "diffusion s", "decode s", "write s", "song s", "audio s per s")
    print_table("One song at a time", columns, rows)


def print_mix(maker: InProcess, repeats: int) -> None:
    """The same eight requests, one after the other and together, in turn; decoding costs the same in both."""
    requests = [
        replace(BASE, prompt=f"{BASE.prompt}, take {seed}", duration_s=duration_s, steps=steps, seed=seed)
        for seed, (duration_s, steps) in enumerate(MIX, start=1)
    ]
    conditionings = [maker.encode(params) for params in requests]
    alone: list[tuple[float, float, float]] = []
    together: list[tuple[float, float, float]] = []
    worst = 0.0
    for number in range(repeats + 1):
        singles, *taken = _one_after_the_other(maker.engine, requests, conditionings)
        shared, *taken_together = _at_once(maker.engine, requests, conditionings)
        if number:  # the first round warms up
            alone.append((taken[0], taken[1], sum(taken)))
            together.append((taken_together[0], taken_together[1], sum(taken_together)))
        worst = max(worst, *(_error(one, other) for one, other in zip(shared, singles, strict=True)))
    rows = []
    for name, index in (("denoising", 0), ("decoding", 1), ("whole songs", 2)):
        one, other = (median(run[index] for run in runs) for runs in (alone, together))
        rows.append((name, one, other, one / other))
    columns = ("stage", "one after the other s", "together s", "ratio")
    print_table("Eight songs of 10, 20, 30 s in 27 and 60 steps", columns, rows)
    print(f"Largest relative error of a song's latents, together against alone: {worst:.1e}\n")


def _one_after_the_other(
    engine: Engine, requests: Sequence[GenerationParams], conditionings: Sequence[Conditioning]
) -> tuple[list[Song], float, float]:
    """The songs, and seconds of denoising and of decoding."""
    songs = [engine.generate(params, Inputs(one)) for params, one in zip(requests, conditionings, strict=True)]
    return songs, sum(song.timings.diffusion_s for song in songs), sum(song.timings.decode_s for song in songs)


def _at_once(
    engine: Engine, requests: Sequence[GenerationParams], conditionings: Sequence[Conditioning]
) -> tuple[list[Song], float, float]:
    """As `_one_after_the_other`, of the device's time: steps and windows of different songs alternate."""
    for number, (params, conditioning) in enumerate(zip(requests, conditionings, strict=True)):
        engine.add(str(number), params, Inputs(conditioning))
    told: list[Event] = []
    seconds = {"diffusion": 0.0, "decoding": 0.0}
    while engine.busy:
        started = time.perf_counter()
        events = engine.step()
        first = events[0]  # a step that denoises tells of the forward first
        seconds[first.progress.stage if isinstance(first, Moved) else "decoding"] += time.perf_counter() - started
        told += events
        for event in events:
            if isinstance(event, Failed):
                raise event.error
    songs = songs_of(told)
    return [songs[str(number)] for number in range(len(requests))], seconds["diffusion"], seconds["decoding"]


def _error(found: Song, expected: Song) -> float:
    return float(np.linalg.norm(found.latents - expected.latents) / np.linalg.norm(expected.latents))


def print_repeated_prompt(spec: ModelSpec, repeats: int) -> None:
    """Encoding prompt and lyrics to a context: new ones, and the same with another seed."""
    maker = InProcess(spec)

    def encode(params: GenerationParams) -> None:
        with torch.inference_mode():
            maker.engine.contexts.build(params, maker.encode(params))

    new, again = [], []
    for number in range(repeats + 1):
        params = replace(BASE, prompt=f"{BASE.prompt}, take {number}", lyrics=f"{LYRICS}\ntake {number}")
        new.append(_seconds(partial(encode, params)) * 1e3)
        again.append(_seconds(partial(encode, replace(params, seed=2))) * 1e3)
    row = (median(new[1:]), median(again[1:]), median(new[1:]) / median(again[1:]))
    print_table("Encoding", ("new prompt ms", "the same with another seed ms", "ratio"), [row])


def _print_short_among_long(maker: InProcess) -> None:
    """Short songs that come one at a time while long ones fill the engine, against first come, first served."""
    engine, conditioning = maker.engine, maker.encode(BASE)
    songs = [replace(SHORT, seed=seed) for seed in range(6)]
    own = [_seconds(partial(engine.generate, song, Inputs(conditioning))) for song in songs][1:]  # the first warms up
    for number in range(LONG_SONGS):
        engine.add(f"long {number}", replace(LONG, seed=number), Inputs(conditioning))
    for _ in range(5):
        engine.step()
    among = []
    for seed in range(SHORT_SONGS):
        if not engine.busy:  # the long ones are through: they were not starved
            break
        started = time.perf_counter()
        engine.add("short", replace(SHORT, seed=seed), Inputs(conditioning))
        while not any(isinstance(event, Finished) and event.request_id == "short" for event in engine.step()):
            pass
        among.append(time.perf_counter() - started)
        engine.step()  # a pause, in which the long ones go on
    for number in range(LONG_SONGS):
        engine.abort(f"long {number}")
    started = time.perf_counter()
    for number in range(LONG_SONGS):
        engine.generate(replace(LONG, seed=number), Inputs(conditioning))
    engine.generate(SHORT, Inputs(conditioning))
    first_come = time.perf_counter() - started
    alone = median(own)
    rows = [
        ("alone", len(own), alone, max(own), 1.0),
        (
            f"among {LONG_SONGS} of 240 s",
            len(among),
            median(among),
            percentile(among, 95),
            percentile(among, 95) / alone,
        ),
        (f"behind {LONG_SONGS} of 240 s, first come, first served", 1, first_come, first_come, first_come / alone),
    ]
    columns = ("a song of 10 s in 27 steps", "songs", "p50 s", "p95 s", "p95 / alone")
    print_table("Short songs among long ones", columns, rows)


def print_decoding(maker: InProcess, repeats: int) -> None:
    """Seconds of decoding 20 s of random latents."""
    engine = maker.engine
    latents = torch.randn(8, 16, 215, generator=torch.Generator().manual_seed(0))
    decode_latents(engine.autoencoder, latents)
    taken = [_seconds(partial(decode_latents, engine.autoencoder, latents)) for _ in range(repeats)]
    print_table("Decoding 20 s", ("s", "audio s per s"), [(median(taken), 20.0 / median(taken))])


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
