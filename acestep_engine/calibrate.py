"""What this device can do with this model: measured once, when the model is loaded."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import torch
from torch import Tensor

from acestep_engine.batch import Batch, Share
from acestep_engine.decode import decode_latents
from acestep_engine.devices import available_bytes, free_memory, is_lost, is_out_of_memory, synchronize
from acestep_engine.graphs import PLAIN_FORWARDS, CudaRecorder, GraphedTransformer, Recorder
from acestep_engine.model.autoencoder import MusicAutoencoder
from acestep_engine.model.packing import GAP_FRAMES
from acestep_engine.offload import Residency
from acestep_engine.params import latent_frames
from acestep_engine.tasks.guided import ERG_QUERY_SCALE
from acestep_engine.tasks.state import LATENT_CHANNELS, LATENT_HEIGHT, Query

ROW_FRAMES = latent_frames(10.0)  # of a short song
CONTEXT_TOKENS = 365  # speaker, a long prompt, lyrics of a usual song
DECODED_FRAMES = 32
LEAST_ROWS = 4  # a short song asks for three, with guidance and ERG; it has a right to share
MAX_ROWS = 256
COMPILE_TRIALS = (2, 16)  # rows
LONGEST_FORWARD_S = 0.2  # whoever joins waits for the one that runs
WORTHWHILE_GAIN = 1.02  # by how much twice the tokens must raise the throughput of a GPU
WORTH_RECORDING = 1.05  # by how much a recorded forward must be faster
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the same kernels on the same numbers, relative
COMPILED_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}  # of other kernels, which round elsewhere
LONG_RUN_S = 0.1  # after one that takes so long, another would tell no more
# A CPU that takes so long for a row of a short song, or for three seconds of decoding, is taken at its word: what a
# first run costs beside is little of that. Else a full-size model would be measured for minutes.
SLOW_CPU_S = 2.0
MEMORY_SHARE = 0.6  # of what is free: the rest is for decoding, contexts and fragmentation


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """`max_tokens` of one shared forward, and how many tokens take as long as decoding one latent frame."""

    max_tokens: int
    tokens_per_decoded_frame: float


def measure(batch: Batch, autoencoder: MusicAutoencoder, residency: Residency) -> Calibration:
    """Of this device, which takes some forwards and warms it up."""
    with residency.use(batch.transformer):
        max_tokens, token_s = measure_forwards(batch, residency.device)
    with residency.use(autoencoder):
        return Calibration(max_tokens, measure_decoding(autoencoder, residency.device) / token_s)


@torch.inference_mode()
def measure_forwards(batch: Batch, device: torch.device) -> tuple[int, float]:
    """How many tokens may share a forward, and the seconds that each then takes.

    Forwards of more and more rows, until more take too long, would not fit the memory, or do not pay. That is asked of
    a GPU only: a CPU's throughput hardly depends on it, and while a replica starts, others disturb what is measured.
    Kernels are chosen and compiled on the way. A CPU that is slow does one row, once.
    """
    share = any_share(batch, device)
    if device.type == "cpu" and not batch.transformer.is_compiled:
        seconds = _run_s(partial(batch.forward, [share]), device)
        if seconds > SLOW_CPU_S:
            batch.forget_packings()
            return LEAST_ROWS * ROW_FRAMES, seconds / ROW_FRAMES
    else:
        warm_up(batch, device)
    if device.type == "cuda":  # the peak until now may be of another model
        torch.cuda.reset_peak_memory_stats(device)
    rows, seconds = LEAST_ROWS, _seconds(partial(batch.forward, [share] * LEAST_ROWS), device)
    while rows < MAX_ROWS and seconds <= LONGEST_FORWARD_S and _fits(2 * rows * ROW_FRAMES, rows * ROW_FRAMES, device):
        try:
            doubled = _seconds(partial(batch.forward, [share] * (2 * rows)), device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            doubled = inf  # others may have taken what was free
            batch.free()
            free_memory()
        if doubled > LONGEST_FORWARD_S or (device.type == "cuda" and doubled * WORTHWHILE_GAIN > 2 * seconds):
            break
        rows, seconds = 2 * rows, doubled
    batch.forget_packings()
    return rows * ROW_FRAMES, seconds / (rows * ROW_FRAMES)


@torch.inference_mode()
def compiling_pays(batch: Batch, device: torch.device) -> bool:
    """Return whether compiled blocks are faster, for a song and for a few, with the same answers but for rounding.

    It leaves them as they were, not compiled.
    """
    share = any_share(batch, device)
    companies = [[share] * rows for rows in COMPILE_TRIALS]
    plain = [_seconds(partial(batch.forward, company), device) for company in companies]
    probe = [_with_noise(share, device)] * COMPILE_TRIALS[0]
    expected = batch.forward(probe)
    batch.transformer.compile_blocks()
    try:
        compiled = [_seconds(partial(batch.forward, company), device) for company in companies]
        found, works = batch.forward(probe), batch.transformer.is_compiled
    finally:
        batch.transformer.use_plain_blocks()
        batch.forget_packings()
    if works and not _same(found, expected, COMPILED_TOLERANCE[batch.dtype]):
        logger.warning("compiled blocks answer otherwise than plain ones here, and are not used")
        return False
    return works and all(one < other for one, other in zip(compiled, plain, strict=True))


def graphed_transformer(
    batch: Batch, device: torch.device, wanted: bool | None, most_tokens: int
) -> GraphedTransformer | None:
    """For the batch of a GPU: for all forwards if it is `wanted`, for those that a trial finds faster if it is None."""
    try:
        record = CudaRecorder(device)
        up_to = sys.maxsize if wanted else recording_pays_up_to(batch, device, record, most_tokens)
    except Exception as error:
        if torch.cuda.is_available() and is_lost(error, device):
            raise
        batch.free()
        free_memory()
        logger.warning("forwards cannot become CUDA graphs here: %s", error)
        return None
    return GraphedTransformer(batch.transformer, record, up_to) if up_to > 0 else None


@torch.inference_mode()
def recording_pays_up_to(batch: Batch, device: torch.device, record: Recorder, most_tokens: int) -> int:
    """The tokens of the largest forward that is faster when it is recorded; 0 if none is, or if its answers differ."""
    share = any_share(batch, device)
    other = _with_noise(share, device)
    rows, most = 1, 0
    while rows * ROW_FRAMES <= most_tokens:
        company, tokens = [share] * rows, rows * (ROW_FRAMES + GAP_FRAMES)
        plain_s, expected = _seconds(partial(batch.forward, company), device), batch.forward([other] * rows)
        batch.graphed = GraphedTransformer(batch.transformer, record, tokens)
        try:
            for _ in range(PLAIN_FORWARDS):
                batch.forward(company)
            recorded_s, found = _seconds(partial(batch.forward, company), device), batch.forward([other] * rows)
            failed = batch.graphed.most_tokens < tokens
        finally:
            batch.graphed = None
        if failed or recorded_s * WORTH_RECORDING > plain_s or not _same(found, expected, TOLERANCE[batch.dtype]):
            break
        rows, most = 2 * rows, tokens
    batch.forget_packings()
    return most


def warm_up(batch: Batch, device: torch.device) -> None:
    """Run every way through the blocks: rows of one timestep and of two, none and one of them weakened.

    Compiled blocks are compiled for each, which should not happen when somebody waits for a song.
    """
    share = any_share(batch, device)
    (query,) = share.queries
    weakened = replace(share, queries=(replace(query, query_scale=ERG_QUERY_SCALE),))
    earlier = replace(share, queries=(replace(query, timestep=2 * query.timestep),))
    for company in ([share], [weakened], [share, earlier], [weakened, earlier]):
        batch.forward(company)


@torch.inference_mode()
def measure_decoding(autoencoder: MusicAutoencoder, device: torch.device) -> float:
    """Seconds for each latent frame."""
    latents = torch.zeros(LATENT_CHANNELS, LATENT_HEIGHT, DECODED_FRAMES, device=device)
    return _seconds(lambda: decode_latents(autoencoder, latents), device) / DECODED_FRAMES


def any_share(batch: Batch, device: torch.device) -> Share:
    """A row of a short song that attends to a usual context, all zeros."""
    model = batch.transformer
    hidden = torch.zeros(1, CONTEXT_TOKENS, model.config.dim, device=device, dtype=batch.dtype)
    context = model.prepare_context(hidden, torch.ones(CONTEXT_TOKENS, dtype=torch.bool))
    latents = torch.zeros(LATENT_CHANNELS, LATENT_HEIGHT, ROW_FRAMES, device=device)
    return Share((Query(latents, 500.0, 0),), context)


def _with_noise(share: Share, device: torch.device) -> Share:
    """Return a row of other latents: what is left out or written over would not show on zeros."""
    (query,) = share.queries
    noise = torch.randn(query.latents.shape, generator=torch.Generator(device).manual_seed(0), device=device)
    return replace(share, queries=(replace(query, latents=noise),))


def _same(found: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]], tolerance: float) -> bool:
    pairs = [pair for rows in zip(found, expected, strict=True) for pair in zip(*rows, strict=True)]
    return all(bool((one - other).norm() <= tolerance * other.norm()) for one, other in pairs)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The faster of two runs after one that warms up; the second is spared if the first takes long, and on a slow CPU
    so is the first."""
    warming_up_s = _run_s(work, device)
    if device.type == "cpu" and warming_up_s > SLOW_CPU_S:
        return warming_up_s
    first_s = _run_s(work, device)
    return first_s if first_s >= LONG_RUN_S else min(first_s, _run_s(work, device))


def _run_s(work: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def _fits(tokens: int, measured_tokens: int, device: torch.device) -> bool:
    """Whether a forward of so many tokens has room, if memory grows with tokens as in the largest that was run."""
    if device.type != "cuda":
        return True  # a CPU is slow long before its memory is full
    used = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    return used / measured_tokens * tokens < available_bytes(device) * MEMORY_SHARE
