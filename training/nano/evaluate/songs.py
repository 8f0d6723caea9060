"""Songs from prompts: whether they follow them, sound like notes, depend on the seed and come in time."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median

import numpy as np

from acestep_engine.params import GenerationParams
from acestep_engine.requests import Song
from training.nano.evaluate.codec import TONAL_TOLERANCE_DB
from training.nano.evaluate.hear import Judges
from training.nano.evaluate.maker import INSTRUMENTAL, Maker
from training.nano.evaluate.report import Clip, Mark, at_least, percent, share
from training.nano.evaluate.roundtrip import mel_error_nepers
from training.nano.evaluate.trials import SONG_S, Trial

FOLLOWED = {"tempo": 0.75, "drums": 0.90, "lead": 0.70, "mode": 0.70}
MOST_LOAD_S, MOST_SONG_S = 3.0, 8.0
LEAST_DIFFERENCE_NEPERS = 0.5
NAMES = {
    "tempo": "tempo within 6 % (octave allowed), with drums",
    "drums": "drums as asked",
    "lead": "lead instrument family",
    "mode": "major or minor",
}


def params_of(trial: Trial) -> GenerationParams:
    """The trial's song with default settings."""
    return GenerationParams(trial.prompt, INSTRUMENTAL, trial.piece.duration_s, trial.seed)


def follow_marks(clips: Sequence[Clip], renderings: Sequence[Clip], through_codec: Sequence[Clip]) -> list[Mark]:
    """Whether what was asked for is heard: in the songs, in the pieces behind the prompts, and in these decoded."""
    songs, pieces, decoded = (
        [clip.heard.verdicts(clip.trial.asked) for clip in group] for group in (clips, renderings, through_codec)
    )
    marks = []
    for name, asked in FOLLOWED.items():
        reached = share(songs, name)
        row = percent(reached), at_least(reached, asked), percent(share(pieces, name)), percent(share(decoded, name))
        marks.append(Mark(NAMES[name], f"at least {100 * asked:.0f} %", *row))
    return [*marks, _tonal_mark(clips, renderings, through_codec)]


def _tonal_mark(clips: Sequence[Clip], renderings: Sequence[Clip], through_codec: Sequence[Clip]) -> Mark:
    ours, theirs, decoded = (
        median(clip.heard.tonal_db for clip in group) for group in (clips, renderings, through_codec)
    )
    asked = f"within {TONAL_TOLERANCE_DB:g} dB of the renderings"
    holds = abs(ours - theirs) <= TONAL_TOLERANCE_DB
    return Mark("tonal to noise", asked, f"{ours:.1f} dB", holds, f"{theirs:.1f} dB", f"{decoded:.1f} dB")


def guidance_mark(maker: Maker, judges: Judges, guided: Sequence[Clip]) -> Mark:
    """The same prompts and seeds without guidance: less of what was asked for must be there."""
    unguided = []
    for clip in guided:
        song = maker.make(replace(params_of(clip.trial), guidance_scale=1.0))
        unguided.append(Clip(clip.trial, judges.hear(maker.heard(song))))
    shares = [_followed(clips) for clips in (guided, unguided)]
    reached = " against ".join(percent(one) for one in shares)
    holds = shares[0][0] > shares[1][0]
    return Mark("guidance 15 against 1: of all that was asked", "more is there", reached, holds)


def _followed(clips: Sequence[Clip]) -> tuple[int, int]:
    """Of all that the prompts asked for, how much is there, and how much that is."""
    verdicts = [found for clip in clips for found in clip.heard.verdicts(clip.trial.asked).values()]
    return sum(verdicts), len(verdicts)


def seed_marks(maker: Maker, trials: Sequence[Trial], songs: Sequence[Song]) -> list[Mark]:
    """Each song made again, and made with another seed."""
    repeats, differences = [], []
    for trial, song in zip(trials, songs, strict=True):
        params = params_of(trial)
        again, other = maker.make(params), maker.make(replace(params, seed=params.seed + 1))
        repeats.append(np.array_equal(again.audio, song.audio) and np.array_equal(again.latents, song.latents))
        differences.append(mel_error_nepers(maker.heard(other), maker.heard(song)))
    least = min(differences)
    return [
        Mark("the same seed again", "the same samples", f"{sum(repeats)} of {len(repeats)}", all(repeats)),
        Mark(
            "another seed, log-mel difference, mean (least)",
            f"over {LEAST_DIFFERENCE_NEPERS} nepers",
            f"{fmean(differences):.2f} ({least:.2f})",
            least > LEAST_DIFFERENCE_NEPERS,
        ),
    ]


def time_marks(load_s: float, song_seconds: Sequence[float]) -> list[Mark]:
    """In this process; HTTP adds what `make bench` shows."""
    typical = median(song_seconds)
    return [
        Mark("loading the model, in process", f"at most {MOST_LOAD_S:g} s", f"{load_s:.1f} s", load_s <= MOST_LOAD_S),
        Mark(
            f"{SONG_S:g} s of music, in process, median (longest)",
            f"at most {MOST_SONG_S:g} s",
            f"{typical:.1f} s ({max(song_seconds):.1f} s)",
            typical <= MOST_SONG_S,
        ),
    ]
