"""How a request begins: the latents of its source, the state of its task, and what its frames attend to."""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from acestep_engine import tasks
from acestep_engine.audio import SourceAudio
from acestep_engine.context import ContextBuilder
from acestep_engine.decode import check_latents
from acestep_engine.live_request import LiveRequest
from acestep_engine.model.autoencoder import MusicAutoencoder
from acestep_engine.model.transformer import Transformer
from acestep_engine.offload import Residency
from acestep_engine.params import MAX_LATENT_FRAMES, longest_source_samples
from acestep_engine.requests import Latents


class Beginner:
    """Begins requests for one model on its device."""

    def __init__(
        self,
        transformer: Transformer,
        autoencoder: MusicAutoencoder,
        contexts: ContextBuilder,
        residency: Residency,
        device: torch.device,
    ) -> None:
        self._transformer = transformer
        self._autoencoder = autoencoder
        self._contexts = contexts
        self._residency = residency
        self._device = device

    @torch.inference_mode()
    def begin(self, request: LiveRequest) -> None:
        """Raises EngineError for what does not suit the task, RuntimeError or IndexError for what does not fit the
        model. Then nothing of the request has changed that matters."""
        request.began_at = time.perf_counter()
        source = request.inputs.source
        latents = self._encode_source(source) if isinstance(source, SourceAudio) else _known_latents(source)
        task = tasks.begin(request.params, latents, self._device)
        with self._residency.use(self._transformer):
            request.contexts = self._contexts.of_request(request.params, request.inputs, request.adapter)
        request.task = task
        request.inputs = replace(request.inputs, source=None)  # it may be large, and is not needed any more

    def _encode_source(self, source: SourceAudio) -> Tensor:
        """Latents (8, 16, T) of the source; what is past the longest song is left out."""
        samples = source.samples[:, : longest_source_samples(source.sample_rate_hz)]
        with self._residency.use(self._autoencoder):
            return self._autoencoder.encode(
                torch.from_numpy(np.require(samples, requirements="W")), source.sample_rate_hz
            )


def _known_latents(source: Latents | None) -> Tensor | None:
    """Raises LatentShapeError, NumericalError."""
    if source is None:
        return None
    latents = torch.tensor(source)
    check_latents(latents)
    return latents[..., :MAX_LATENT_FRAMES]
