"""What is read of the transformer's hidden states while it learns."""

import math

import pytest
import torch
from torch import Tensor, nn

from training.nano.readings import TURNS_PER_BAR, Readings
from training.nano.score.harmony import PITCH_CLASSES

SONGS, FRAMES, TURNS = 2, 9, len(TURNS_PER_BAR)
DIM = 2 * TURNS + PITCH_CLASSES


@pytest.fixture
def bars() -> Tensor:
    return torch.rand(SONGS, FRAMES, generator=torch.Generator().manual_seed(0)) * 4


@pytest.fixture
def chords() -> Tensor:
    return (torch.rand(SONGS, FRAMES, PITCH_CLASSES, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def known(bars: Tensor, chords: Tensor) -> Tensor:
    """Hidden states (tokens, DIM) that say it all, each song's followed by its gap; all have the same size."""
    turns = 2 * math.pi * bars[..., None] * torch.tensor(TURNS_PER_BAR)
    hidden = torch.cat([turns.cos(), turns.sin(), 2 * chords - 1], dim=-1)
    return torch.cat([hidden, torch.full((SONGS, 1, DIM), 9.0)], dim=1).flatten(0, 1)


def test_what_a_block_knows_can_be_read_off_it_without_the_gaps(bars: Tensor, chords: Tensor) -> None:
    block = nn.Identity()
    readings = Readings(block, DIM)
    size = math.sqrt((TURNS + PITCH_CLASSES) / DIM)
    with torch.no_grad():
        for linear, first in ((readings.place, 0), (readings.chord, 2 * TURNS)):
            linear.bias.zero_()
            linear.weight.copy_(torch.eye(DIM)[first : first + linear.out_features] * size)
        readings.chord.weight.mul_(20.0)

    block(known(bars, chords))
    place, chord = readings.errors(bars, chords)

    assert place < 1e-6
    assert chord < 1e-6
    wrong_place, wrong_chord = readings.errors(bars + 0.5, 1 - chords)
    assert wrong_place > 0.5
    assert wrong_chord > 10


def test_saying_nothing_costs_half_of_a_place_and_a_bit_of_a_chord(bars: Tensor, chords: Tensor) -> None:
    block = nn.Identity()
    readings = Readings(block, DIM)
    with torch.no_grad():
        for value in readings.parameters():
            value.zero_()
    block(known(bars, chords))
    place, chord = readings.errors(bars, chords)
    assert place.item() == pytest.approx(0.5)
    assert chord.item() == pytest.approx(math.log(2))
