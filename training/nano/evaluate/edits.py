"""What the tasks that begin from music keep of it: audio2audio, repaint, extend."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

from acestep_engine.audio import SourceAudio
from acestep_engine.params import SAMPLES_PER_LATENT, GenerationParams, latent_frames
from acestep_engine.requests import Song
from training.nano.evaluate.maker import Maker
from training.nano.evaluate.report import Mark, at_least, percent
from training.nano.evaluate.roundtrip import CLICK, click_ratio, mel_error_nepers
from training.nano.evaluate.songs import FOLLOWED, params_of
from training.nano.evaluate.spectra import RATE_HZ, Audio
from training.nano.evaluate.tempo import rhythm_similarity, same_tempo, tempo_bpm
from training.nano.evaluate.transposition import transposition
from training.nano.evaluate.trials import Trial

STRENGTHS = (0.2, 0.5, 0.8)
REPAINTED_S = (3.0, 6.0)
MARGIN_S = 0.5  # the decoder hears so much around what changed
MOST_CHANGE_NEPERS = 0.1
ADDED_S = 12.0  # of which all chords of a piece are heard


def reference_mark(maker: Maker, trials: Sequence[Trial], renderings: Sequence[Audio]) -> Mark:
    """audio2audio with each rendering as the reference of the next trial's prompt: rhythm, by strength."""
    means = []
    for strength in STRENGTHS:
        similar = []
        for reference, trial in zip(renderings, [*trials[1:], trials[0]], strict=True):
            params = replace(params_of(trial), task="audio2audio", ref_audio_strength=strength)
            song = maker.make(params, SourceAudio(reference, RATE_HZ))
            similar.append(rhythm_similarity(maker.heard(song), reference))
        means.append(fmean(similar))
    ceiling = fmean(rhythm_similarity(maker.through_codec(reference), reference) for reference in renderings)
    return Mark(
        f"audio2audio at strengths {', '.join(f'{one:g}' for one in STRENGTHS)}: rhythm like the reference's",
        "more the stronger",
        ", ".join(f"{one:.2f}" for one in means),
        all(weaker < stronger for weaker, stronger in pairwise(means)),
        through_codec=f"{ceiling:.2f}",
    )


def repaint_marks(maker: Maker, trials: Sequence[Trial], songs: Sequence[Song]) -> list[Mark]:
    """Seconds 3 to 6 of each song made anew."""
    start_s, stop_s = REPAINTED_S
    joins = [latent_frames(second) * SAMPLES_PER_LATENT for second in REPAINTED_S]
    before, after = round((start_s - MARGIN_S) * RATE_HZ), round((stop_s + MARGIN_S) * RATE_HZ)
    outside, inside, ratios = [], [], []
    for trial, song in zip(trials, songs, strict=True):
        params = replace(params_of(trial), task="repaint", repaint_start_s=start_s, repaint_end_s=stop_s, retake_seed=7)
        made, source = maker.heard(maker.make(params, song.latents)), maker.heard(song)
        outside += [mel_error_nepers(made[:, part], source[:, part]) for part in (slice(before), slice(after, None))]
        inside.append(mel_error_nepers(made[:, joins[0] : joins[1]], source[:, joins[0] : joins[1]]))
        ratios += [click_ratio(made, join) for join in joins]
    changed = f"{max(outside):.3f} outside, {fmean(inside):.2f} within"
    kept = max(outside) <= MOST_CHANGE_NEPERS < min(inside)
    clicks = sum(ratio > CLICK for ratio in ratios)
    return [
        Mark("repaint: log-mel change", f"at most {MOST_CHANGE_NEPERS} nepers outside, more within", changed, kept),
        Mark("repaint: clicks at its ends", "none", f"{clicks} of {len(ratios)}", clicks == 0),
    ]


def extend_marks(
    maker: Maker, trials: Sequence[Trial], sources: Sequence[Audio], longer: Sequence[Audio]
) -> list[Mark]:
    """`ADDED_S` more of each rendering; `longer` are renderings of as much in all, that go on as the pieces do."""
    tempos: list[list[bool]] = [[], []]
    keys: list[list[bool]] = [[], []]
    ratios = []
    for trial, source, whole in zip(trials, sources, longer, strict=True):
        song = maker.heard(maker.make(_extended(trial), SourceAudio(source, RATE_HZ)))
        join = -(-source.shape[1] // SAMPLES_PER_LATENT) * SAMPLES_PER_LATENT
        ratios.append(click_ratio(song, join))
        for number, added in enumerate((song[:, join:], whole[:, join:])):
            tempos[number].append(same_tempo(tempo_bpm(added), trial.piece.bpm))
            keys[number].append(transposition(added, source) == 0)
    clicks = sum(ratio > CLICK for ratio in ratios)
    return [
        _kept("extend: goes on in the tempo of its source", tempos, FOLLOWED["tempo"]),
        _kept("extend: goes on in the key of its source", keys, FOLLOWED["mode"]),
        Mark("extend: clicks at the join", "none", f"{clicks} of {len(ratios)}", clicks == 0),
    ]


def _extended(trial: Trial) -> GenerationParams:
    return replace(
        params_of(trial),
        task="extend",
        right_extend_s=ADDED_S,
        duration_s=trial.piece.duration_s + ADDED_S,
        retake_variance=1.0,  # as over HTTP
        retake_seed=7,
    )


def _kept(measure: str, verdicts: Sequence[Sequence[bool]], asked: float) -> Mark:
    songs, renderings = ((sum(found), len(found)) for found in verdicts)
    return Mark(
        measure, f"at least {100 * asked:.0f} %", percent(songs), at_least(songs, asked), renderings=percent(renderings)
    )
