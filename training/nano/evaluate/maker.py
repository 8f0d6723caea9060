"""Songs of a checkpoint, made in this process as the service makes them."""

import time
from pathlib import Path

import numpy as np
import torch

from acestep_engine.audio import SourceAudio
from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.conditioning import EncodeRequest
from acestep_engine.decode import decode_latents
from acestep_engine.engine import Engine
from acestep_engine.params import OUTPUT_SAMPLE_RATE_HZ, GenerationParams, ModelSpec
from acestep_engine.requests import Inputs, Latents, Song
from acestep_engine.text_encoder import TextEncoder
from training.nano.evaluate.spectra import RATE_HZ, Audio

NANO = "nano"
INSTRUMENTAL = "[inst]"


class Maker:
    """A loaded checkpoint. `load_s` is how long loading took."""

    def __init__(self, spec: ModelSpec) -> None:
        started = time.perf_counter()
        self._engine = Engine.load(spec)
        self._text_encoder = TextEncoder.load(spec)
        self.load_s = time.perf_counter() - started

    @classmethod
    def of(cls, model: str) -> "Maker":
        """`nano` or a checkpoint folder. Raises CheckpointError for what is none."""
        return cls(ModelSpec(model, str(NANO_PATH) if model == NANO else str(Path(model).expanduser())))

    def make(self, params: GenerationParams, source: SourceAudio | Latents | None = None) -> Song:
        """One song, alone."""
        conditioning = self._text_encoder.encode([EncodeRequest.of_song(params)])[0]
        return self._engine.generate(params, Inputs(conditioning, source=source))

    def through_codec(self, audio: Audio) -> Audio:
        """Audio (2, N) encoded and decoded again, without anything made; as long as it was."""
        codec = self._engine.autoencoder
        latents = codec.encode(torch.from_numpy(audio), RATE_HZ)
        decoded = decode_latents(codec, latents, sample_rate_hz=RATE_HZ)
        return _array(decoded)[:, : audio.shape[1]]

    def heard(self, song: Song) -> Audio:
        """What the song sounds like, at the rate of this package."""
        return _array(self._engine.autoencoder.resample(torch.from_numpy(song.audio), OUTPUT_SAMPLE_RATE_HZ, RATE_HZ))


def _array(audio: torch.Tensor) -> Audio:
    return np.ascontiguousarray(audio.cpu().numpy(), np.float32)
