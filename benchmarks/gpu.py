"""The full-size model with random weights on one GPU, in percent of what its arithmetic would take at the GPU's peak.

    python -m benchmarks.gpu [--manifest FILE] [--compile] [--graphs on|off] [--device cpu]

The peak is measured in the same run, as the rate of a large matrix product. `--manifest tests/golden/manifest-tiny.json
--device cpu` tries the script where there is no GPU.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from acestep_engine.batch import Share
from acestep_engine.decode import decode_latents
from acestep_engine.devices import describe_device, pick_device, synchronize
from acestep_engine.engine import Engine
from acestep_engine.model.config import TransformerConfig
from acestep_engine.params import GenerationParams, ModelSpec, latent_frames
from acestep_engine.requests import Failed, Finished, Inputs
from acestep_engine.tasks.state import Query
from benchmarks.random_weights import GOLDEN, LYRIC_TOKENS, PROMPT_TOKENS, any_conditioning, random_engine
from benchmarks.tables import print_table

MANIFEST = GOLDEN / "manifest-v1-3.5b.json"
DURATIONS_S = (30.0, 60.0, 240.0)
ROWS = (1, 2, 4, 8)
CALLERS = (1, 4, 16, 64)
MIX = ((10.0, 27), (30.0, 60), (60.0, 27), (60.0, 60))  # seconds, steps of the callers' songs, in turn
SONG = GenerationParams("", "", 60.0, seed=1, steps=60)
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help="sizes of the model (those of v1-3.5b)")
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--graphs", choices=("on", "off"), help="CUDA graphs for all forwards or none (a trial says)")
    parser.add_argument("--device", help="cuda or cpu (the GPU if there is one)")
    args = parser.parse_args()
    device = pick_device(args.device)
    graphs = None if args.graphs is None else args.graphs == "on"
    spec = ModelSpec("random", "", torch_compile=args.compile, cuda_graphs=graphs)
    engine = random_engine(json.loads(args.manifest.read_text()), spec, device)
    peak = _measured_peak(device, engine.dtype)
    print(f"{describe_device(device)}, torch {torch.__version__}, {engine.dtype}, compiled: {args.compile}")
    recorded = 0 if engine.batch.graphed is None else engine.batch.graphed.most_tokens
    print(f"{peak / 1e12:.1f} TFLOP/s in a large matrix product; {engine.calibration}")
    print(f"forwards of up to {recorded} tokens are CUDA graphs\n")
    with torch.inference_mode():
        _print_forwards(engine, peak)
    _print_song(engine, peak)
    _print_decoding(engine)
    _print_traffic(engine, peak)


def forward_flop(config: TransformerConfig, tokens: int, context: int) -> float:
    """Arithmetic of one forward of one row with keys and values of its context kept: two per multiplication."""
    dim, inner = config.dim, config.num_attention_heads * config.attention_head_dim
    hidden = int(dim * config.mlp_ratio)
    attention = 4 * dim * inner + 2 * inner * config.attention_head_dim
    cross_attention = 2 * dim * inner + 2 * context * inner
    feed_forward = 3 * dim * hidden + 6 * hidden
    return 2.0 * tokens * config.num_layers * (attention + cross_attention + feed_forward)


def _print_forwards(engine: Engine, peak: float) -> None:
    rows = []
    for duration_s in DURATIONS_S:
        frames = latent_frames(duration_s)
        latents = torch.randn(8, 16, frames, device=engine.device)
        context = engine.contexts.build(replace(SONG, guidance_scale=1.0), any_conditioning(engine))
        floor_s = forward_flop(engine.transformer.config, frames, 1 + PROMPT_TOKENS + LYRIC_TOKENS) / peak
        for count in ROWS:
            shares = [Share((Query(latents, 500.0, 0),), context)] * count
            taken = _seconds(partial(engine.batch.forward, shares), engine.device)
            rows.append((f"{duration_s:g} s", count, taken * 1e3, count * floor_s * 1e3, 100 * count * floor_s / taken))
    print_table("One forward", ("audio", "rows", "ms", "floor ms", "percent of the floor"), rows)


def _print_song(engine: Engine, peak: float) -> None:
    rows = []
    for steps in (27, 60):
        params = replace(SONG, steps=steps)
        engine.generate(params, Inputs(any_conditioning(engine)))
        songs = [engine.generate(params, Inputs(any_conditioning(engine))) for _ in range(REPEATS)]
        denoising = median(song.timings.diffusion_s for song in songs)
        decoding = median(song.timings.decode_s for song in songs)
        floor_s = _song_floor_s(engine, params, peak)
        total = denoising + decoding
        rows.append((steps, denoising, decoding, total, 60 / total, floor_s, 100 * floor_s / total))
    columns = ("steps", "denoising s", "decoding s", "song s", "times real time", "floor s", "percent of the floor")
    print_table("One song of 60 s, alone; the floor leaves decoding out", columns, rows)


def _print_decoding(engine: Engine) -> None:
    rows = []
    for duration_s in DURATIONS_S:
        latents = torch.randn(8, 16, latent_frames(duration_s), device=engine.device)
        taken = _seconds(partial(decode_latents, engine.autoencoder, latents), engine.device)
        rows.append((f"{duration_s:g} s", taken, duration_s / taken))
    print_table("Decoding", ("audio", "s", "audio s per s"), rows)


def _print_traffic(engine: Engine, peak: float) -> None:
    """Callers that ask for the next song as soon as they have one, each four songs of the mix."""
    rows = []
    for callers in CALLERS:
        requests = [
            [replace(SONG, duration_s=duration_s, steps=steps, seed=caller) for duration_s, steps in _turned(caller)]
            for caller in range(callers)
        ]
        everything = [params for of_one in requests for params in of_one]
        started = time.perf_counter()
        _serve(engine, requests)
        elapsed = time.perf_counter() - started
        audio_s = sum(params.duration_s for params in everything)
        floor_s = sum(_song_floor_s(engine, params, peak) for params in everything)
        rows.append((callers, len(everything), elapsed, audio_s / elapsed, 100 * floor_s / elapsed))
    columns = ("callers", "songs", "s", "audio s per s", "percent of the floor")
    print_table("Mixed traffic; the floor leaves decoding out", columns, rows)


def _turned(caller: int) -> Sequence[tuple[float, int]]:
    turn = caller % len(MIX)
    return MIX[turn:] + MIX[:turn]


def _serve(engine: Engine, requests: Sequence[Sequence[GenerationParams]]) -> None:
    waiting = [list(of_one) for of_one in requests]
    for caller, of_one in enumerate(waiting):
        engine.add(str(caller), of_one.pop(0), Inputs(any_conditioning(engine)))
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            of_caller = waiting[int(event.request_id)]
            if isinstance(event, Finished) and of_caller:
                engine.add(event.request_id, of_caller.pop(0), Inputs(any_conditioning(engine)))


def _song_floor_s(engine: Engine, params: GenerationParams, peak: float) -> float:
    """Seconds that the arithmetic of denoising takes at the peak: one row a step, two where it is guided."""
    rows = params.steps + int(params.steps * 0.75) - int(params.steps * 0.25)
    frames = latent_frames(params.duration_s)
    return rows * forward_flop(engine.transformer.config, frames, 1 + PROMPT_TOKENS + LYRIC_TOKENS) / peak


def _measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / _seconds(lambda: a @ b, device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of some runs, after two that warm up."""
    taken = []
    for _ in range(REPEATS + 2):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return median(taken[2:])


if __name__ == "__main__":
    main()
