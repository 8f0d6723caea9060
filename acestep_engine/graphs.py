"""Forwards as CUDA graphs: while the same requests share forwards, the host launches all of their kernels at once.

That is for forwards whose kernels are so short that a GPU waits for its host. A graph is of one packing, so that
nothing is padded; it is recorded when a company has stayed together for some forwards, and forgotten with its packing.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from acestep_engine.caching import LruCache
from acestep_engine.devices import free_memory, is_out_of_memory
from acestep_engine.model.packing import Packing
from acestep_engine.model.transformer import Modulation, Transformer

PLAIN_FORWARDS = 2  # of a company, before its forward is recorded: many part sooner
KEPT_COMPANIES = 4  # as of packings

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Recorded:
    """Work that `replay` does again, on the tensors that it was recorded with; then `answers` hold what came of it."""

    answers: Sequence[Tensor]
    replay: Callable[[], None]


class Recorder(Protocol):
    """Records work instead of doing it."""

    def __call__(self, work: Callable[[], Sequence[Tensor]]) -> Recorded:
        """Raises RuntimeError for what cannot be recorded."""


class CudaRecorder:
    """Records on one GPU. All that it records shares memory: copy the answers before anything is replayed.

    Raises RuntimeError where nothing can be recorded.
    """

    # The allocators of a process keep a reference without a count to a graph whose recording could not be ended, and
    # look at it whenever they are asked for memory. So such a graph is never let go of. There are few: recording ends
    # with the first.
    _failed: ClassVar[list[torch.cuda.CUDAGraph]] = []

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._pool = torch.cuda.graph_pool_handle()
        # Nobody else has streams of this priority. Those of the usual one are handed out again and again, and what
        # another thread does on the same one would be recorded, too.
        self._stream = torch.cuda.Stream(self._device, priority=-1)
        # A pool ends with the last graph that uses it, and cannot be used again.
        self._first = self(lambda: [torch.zeros(1, device=self._device)])

    def __call__(self, work: Callable[[], Sequence[Tensor]]) -> Recorded:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            # Adapters are brought to the GPU in another thread meanwhile, which must not fail.
            try:
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                answers = work()
            except Exception:
                with suppress(RuntimeError):  # which would hide why
                    self._end(graph)
                raise
            self._end(graph)
        current.wait_stream(self._stream)
        return Recorded(answers, graph.replay)

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            # It leaves the allocator as if the recording went on: it would give nothing back to the GPU any more.
            self._failed.append(graph)
            with suppress(RuntimeError, AttributeError, TypeError):  # private: another torch may not have it
                torch._C._cuda_endAllocateToPool(self._device.index, self._pool)
            raise


class GraphedTransformer:
    """Answers as the transformer does. Forwards of up to `most_tokens` are recorded; larger ones keep a GPU busy."""

    def __init__(self, transformer: Transformer, record: Recorder, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self._transformer = transformer
        self._record = record
        self._companies: LruCache[tuple[object, ...], _Company] = LruCache(KEPT_COMPANIES)
        self._was_exhausted = False

    def __call__(self, latents: Sequence[Tensor], modulations: Sequence[Modulation], packing: Packing) -> list[Tensor]:
        """See `Transformer.forward`."""
        if packing.tokens > self.most_tokens:
            return self._plain(latents, modulations, packing)
        company = self._company(latents, modulations, packing)
        company.forwards += 1
        if company.forwards <= PLAIN_FORWARDS:
            return self._plain(latents, modulations, packing)
        try:
            company.graph = company.graph or _Graph(self._transformer, self._record, latents, modulations, packing)
            return company.graph(latents, modulations)
        except Exception as error:  # noqa: BLE001  what is not the recording's fault fails a plain forward, too
            failure = error.with_traceback(None)  # it holds the tensors of half a forward
        company.graph = None
        self._note_failure(failure, packing.tokens)
        return self._plain(latents, modulations, packing)

    def forget(self) -> None:
        """Let go of all that was recorded."""
        self._companies.clear()

    def _note_failure(self, failure: Exception, tokens: int) -> None:
        """Record smaller forwards only, once memory has run out twice; or nothing, if it was for another reason."""
        self.forget()
        exhausted = is_out_of_memory(failure)
        if exhausted:
            free_memory()
        if exhausted and not self._was_exhausted:
            self._was_exhausted = True
            return
        self.most_tokens = tokens - 1 if exhausted else 0
        logger.warning("forwards of over %d tokens do not become CUDA graphs any more: %s", self.most_tokens, failure)

    def _plain(self, latents: Sequence[Tensor], modulations: Sequence[Modulation], packing: Packing) -> list[Tensor]:
        velocities: list[Tensor] = self._transformer(latents, modulations, packing)
        return velocities

    def _company(self, latents: Sequence[Tensor], modulations: Sequence[Modulation], packing: Packing) -> "_Company":
        key = id(packing), _alike(latents), _alike(modulations)
        company = self._companies.get(key)
        if company is None:
            company = _Company(packing)
            self._companies.put(key, company)
        return company


@dataclass(eq=False)
class _Company:
    """Rows that share forwards. It holds their packing, so that its id stays its own."""

    packing: Packing
    forwards: int = 0
    graph: "_Graph | None" = None


class _Graph:
    """A recorded forward, with copies of its inputs in the places that it reads."""

    def __init__(
        self,
        transformer: Transformer,
        record: Recorder,
        latents: Sequence[Tensor],
        modulations: Sequence[Modulation],
        packing: Packing,
    ) -> None:
        songs = {id(one): one.clone() for one in latents}
        steps = {id(one): Modulation(one.blocks.clone(), one.final.clone()) for one in modulations}
        self._songs, self._steps = list(songs.values()), list(steps.values())
        rows = [songs[id(one)] for one in latents]
        of_rows = [steps[id(one)] for one in modulations]
        self._recorded = record(lambda: transformer(rows, of_rows, packing))

    def __call__(self, latents: Sequence[Tensor], modulations: Sequence[Modulation]) -> list[Tensor]:
        """Of inputs that are `_alike` in the same places as those that it was recorded with."""
        for song, one in zip(self._songs, _distinct(latents), strict=True):
            song.copy_(one)
        for step, of_step in zip(self._steps, _distinct(modulations), strict=True):
            step.blocks.copy_(of_step.blocks)
            step.final.copy_(of_step.final)
        self._recorded.replay()
        return [answer.clone() for answer in self._recorded.answers]


def _distinct(some: Sequence[T]) -> list[T]:
    """Those that are not the same object as an earlier one."""
    return list({id(one): one for one in some}.values())


def _alike(some: Sequence[object]) -> tuple[int, ...]:
    """Which of them are the same object: for each the number of the first one that is."""
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(id(one), len(numbers)) for one in some)
