"""The judges: what they are shown of a sound, and that they learn what they are for."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.evaluate_sounds import beat, tones
from training.nano.compose import Wish, compose
from training.nano.evaluate.classify import FamilyNet, family_shares, mel_picture
from training.nano.evaluate.drums import BANDS_HZ, FEATURES, DrumLine, drum_features, drums_probability
from training.nano.evaluate.hear import Judges
from training.nano.evaluate.keys import KeyNet, chroma, key_of
from training.nano.evaluate.learn import Examples, examine, examples, load_judges, train
from training.nano.render import render
from training.nano.words import FAMILIES

A_MINOR_HZ = (110.0, 220.0, 261.6, 329.6, 440.0, 523.3, 659.3)


def lesson(count: int, seed: int) -> Examples:
    """Made pictures, tones and rises in which the truth is plain, under noise."""
    generator = torch.Generator().manual_seed(seed)
    families = torch.randint(0, len(FAMILIES), (count,), generator=generator)
    keys = torch.randint(0, 24, (count,), generator=generator)
    drums = torch.randint(0, 2, (count,), generator=generator).float()
    pictures = -1 + 0.2 * torch.rand(count, 128, 16, generator=generator)
    classes = torch.rand(count, 24, 9, generator=generator)
    for row, (family, key) in enumerate(zip(families.tolist(), keys.tolist(), strict=True)):
        pictures[row, 16 * family : 16 * family + 8] += 0.6
        tonic, minor = divmod(key, 2)
        classes[row, tonic] += 3.0
        for step in (0, 3 if minor else 4, 7):
            classes[row, 12 + (tonic + step) % 12] += 3.0
    rises = torch.randn(count, FEATURES, generator=generator) + 2 * drums[:, None]
    return Examples(pictures.half(), classes, rises, families, keys, drums)


def test_all_judges_learn_what_sets_their_examples_apart() -> None:
    judges = Judges(FamilyNet(), KeyNet(), DrumLine())
    train(judges, lesson(256, 0))
    verdict, mistakes = examine(judges, lesson(40, 1))
    assert "40 held-out" in verdict
    assert verdict.count("100 %") == 4, f"{verdict}; {mistakes}"
    assert mistakes.endswith("none")


def test_training_twice_gives_the_same_judges() -> None:
    weights: list[Tensor] = []
    for _ in range(2):
        judges = Judges(FamilyNet(), KeyNet(), DrumLine())
        train(judges, lesson(64, 0))
        weights.append(judges.key.judge.weight.detach())
    assert torch.equal(*weights)


def test_an_examination_names_what_is_taken_for_what() -> None:
    judges = Judges(FamilyNet(), KeyNet(), DrumLine())
    exam = lesson(30, 1)
    judges.family.eval()
    torch.nn.init.zeros_(judges.family.judge[1].weight)
    judges.family.judge[1].bias.data = torch.eye(len(FAMILIES))[2] * 5
    _, mistakes = examine(judges, exam)
    assert f"piano for {FAMILIES[2]} {int((exam.families == 0).sum())}" in mistakes


def test_music_moved_to_another_key_is_judged_the_same_in_that_key() -> None:
    net = KeyNet().eval()
    classes = lesson(2, 0).chroma
    moved = classes.unflatten(1, (2, 12)).roll(3, dims=2).flatten(1, 2)
    with torch.inference_mode():
        assert torch.allclose(net(moved), net(classes).roll(3, dims=1), atol=1e-5)


def test_the_chroma_of_a_chord_shows_its_notes_and_its_bass() -> None:
    strengths = chroma(tones(A_MINOR_HZ, 2.0)).mean(dim=1)
    assert strengths[:12].argmax() == 9
    assert set(strengths[12:].topk(3).indices.tolist()) == {9, 0, 4}


def test_a_drum_changes_no_pitch_class_as_much_as_a_note_does() -> None:
    chord = tones(A_MINOR_HZ, 4.0)
    shown = chroma(chord + beat(100, 4.0)).mean(dim=1)[12:]
    assert set(shown.topk(3).indices.tolist()) == {9, 0, 4}


def test_drums_show_as_sudden_rises_of_deep_and_of_high_bands_however_loud_they_are() -> None:
    chord = tones(A_MINOR_HZ, 4.0)
    without, with_drums = drum_features(chord), drum_features(chord + beat(100, 4.0))
    rises = slice(len(BANDS_HZ), 2 * len(BANDS_HZ))
    more = (with_drums - without)[rises]
    assert more[0] > 2
    assert more[-1] > 2
    assert torch.allclose(drum_features(0.1 * (chord + beat(100, 4.0))), with_drums, atol=0.05)


def test_a_picture_does_not_depend_on_loudness_and_stays_in_its_range() -> None:
    audio = render(compose(5, Wish(duration_s=2.0)))
    picture = mel_picture(audio)
    assert picture.shape == (128, 86)
    assert float(picture.max()) == 0
    assert float(picture.min()) >= -1
    assert torch.allclose(mel_picture(0.5 * audio), picture, atol=0.02)


def test_judges_say_how_sure_they_are() -> None:
    audio = render(compose(5, Wish(duration_s=4.0)))
    shares = family_shares(FamilyNet().eval(), audio)
    assert tuple(shares) == FAMILIES
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    key = key_of(KeyNet().eval(), audio)
    assert 0 <= key.minor <= 1
    assert key.tonic in range(12)
    assert 0 <= drums_probability(DrumLine(), audio) <= 1


def test_examples_are_what_the_judges_see_of_a_piece_and_its_truth() -> None:
    with ThreadPoolExecutor(1) as pool:
        found = examples([3, 4], pool)
    pieces = [compose(seed, Wish(duration_s=8.0)) for seed in (3, 4)]
    assert found.families.tolist() == [FAMILIES.index(piece.lead) for piece in pieces]
    assert found.keys.tolist() == [2 * piece.key + (piece.mode == "minor") for piece in pieces]
    assert found.drums.tolist() == [float(piece.drums) for piece in pieces]
    assert np.allclose(found.pictures[1].float(), mel_picture(render(pieces[1])), atol=1e-3)


@pytest.mark.slow
def test_judges_are_taught_once_and_kept(tmp_path: Path) -> None:
    told: list[str] = []
    first = load_judges(tmp_path, pieces=24, tell=told.append)
    lines = len(told)
    again = load_judges(tmp_path, pieces=24, tell=told.append)
    assert lines > 0
    assert len(told) == lines
    assert torch.equal(first.family.see[0].weight, again.family.see[0].weight)
    assert not again.family.training
