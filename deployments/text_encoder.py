"""The deployment that turns prompts and lyrics into conditioning, many requests at once."""

import asyncio
import gc
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ray import serve

from acestep_engine.conditioning import Conditioning, EncodeRequest
from acestep_engine.download import ensure_checkpoint
from acestep_engine.errors import EngineError, RequestError
from acestep_engine.params import GenerationParams, ModelSpec
from deployments.cpus import available_cpus

if TYPE_CHECKING:  # it takes seconds to import, and only the replica needs it
    from acestep_engine.text_encoder import TextEncoder as Encoder

logger = logging.getLogger("ray.serve")
T = TypeVar("T")


class TextEncoder:
    """Batches what waits together and keeps what was encoded lately. One thread uses the encoder."""

    async def __init__(  # type: ignore[misc]
        self,
        spec: ModelSpec,
        use_gpu: bool,
        cache_entries: int,
        max_batch_size: int,
        batch_wait_timeout_s: float,
        download_to: str | None,
    ) -> None:
        """Returns once the encoder is in memory; `download_to` is as the Generator's.

        Raises CheckpointError if it cannot be loaded.
        """
        self._download_to = download_to
        self._device = None if use_gpu else "cpu"
        self._cache_entries = cache_entries
        self._loaded: tuple[ModelSpec, Encoder] | None = None  # of the thread
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder", initializer=_use_half_the_cpus)
        self._encode_batch.set_max_batch_size(max_batch_size)
        self._encode_batch.set_batch_wait_timeout_s(batch_wait_timeout_s)
        await self.load(spec)

    async def encode(self, spec: ModelSpec, params: GenerationParams) -> Conditioning:
        """What a song is conditioned on. Raises ParameterError for lyrics in an unknown language, CheckpointError."""
        request = EncodeRequest(params.prompt, params.lyrics, params.weakens_text, params.vocal_language)
        answer: Conditioning | EngineError = await self._encode_batch((spec, request))
        if isinstance(answer, EngineError):
            raise answer
        return answer

    async def load(self, spec: ModelSpec) -> None:
        """Have this model's encoder in memory. Raises CheckpointError; then none is loaded."""
        await self._in_thread(lambda: self._encoder_for(spec))

    @serve.batch  # type: ignore[untyped-decorator]
    async def _encode_batch(self, batch: "list[tuple[ModelSpec, EncodeRequest]]") -> "list[Conditioning | EngineError]":
        """One answer each, in order. Requests of different models are encoded apart."""
        answers: dict[int, Conditioning | EngineError] = {}
        for spec in dict.fromkeys(spec for spec, _ in batch):
            indices = [i for i, (its_spec, _) in enumerate(batch) if its_spec == spec]
            requests = [batch[i][1] for i in indices]
            encoded = await self._in_thread(partial(self._encode, spec, requests))
            answers.update(zip(indices, encoded, strict=True))
        return [answers[i] for i in range(len(batch))]

    def _encode(self, spec: ModelSpec, requests: "Sequence[EncodeRequest]") -> "list[Conditioning | EngineError]":
        try:
            return list(self._encoder_for(spec).encode(requests))
        except RequestError as error:
            if len(requests) == 1:
                return [error]
        except EngineError as error:
            return [error] * len(requests)
        return [answer for request in requests for answer in self._encode(spec, [request])]  # only the wrong one fails

    def _encoder_for(self, spec: ModelSpec) -> "Encoder":
        import torch

        from acestep_engine.text_encoder import TextEncoder as Encoder

        if self._loaded is None or self._loaded[0] != spec:
            self._loaded = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            ensure_checkpoint(Path(spec.path), download=spec.path == self._download_to)
            self._loaded = spec, Encoder.load(spec, self._device, self._cache_entries)
            logger.info("loaded the text encoder of %s", spec.name)
        return self._loaded[1]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _use_half_the_cpus() -> None:
    import torch

    torch.set_num_threads(max(1, available_cpus() // 2))  # a Generator on the same CPU needs them more
