#!/usr/bin/env python3
"""Compare the engine with figures of the published pipeline.

    tests/parity.py CHECKPOINT CASES [--only NAME ...]

CHECKPOINT is a folder that tests/golden/make_checkpoint.py wrote, CASES a folder of the form of tests/golden/cases/
made with the same checkpoint. Prints a line per figure: name, relative error, tolerance, verdict. Exits with 1 if any
figure fails.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from acestep_engine import guidance, samplers
from acestep_engine.audio import AudioLimits, SourceAudio, read_audio
from acestep_engine.batch import Batch, Share
from acestep_engine.checkpoint import LYRIC_VOCABULARY
from acestep_engine.conditioning import EncodeRequest
from acestep_engine.decode import decode_latents
from acestep_engine.engine import Engine
from acestep_engine.lyrics import LyricTokenizer
from acestep_engine.model.packing import Packing
from acestep_engine.model.transformer import Transformer
from acestep_engine.params import MODEL_SAMPLE_RATE_HZ, SCHEDULERS, GenerationParams, ModelSpec
from acestep_engine.requests import Inputs
from acestep_engine.samplers import SamplerState
from acestep_engine.tasks.state import Query
from acestep_engine.text_encoder import TextEncoder

EXACT = 0.0
MODULE = 1e-5
GENERATION = 2e-3

# What the figures in guidance.safetensors and schedulers.safetensors were made with.
APG_SCALE, CFG_SCALE, DOUBLE_SCALES = 15.0, 7.0, (5.0, 1.5)
WALK_STEPS, WALK_OMEGA, WALK_SEED = 5, 10.0, 3

# Arguments of the published call, and their names here. Its defaults that differ from GenerationParams' follow.
PUBLISHED_NAMES = {
    "prompt": "prompt",
    "lyrics": "lyrics",
    "audio_duration": "duration_s",
    "infer_step": "steps",
    "scheduler_type": "scheduler",
    "cfg_type": "cfg_type",
} | {
    name: name
    for name in (field.name for field in fields(GenerationParams))
    if name.startswith(("guidance", "use_erg"))
}
PUBLISHED_NAMES |= {
    name: name
    for name in (field.name for field in fields(GenerationParams))
    if name.startswith("edit") or name in ("omega_scale", "min_guidance_scale", "ref_audio_strength", "retake_variance")
}
PUBLISHED_DEFAULTS = {"audio_duration": 60.0, "infer_step": 60, "use_erg_lyric": True}


@dataclass(frozen=True)
class Figure:
    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        return f"{self.name:44} {self.error:9.2e} {self.tolerance:9.0e}  {'pass' if self.passed else 'FAIL'}"


def relative_error(ours: Tensor, golden: Tensor) -> float:
    """The norm of the difference over the norm of the golden figure; infinite where shapes differ."""
    if ours.shape != golden.shape:
        return float("inf")
    difference = torch.linalg.vector_norm(ours.double() - golden.double())
    scale = torch.linalg.vector_norm(golden.double())
    return (difference / scale).item() if scale > 0 else difference.item()


def inequality(ours: Any, golden: Any) -> float:
    """0 if both are equal, else 1: for what has to be equal exactly."""
    same = torch.equal(ours, golden) if isinstance(golden, Tensor) else ours == golden
    return 0.0 if same else 1.0


class Comparison:
    """A checkpoint beside the figures made with it. Models are loaded when the first figure needs them."""

    def __init__(self, checkpoint: Path, cases: Path) -> None:
        self.checkpoint = checkpoint
        self.cases = cases
        self.spec = ModelSpec("parity", str(checkpoint), precision="float32")

    @cached_property
    def engine(self) -> Engine:
        return Engine.load(self.spec, device="cpu")

    @cached_property
    def text_encoder(self) -> TextEncoder:
        return TextEncoder.load(self.spec, device="cpu")

    def families(self) -> dict[str, Callable[[], Iterator[Figure]]]:
        """What can be compared with the files that are there, by the first part of the figures' names."""
        files = {
            "lyrics": ("lyric_tokens.json", self.lyrics),
            "text_encoder": ("text_encoder.safetensors", self.prompts),
            "transformer": ("transformer.safetensors", self.transformer),
            "schedulers": ("schedulers.safetensors", self.schedulers),
            "guidance": ("guidance.safetensors", self.guidance),
            "autoencoder": ("autoencoder.safetensors", self.autoencoder),
            "overlapped_decode": ("overlapped_decode_every16th.safetensors", self.overlapped_decode),
            "pipeline": ("pipeline_cases.json", self.pipeline),
        }
        return {name: figures for name, (file, figures) in files.items() if (self.cases / file).is_file()}

    def figures(self, only: list[str]) -> Iterator[Figure]:
        """All figures whose name starts with, or ends in, one of `only`; all of them if it is empty."""
        for family, figures in self.families().items():
            if only and not any(name.startswith(family) or name in self._members(family) for name in only):
                continue
            for figure in figures():
                parts = figure.name.split(".")
                if not only or any(figure.name.startswith(name) or name in parts for name in only):
                    yield figure

    def _members(self, family: str) -> set[str]:
        """Names that select single pipeline cases without their family."""
        return set(self._json("pipeline_cases.json")) if family == "pipeline" else set()

    def _json(self, name: str) -> Any:
        return json.loads((self.cases / name).read_text(encoding="utf-8"))

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.cases / f"{name}.safetensors")

    def lyrics(self) -> Iterator[Figure]:
        tokenizer = LyricTokenizer.load(self.checkpoint / LYRIC_VOCABULARY)
        golden = self._json("lyric_tokens.json")
        for number, line in enumerate(golden["lines"]):
            ids = tokenizer.encode_line(line["line"], line["language"])
            yield Figure(f"lyrics.line.{number}.{line['language']}", inequality(list(ids), line["ids"]), EXACT)
        song = tokenizer.encode(golden["song"]["lyrics"])
        yield Figure("lyrics.song", inequality(list(song.ids), golden["song"]["ids"]), EXACT)

    def prompts(self) -> Iterator[Figure]:
        golden = self._tensors("text_encoder")
        requests = [EncodeRequest(prompt, "", weaken=True) for prompt in self._json("text_encoder.json")]
        for number, found in enumerate(self.text_encoder.encode(requests)):
            length = int(golden["mask"][number].sum())
            yield Figure(f"text_encoder.length.{number}", inequality(len(found.text), length), EXACT)
            assert found.text_weakened is not None
            for name, states in (("hidden", found.text), ("hidden_weakened", found.text_weakened)):
                error = relative_error(torch.tensor(states), golden[name][number, :length])
                yield Figure(f"text_encoder.{name}.{number}", error, MODULE)

    @torch.inference_mode()
    def transformer(self) -> Iterator[Figure]:
        golden = self._tensors("transformer")
        model = self.engine.transformer
        text, speaker = golden["text_hidden_states"], golden["speaker"]
        lyrics = model.encode_lyrics(golden["lyric_ids"], golden["lyric_mask"])
        hidden = model.join_context(text, speaker, lyrics)
        mask = torch.cat([torch.ones(len(text), 1), golden["text_mask"], golden["lyric_mask"]], dim=1).bool()
        yield Figure(
            "transformer.encoder_hidden_states", relative_error(hidden, golden["encoder_hidden_states"]), MODULE
        )
        yield Figure("transformer.encoder_mask", inequality(mask, golden["encoder_mask"].bool()), EXACT)
        shares = [
            Share(
                (Query(latents, timestep.item(), row=0),),
                model.prepare_context(hidden[i : i + 1], mask[i]),
            )
            for i, (latents, timestep) in enumerate(zip(golden["latents"], golden["timestep"], strict=True))
        ]
        full = velocities(self.engine.batch, shares)
        yield Figure("transformer.velocity_full", relative_error(full, golden["velocity_full"]), MODULE)
        single = velocities(self.engine.batch, shares[:1])
        yield Figure("transformer.velocity_single", relative_error(single, golden["velocity_single"]), MODULE)
        frames = golden["latent_mask_ragged"].bool()  # (B, T)
        with leaking_padding(model, frames):
            ragged = velocities(self.engine.batch, shares)
        real = frames[:, None, None, :].expand_as(ragged)
        yield Figure(
            "transformer.velocity_ragged", relative_error(ragged[real], golden["velocity_ragged"][real]), MODULE
        )

    def schedulers(self) -> Iterator[Figure]:
        golden = self._tensors("schedulers")
        for kind in SCHEDULERS:
            for count in sorted(
                int(name.rsplit(".", 1)[1]) for name in golden if name.startswith(f"{kind}.timesteps.")
            ):
                schedule = samplers.make_schedule(kind, count)
                timesteps = inequality(schedule.timesteps, golden[f"{kind}.timesteps.{count}"])
                yield Figure(f"schedulers.{kind}.timesteps.{count}", timesteps, EXACT)
                sigmas = inequality(schedule.sigmas, golden[f"{kind}.sigmas.{count}"])
                yield Figure(f"schedulers.{kind}.sigmas.{count}", sigmas, EXACT)
            schedule = samplers.make_schedule(kind, WALK_STEPS)
            generator = torch.Generator().manual_seed(WALK_SEED)
            state = SamplerState(golden[f"{kind}.walk.start"][0])
            walked = []
            for velocity in golden[f"{kind}.walk.velocities"]:
                state = samplers.step(kind, schedule, state, velocity[0], WALK_OMEGA, generator)
                walked.append(state.latents)
            error = relative_error(torch.stack(walked), golden[f"{kind}.walk.samples"][:, 0])
            yield Figure(f"schedulers.{kind}.walk", error, MODULE)

    def guidance(self) -> Iterator[Figure]:
        golden = {
            name: value.squeeze(1) if value.dim() == 5 else value[0]
            for name, value in self._tensors("guidance").items()
        }
        conditioned, unconditioned = golden["cond"], golden["uncond"]  # (steps, 8, 16, T)
        momentum = None
        guided, star = [], []
        for index, (cond, uncond) in enumerate(zip(conditioned, unconditioned, strict=True)):
            velocity, momentum = guidance.apg(cond, uncond, APG_SCALE, momentum)
            guided.append(velocity)
            star.append(guidance.cfg_star(cond, uncond, CFG_SCALE, index))
        yield Figure("guidance.apg", relative_error(torch.stack(guided), golden["apg"]), MODULE)
        yield Figure("guidance.cfg_star", relative_error(torch.stack(star), golden["cfg_star"]), MODULE)
        plain = guidance.cfg(conditioned[0], unconditioned[0], CFG_SCALE)
        yield Figure("guidance.cfg", relative_error(plain, golden["cfg"]), MODULE)
        double = guidance.double(conditioned[0], golden["only_text"], unconditioned[0], *DOUBLE_SCALES)
        yield Figure("guidance.double", relative_error(double, golden["double"]), MODULE)

    @torch.inference_mode()
    def autoencoder(self) -> Iterator[Figure]:
        golden = self._tensors("autoencoder")
        codec = self.engine.autoencoder
        yield Figure("autoencoder.mel", relative_error(codec.mel(golden["mel_in"]), golden["mel"]), MODULE)
        for rate_hz, name in ((48_000, "48"), (22_050, "22")):
            latents = codec.encode(golden[f"audio{name}"][0], rate_hz)
            yield Figure(f"autoencoder.latents{name}", relative_error(latents, golden[f"latents{name}"][0]), MODULE)
        for rate_hz, name in ((48_000, "48"), (MODEL_SAMPLE_RATE_HZ, "44")):
            audio = decode_latents(codec, golden["decode_latents"][0], overlapped=False, sample_rate_hz=rate_hz)
            yield Figure(
                f"autoencoder.decode_audio{name}", relative_error(audio, golden[f"decode_audio{name}"]), MODULE
            )

    @torch.inference_mode()
    def overlapped_decode(self) -> Iterator[Figure]:
        golden = self._tensors("overlapped_decode_every16th")
        audio = decode_latents(self.engine.autoencoder, golden["latents"][0], overlapped=True)
        yield Figure("overlapped_decode.audio", relative_error(audio[:, ::16], golden["audio"]), MODULE)

    def pipeline(self) -> Iterator[Figure]:
        for name, case in self._json("pipeline_cases.json").items():
            task = "audio2audio" if case.get("audio2audio_enable") else case.get("task", "text2music")
            golden = self._tensors(f"pipeline_{name}")
            params = published_params(case, task)
            asked = EncodeRequest(params.prompt, params.lyrics, weaken=params.weakens_text)
            target = EncodeRequest(params.edit_target_prompt, params.edit_target_lyrics)
            song = self.engine.generate(params, Inputs(*self.text_encoder.encode([asked, target]), self._source(case)))
            yield Figure(
                f"pipeline.{name}", relative_error(torch.tensor(song.latents), golden["latents"][0]), GENERATION
            )
            if "audio" in golden:
                error = relative_error(torch.tensor(song.audio), golden["audio"])
                yield Figure(f"pipeline.{name}.audio", error, GENERATION)

    def _source(self, case: dict[str, Any]) -> SourceAudio | None:
        file = case.get("ref_audio_input") or case.get("src_audio_path")
        return read_audio((self.cases / file).read_bytes(), AudioLimits()) if file else None


def published_params(case: dict[str, Any], task: str) -> GenerationParams:
    """The parameters that arguments of the published call stand for."""
    case = PUBLISHED_DEFAULTS | case
    known = {ours: case[theirs] for theirs, ours in PUBLISHED_NAMES.items() if theirs in case}
    seeds = case["manual_seeds"]
    first_seed = int(seeds[0] if isinstance(seeds, list) else str(seeds).split(",")[0])
    oss_steps = tuple(int(step) for step in (case.get("oss_steps") or "").split(",") if step)
    retake_seed = int(str(case.get("retake_seeds", 0)).split(",")[0])
    params = GenerationParams(task=task, seed=first_seed, oss_steps=oss_steps, retake_seed=retake_seed, **known)
    start_s, end_s = float(case.get("repaint_start", 0)), float(case.get("repaint_end", 0))
    if task == "extend":  # published: a range that reaches out of the source
        left_s, right_s = max(0.0, -start_s), max(0.0, end_s - params.duration_s)
        duration_s = left_s + params.duration_s + right_s
        return replace(params, left_extend_s=left_s, right_extend_s=right_s, duration_s=duration_s)
    return replace(params, repaint_start_s=start_s, repaint_end_s=end_s)


def velocities(batch: Batch, shares: list[Share]) -> Tensor:
    """Of requests with one row each: (B, 8, 16, T)."""
    return torch.stack([velocity for of_one in batch.forward(shares) for velocity in of_one])


@contextmanager
def leaking_padding(model: Transformer, frames: Tensor) -> Iterator[None]:
    """While this lasts, frames (B, T) that are False are padding as the published code has it.

    There, padded frames are masked in the attentions only: they enter the group norm and leak through the
    convolutions. Ours has no padding, so that a song does not hear its neighbours; to compare with the published
    figure, the attentions are made to leave those frames out.
    """
    gap = torch.zeros(len(frames), 1, dtype=torch.bool)
    nothing = (~torch.cat([frames, gap], dim=1)).flatten().nonzero().squeeze(1)  # packed, each row with its gap

    def without(attend: Callable[..., Tensor], *args: Any) -> Tensor:
        wider = [replace(arg, gaps=nothing) if isinstance(arg, Packing) else arg for arg in args]
        return attend(*wider).index_fill_(0, nothing, 0.0)

    attentions = [attention for block in model.transformer_blocks for attention in (block.attn, block.cross_attn)]
    for attention in attentions:
        attention.attend = partial(without, attention.attend)
    try:
        yield
    finally:
        for attention in attentions:
            del attention.attend


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a folder that make_checkpoint.py wrote")
    parser.add_argument("cases", type=Path, help="a folder of the form of tests/golden/cases/")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="families, cases or figures to compare")
    args = parser.parse_args()
    failed = compared = 0
    for figure in Comparison(args.checkpoint, args.cases).figures(args.only):
        print(figure, flush=True)
        compared += 1
        failed += not figure.passed
    if not compared:
        print(f"nothing to compare: no figure in {args.cases} is named {' or '.join(args.only) or 'as expected'}")
        return 1
    print(f"{compared} figures, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
