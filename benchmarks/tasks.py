"""What repaint and a chain of extensions leave of their source, beside what the decoder itself does to audio."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from acestep_engine.audio import SourceAudio
from acestep_engine.decode import decode_latents
from acestep_engine.params import (
    LATENT_RATE_HZ,
    MODEL_SAMPLE_RATE_HZ,
    OUTPUT_SAMPLE_RATE_HZ,
    SAMPLES_PER_LATENT,
    GenerationParams,
    ModelSpec,
    latent_frames,
)
from acestep_engine.requests import Inputs, Latents, Song
from benchmarks.engine import BASE, InProcess
from benchmarks.tables import print_table

SOURCE = replace(BASE, duration_s=20.0, steps=8)
LINKS = 10
LINK_S = 2.0

Audio = npt.NDArray[np.float32]


def print_tables(spec: ModelSpec, repeats: int) -> None:
    """`repeats` means nothing here: nothing is timed."""
    maker = InProcess(spec)
    source = _make(maker, SOURCE, None)
    frames = source.latents.shape[-1]
    first, last = latent_frames(5.0), latent_frames(9.0)
    repaint = replace(SOURCE, task="repaint", repaint_start_s=5.0, repaint_end_s=9.0, retake_seed=7)
    repainted = _make(maker, repaint, source.latents)
    chain, offset = source, 0
    for link in range(LINKS):
        left_s, right_s = (LINK_S, 0.0) if link % 2 else (0.0, LINK_S)
        before = chain.latents.shape[-1]
        params = replace(SOURCE, task="extend", left_extend_s=left_s, right_extend_s=right_s, retake_variance=1.0)
        duration_s = before / LATENT_RATE_HZ + left_s + right_s
        chain = _make(maker, replace(params, duration_s=duration_s, retake_seed=link), chain.latents)
        offset += latent_frames(left_s)
    untouched = [slice(0, first), slice(last, frames)]
    rows = [
        ("repaint 5 to 9 s of 20 s", *_errors(maker, source, repainted, untouched, 0)),
        (
            f"{LINKS} extensions of 20 s by {LINK_S:g} s, left and right",
            *_errors(maker, source, chain, [slice(0, frames)], offset),
        ),
        ("encoding and decoding the source's audio", *_round_trip(maker, source)),
    ]
    columns = ("what stays of the source", "relative error of latents", "relative error of audio")
    print_table("Outside of what is made anew", columns, rows)


def _make(maker: InProcess, params: GenerationParams, source: Latents | None) -> Song:
    return maker.engine.generate(params, Inputs(maker.encode(params), source=source))


def _errors(maker: InProcess, source: Song, made: Song, kept: list[slice], offset: int) -> tuple[float, float]:
    """Over the frames `kept` of the source, which begin `offset` frames later in what was made of it."""
    moved = [slice(one.start + offset, one.stop + offset) for one in kept]
    latents = _error([made.latents[..., one] for one in moved], [source.latents[..., one] for one in kept])
    heard, before = (_decode(maker, song.latents) for song in (made, source))
    audio = _error([heard[:, _samples(one)] for one in moved], [before[:, _samples(one)] for one in kept])
    return latents, audio


@torch.inference_mode()
def _decode(maker: InProcess, latents: Latents) -> Audio:
    """At the vocoder's own rate, where every latent frame is a whole number of samples."""
    audio = decode_latents(maker.engine.autoencoder, torch.tensor(latents), sample_rate_hz=MODEL_SAMPLE_RATE_HZ)
    decoded: Audio = audio.cpu().numpy()
    return decoded


def _samples(frames: slice) -> slice:
    return slice(frames.start * SAMPLES_PER_LATENT, frames.stop * SAMPLES_PER_LATENT)


@torch.inference_mode()
def _round_trip(maker: InProcess, source: Song) -> tuple[float, float]:
    autoencoder = maker.engine.autoencoder
    audio = SourceAudio(source.audio, OUTPUT_SAMPLE_RATE_HZ)
    latents = autoencoder.encode(torch.tensor(audio.samples), audio.sample_rate_hz)
    again = decode_latents(autoencoder, latents).cpu().numpy()
    length = min(again.shape[1], source.audio.shape[1])
    frames = min(latents.shape[-1], source.latents.shape[-1])
    return (
        _error([latents[..., :frames].cpu().numpy()], [source.latents[..., :frames]]),
        _error([again[:, :length]], [source.audio[:, :length]]),
    )


def _error(found: list[Audio], expected: list[Audio]) -> float:
    one, other = (np.concatenate([part.ravel() for part in parts]) for parts in (found, expected))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
