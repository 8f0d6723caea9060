"""The engine with other models: the tiny checkpoint of the golden figures, and one of middle size."""

import json
from dataclasses import replace
from statistics import median

from acestep_engine.devices import pick_device
from acestep_engine.engine import Engine
from acestep_engine.params import ModelSpec
from acestep_engine.requests import Inputs
from benchmarks.engine import BASE, InProcess, print_decoding, print_mix, print_repeated_prompt, print_stages
from benchmarks.random_weights import GOLDEN, any_conditioning, random_engine, tiny_checkpoint
from benchmarks.tables import print_table

SONG = replace(BASE, duration_s=20.0, steps=27)
MID_SIZE = {"num_layers": 20, "inner_dim": 512, "num_attention_heads": 8, "attention_head_dim": 64}


def print_tables(_: ModelSpec, repeats: int) -> None:
    """Always of these two, whichever checkpoint the other parts measure."""
    with tiny_checkpoint() as path:
        tiny = ModelSpec("tiny", str(path))
        print("The tiny checkpoint (tests/golden/manifest-tiny.json), in process:\n")
        maker = InProcess(tiny)
        print_stages(maker, [(SONG.duration_s, SONG.steps)], repeats)
        print_mix(maker, repeats)
        print_repeated_prompt(tiny, repeats)
        print_decoding(maker, repeats)
    _print_mid_size(repeats)


def _print_mid_size(repeats: int) -> None:
    """20 layers of 512 with the published lyric encoder. Its decoder is the tiny one and not measured."""
    engine = _mid_size_engine()
    conditioning = any_conditioning(engine)
    songs = [engine.generate(replace(SONG, seed=seed), Inputs(conditioning)) for seed in range(repeats + 1)][1:]
    taken = median(song.timings.diffusion_s for song in songs)
    layers, width = MID_SIZE["num_layers"], MID_SIZE["inner_dim"]
    title = f"A model of middle size, {layers} layers of {width}, random weights: denoising"
    print_table(title, ("audio", "steps", "s"), [(f"{SONG.duration_s:g} s", SONG.steps, taken)])


def _mid_size_engine() -> Engine:
    manifest = json.loads((GOLDEN / "manifest-tiny.json").read_text())
    manifest["ace_step_transformer"]["config"] |= MID_SIZE
    return random_engine(manifest, ModelSpec("mid-size", ""), pick_device())
