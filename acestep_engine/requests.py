"""What goes into the engine with a request, and what the engine tells of it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acestep_engine.audio import SourceAudio
from acestep_engine.conditioning import Conditioning
from acestep_engine.params import OUTPUT_SAMPLE_RATE_HZ, Progress, Timings

Latents = npt.NDArray[np.float32]  # (8, 16, T)
Samples = npt.NDArray[np.float32]  # (2, n) at 48 kHz


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
    audio: Samples
    timings: Timings

    @property
    def duration_s(self) -> float:
        return float(self.audio.shape[1] / OUTPUT_SAMPLE_RATE_HZ)


@dataclass(frozen=True)
class Moved:
    """A request is further than before."""

    request_id: str
    progress: Progress


@dataclass(frozen=True, eq=False)
class Decoded:
    """The next stretch of a request's audio, at least one sample. All of them, joined, are its `song_samples`."""

    request_id: str
    samples: Samples
    song_samples: int


@dataclass(frozen=True, eq=False)
class Finished:
    """A request whose audio has all been told."""

    request_id: str
    latents: Latents
    timings: Timings


@dataclass(frozen=True)
class Failed:
    """A request that ended without a song; the others go on."""

    request_id: str
    error: Exception


Event = Moved | Decoded | Finished | Failed


def songs_of(events: Iterable[Event]) -> dict[str, Song]:
    """The songs that finished within these events, by request; all of their audio must be there."""
    parts: dict[str, list[Samples]] = {}
    songs = {}
    for event in events:
        match event:
            case Decoded(request_id=request_id, samples=samples):
                parts.setdefault(request_id, []).append(samples)
            case Finished(request_id=request_id, latents=latents, timings=timings):
                songs[request_id] = Song(latents, np.concatenate(parts.pop(request_id), axis=1), timings)
    return songs
