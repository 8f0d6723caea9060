"""Measure a nano checkpoint: held-out prompts and seeds, default settings.

Run it with `make eval-nano`, or `python -m training.nano.evaluate --help`.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from acestep_engine.freed_memory import keep_freed_memory
from acestep_engine.requests import Song
from training.nano.compose import Wish, compose
from training.nano.evaluate.clips import write_clip
from training.nano.evaluate.codec import codec_marks
from training.nano.evaluate.edits import ADDED_S, extend_marks, reference_mark, repaint_marks
from training.nano.evaluate.hear import Judges
from training.nano.evaluate.learn import load_judges
from training.nano.evaluate.maker import NANO, Maker
from training.nano.evaluate.report import Clip, Mark, show_leads, show_marks, show_worst
from training.nano.evaluate.songs import follow_marks, guidance_mark, params_of, seed_marks, time_marks
from training.nano.evaluate.spectra import Audio
from training.nano.evaluate.trials import SONG_S, Trial, held_out_trials
from training.nano.render import render

SONGS = 64
WORK = Path("~/.cache/ace-step/eval-nano")
PARTS = ("codec", "songs", "edits")
DECODED, REPEATED, REFERENCES, REPAINTED, EXTENDED = 24, 3, 4, 3, 24  # trials that the dearer marks take


def main() -> None:
    parser = argparse.ArgumentParser(prog="make eval-nano", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=NANO, help="nano, the bundled one, or a checkpoint folder (nano)")
    parser.add_argument("--work", type=Path, default=WORK, help=f"where the trained judges are kept ({WORK})")
    parser.add_argument("--songs", type=int, default=SONGS, help=f"prompts to make songs of ({SONGS})")
    parser.add_argument("--clips", type=Path, help="a folder for the songs and pictures of them (they are not kept)")
    parser.add_argument("--only", choices=PARTS, help="one of the parts")
    args = parser.parse_args()
    keep_freed_memory()
    started = time.perf_counter()
    maker = Maker.of(args.model)
    judges = load_judges(args.work.expanduser())
    trials = held_out_trials(args.songs)
    renderings = [render(trial.piece) for trial in trials]
    print(f"{args.model}: {len(trials)} held-out prompts, {SONG_S:g} s each, default settings\n", flush=True)
    marks: list[Mark] = []
    if args.only in (None, "codec"):
        marks += _codec(maker, renderings[:DECODED])
    if args.only in (None, "songs"):
        marks += _songs(maker, judges, trials, renderings, args.clips)
    if args.only in (None, "edits"):
        marks += _edits(maker, trials)
    print(f"{sum(mark.holds for mark in marks)} of {len(marks)} hold; {(time.perf_counter() - started) / 60:.0f} min")


def _codec(maker: Maker, renderings: Sequence[Audio]) -> list[Mark]:
    marks = codec_marks(renderings, [maker.through_codec(audio) for audio in renderings])
    _tell("What the autoencoder and the vocoder leave of renderings", show_marks(marks))
    return marks


def _songs(
    maker: Maker, judges: Judges, trials: Sequence[Trial], renderings: Sequence[Audio], folder: Path | None
) -> list[Mark]:
    songs: list[Song] = []  # the first few
    seconds: list[float] = []
    clips: list[Clip] = []
    for trial in trials:
        started = time.perf_counter()
        song = maker.make(params_of(trial))
        seconds.append(time.perf_counter() - started)
        audio = maker.heard(song)
        clips.append(Clip(trial, judges.hear(audio)))
        if len(songs) < REPEATED:
            songs.append(song)
        if folder is not None:
            write_clip(folder, f"song-{trial.seed}", audio)
    pieces = [Clip(trial, judges.hear(audio)) for trial, audio in zip(trials, renderings, strict=True)]
    decoded = [
        Clip(trial, judges.hear(maker.through_codec(audio)))
        for trial, audio in zip(trials[:DECODED], renderings, strict=False)
    ]
    marks = follow_marks(clips, pieces, decoded)
    marks += [guidance_mark(maker, judges, clips), *seed_marks(maker, trials[:REPEATED], songs)]
    marks += time_marks(maker.load_s, seconds)
    _tell("Songs from prompts", show_marks(marks))
    _tell("Who leads", show_leads(clips, pieces))
    _tell("The worst", show_worst(clips))
    return marks


def _edits(maker: Maker, trials: Sequence[Trial]) -> list[Mark]:
    """On pieces with drums, whose rhythm is plain."""
    drummed = [trial for trial in trials if trial.piece.drums][: max(REFERENCES, EXTENDED)]
    renderings = [render(trial.piece) for trial in drummed]
    longer = [render(compose(trial.piece.seed, Wish(duration_s=SONG_S + ADDED_S))) for trial in drummed]
    songs: list[Song] = [maker.make(params_of(trial)) for trial in trials[:REPAINTED]]
    marks = [
        reference_mark(maker, drummed[:REFERENCES], renderings[:REFERENCES]),
        *repaint_marks(maker, trials[:REPAINTED], songs),
        *extend_marks(maker, drummed[:EXTENDED], renderings[:EXTENDED], longer[:EXTENDED]),
    ]
    _tell("Songs from songs", show_marks(marks))
    return marks


def _tell(title: str, table: str) -> None:
    print(f"### {title}\n\n{table}\n", flush=True)


if __name__ == "__main__":
    main()
