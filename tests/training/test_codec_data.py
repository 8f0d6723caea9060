"""Rendered pieces on disk and segments of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from acestep_engine.model.mel import LogMel, MelConfig
from tests.training.codec import chord
from training.nano.codec_data import (
    Amount,
    Recordings,
    held_out_recordings,
    make_recordings,
    render_music,
    training_recordings,
)
from training.nano.loop import step_generator


def test_only_what_is_missing_is_rendered(tmp_path: Path) -> None:
    few, more = (Amount(pieces, held_out_pieces=1, processes=1) for pieces in (2, 3))
    rendered: list[int] = []

    def render(seed: int) -> NDArray[np.float32]:
        rendered.append(seed)
        return chord(seed)

    make_recordings(tmp_path, few, render)
    make_recordings(tmp_path, more, render)

    assert rendered == [0, 1, 10_000_000, 2]


@pytest.mark.slow
def test_two_processes_render_what_one_does(tmp_path: Path, recorded: Path) -> None:
    make_recordings(tmp_path, Amount(pieces=4, held_out_pieces=2, processes=2), chord)

    for file in recorded.rglob("*.npy"):
        assert (tmp_path / file.relative_to(recorded)).read_bytes() == file.read_bytes()


def test_held_out_pieces_are_not_among_those_to_learn_from(recorded: Path) -> None:
    learnt, held_out = training_recordings(recorded), held_out_recordings(recorded)

    assert (len(learnt), len(held_out)) == (4, 2)
    assert not any(torch.equal(held_out.whole(i), learnt.whole(j)) for i in range(2) for j in range(4))


def test_a_segment_has_the_mel_of_its_audio_with_context_on_either_side(recorded: Path) -> None:
    segments = training_recordings(recorded).draw(step_generator(0, 0), 5, frames=24, context=8)

    assert segments.audio.shape == (5, 2, 24 * 512)
    assert segments.mel.shape == (5, 2, 128, 8 + 24 + 8)
    own = LogMel(MelConfig())(segments.audio)[..., 2:-2]  # those at the edges hear the audio's mirror image
    torch.testing.assert_close(segments.mel[..., 10:-10], own, rtol=0, atol=1e-3)


def test_the_same_step_draws_the_same_segments_and_another_step_others(recorded: Path) -> None:
    recordings = training_recordings(recorded)
    first, again, other = (recordings.draw(step_generator(0, step), 3, 16).audio for step in (7, 7, 8))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_recording_shorter_than_a_segment_is_followed_by_silence(tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.full((2, 20 * 512), 10_000, dtype=np.int16))

    audio = Recordings(tmp_path).draw(step_generator(0, 0), 1, frames=64).audio[0]

    heard = audio.abs().amax(dim=0).nonzero().squeeze(1)
    assert heard.max() < 20 * 512
    assert heard.numel() == 18 * 512  # two frames lie in the margin before it


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.nano\.codec_data renders them"):
        training_recordings(tmp_path)


def test_music_is_rendered_as_long_as_asked() -> None:
    audio = render_music(0, duration_s=2.0)

    assert audio.shape == (2, 2 * 44_100)
    assert 0.05 < np.abs(audio).max() <= 0.9
