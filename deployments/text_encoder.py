"""The deployment that turns prompts and lyrics into conditioning, many requests at once."""

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from acestep_engine.conditioning import Conditioning, EncodeRequest
from acestep_engine.download import ensure_checkpoint
from acestep_engine.errors import EngineError, RequestError
from acestep_engine.params import ModelSpec
from deployments.cpus import available_cpus
from deployments.failures import GpuMemoryError, is_unexpected
from deployments.hangs import end_hanging_replica, end_process
from deployments.messages import LyricLineReading, LyricReading

if TYPE_CHECKING:  # it takes seconds to import, and only the replica needs it
    from acestep_engine.text_encoder import TextEncoder as Encoder

logger = logging.getLogger("ray.serve")
T = TypeVar("T")


@dataclass(eq=False)
class _Waiting:
    """Somebody waits for this to be encoded."""

    spec: ModelSpec
    request: EncodeRequest
    answer: "asyncio.Future[Conditioning]"


class TextEncoder:
    """Encodes together what has come in meanwhile, and keeps what was encoded lately. One thread uses the encoder."""

    async def __init__(  # type: ignore[misc]
        self,
        spec: ModelSpec,
        use_gpu: bool,
        cache_entries: int,
        max_batch_size: int,
        download_to: str | None,
        hangs_after_s: float,
    ) -> None:
        """Returns once the encoder is in memory; `download_to` and `hangs_after_s` are as the Generator's.

        Raises CheckpointError if it cannot be loaded.
        """
        logger.addFilter(is_unexpected)
        self._download_to = download_to
        self._device = None if use_gpu else "cpu"
        self._cache_entries = cache_entries
        self._max_batch_size = max_batch_size
        self._loaded: tuple[ModelSpec, Encoder] | None = None  # of the thread
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder", initializer=_use_half_the_cpus)
        self._hangs_after_s = hangs_after_s
        self._busy_since: float | None = None  # None: it encodes nothing
        self._waiting: list[_Waiting] = []
        self._encoding: asyncio.Task[None] | None = None
        await self.load(spec)

    async def encode(self, spec: ModelSpec, request: EncodeRequest) -> Conditioning:
        """What a song is conditioned on. Raises ParameterError for lyrics in an unknown language, CheckpointError."""
        waiting = _Waiting(spec, request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._encoding is None or self._encoding.done():
            self._encoding = asyncio.create_task(self._encode_waiting())
        return await waiting.answer

    async def read_lyrics(self, spec: ModelSpec, lyrics: str, vocal_language: str | None) -> LyricReading:
        """How lyrics become tokens. Raises ParameterError for an unknown language, CheckpointError."""
        return await self._in_thread(lambda: self._read_lyrics(spec, lyrics, vocal_language))

    async def load(self, spec: ModelSpec) -> None:
        """Have this model's encoder in memory. Raises CheckpointError; then none is loaded."""
        await self._in_thread(lambda: self._encoder_for(spec))

    async def check_health(self) -> None:
        """End the process when a batch takes far too long: its calls are made elsewhere. Serve calls it often."""
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > self._hangs_after_s:
            end_hanging_replica("it has been at one batch for too long")

    async def _encode_waiting(self) -> None:
        """Until nobody waits: the first, and with it all others that want the same model."""
        while self._waiting:
            spec = self._waiting[0].spec
            batch = [one for one in self._waiting if one.spec == spec][: self._max_batch_size]
            self._waiting = [one for one in self._waiting if one not in batch]
            batch = [one for one in batch if not one.answer.done()]  # its caller has left
            if not batch:
                continue
            try:
                answers = await self._in_thread(partial(self._encode, spec, [one.request for one in batch]))
            except Exception as error:  # noqa: BLE001  whatever it is, those who wait must hear of it
                answers = [error] * len(batch)
            for one, answer in zip(batch, answers, strict=True):
                _settle(one.answer, answer)

    def _encode(self, spec: ModelSpec, requests: Sequence[EncodeRequest]) -> list[Conditioning | Exception]:
        try:
            encoder = self._encoder_for(spec)  # however long that takes
            self._busy_since = time.monotonic()
            return list(self._encode_on_device(encoder, requests))
        except RequestError as error:
            if len(requests) == 1:
                return [error]
        except EngineError as error:
            return [error] * len(requests)
        finally:
            self._busy_since = None
        return [answer for request in requests for answer in self._encode(spec, [request])]  # only the wrong one fails

    def _encode_on_device(self, encoder: "Encoder", requests: Sequence[EncodeRequest]) -> list[Conditioning]:
        """Encode, and where memory runs out, once more after freeing what can be, one by one.

        Raises GpuMemoryError where that does not help. The process ends if its GPU is lost.
        """
        from acestep_engine.devices import free_memory, is_lost, is_out_of_memory

        for at_once in (len(requests), 1):
            try:
                parts = [requests[start : start + at_once] for start in range(0, len(requests), at_once)]
                return [encoded for part in parts for encoded in encoder.encode(part)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    if is_lost(error, encoder.model.device):
                        logger.error("the GPU is lost, and with it this process: %s", error)
                        end_process()
                    raise
            free_memory()
        raise GpuMemoryError("the text encoder finds no memory on its GPU, which other processes use as well")

    def _read_lyrics(self, spec: ModelSpec, lyrics: str, vocal_language: str | None) -> LyricReading:
        from acestep_engine.lyrics import MAX_LYRIC_TOKENS, is_instrumental

        tokenizer = self._encoder_for(spec).lyric_tokenizer
        read = tokenizer.encode(lyrics, vocal_language)
        lines = (LyricLineReading(**asdict(line), tokens=tuple(tokenizer.tokens(line.ids))) for line in read.lines)
        return LyricReading(spec.name, is_instrumental(lyrics), len(read.ids), MAX_LYRIC_TOKENS, tuple(lines))

    def _encoder_for(self, spec: ModelSpec) -> "Encoder":
        import torch

        from acestep_engine.devices import why_no_gpu
        from acestep_engine.text_encoder import TextEncoder as Encoder

        if self._loaded is None or self._loaded[0] != spec:
            reason = why_no_gpu() if self._device is None else None
            if reason is not None:
                logger.warning(
                    "a GPU is reserved here that torch cannot use; prompts are encoded on the CPU: %s", reason
                )
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


def _settle(answer: "asyncio.Future[Conditioning]", result: Conditioning | Exception) -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _use_half_the_cpus() -> None:
    import torch

    torch.set_num_threads(max(1, available_cpus() // 2))  # a Generator on the same CPU needs them more
