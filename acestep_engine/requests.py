"""What goes into the engine with a request, and what the engine tells of it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acestep_engine.audio import SourceAudio
from acestep_engine.conditioning import Conditioning
from acestep_engine.params import OUTPUT_SAMPLE_RATE_HZ, Progress, Timings

Latents = npt.NDArray[np.float32]  # (8, 16, T)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a request brings beside its params.

    `target` is of `edit_target_prompt` and `edit_target_lyrics`, for edit. `source` is audio, or the latents of an
    earlier song, for the tasks that need one.
    """

    conditioning: Conditioning
    target: Conditioning | None = None
    source: SourceAudio | Latents | None = None


@dataclass(frozen=True, eq=False)
class Song:
    """`latents` (8, 16, T) and `audio` (2, N) at 48 kHz, both float32."""

    latents: Latents
    audio: npt.NDArray[np.float32]
    timings: Timings

    @property
    def duration_s(self) -> float:
        return float(self.audio.shape[1] / OUTPUT_SAMPLE_RATE_HZ)


@dataclass(frozen=True)
class Moved:
    """A request is further than before."""

    request_id: str
    progress: Progress


@dataclass(frozen=True)
class Finished:
    request_id: str
    song: Song


@dataclass(frozen=True)
class Failed:
    """A request that ended without a song; the others go on."""

    request_id: str
    error: Exception


Event = Moved | Finished | Failed
