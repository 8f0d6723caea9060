"""What phases a vocoder is asked for, and that tones which have them go on."""

import math

import pytest
import torch
from torch import Tensor

from training.nano.phases import DELAY_S_PER_HZ, LATENT_SAMPLES, MOVED_HZ, Phases, clock

RATE_HZ = 44_100
LATENT_HZ = RATE_HZ / LATENT_SAMPLES


@pytest.fixture(scope="module")
def phases() -> Phases:
    return Phases()


def tone(hz: float, phase: float = 1.0, samples: int = RATE_HZ) -> Tensor:
    return 0.1 * torch.cos(2 * math.pi * hz * torch.arange(samples).double() / RATE_HZ + phase).float()[None]


def as_asked(hz: float, moved_hz: float, late: int, stretch: int = LATENT_SAMPLES, samples: int = RATE_HZ) -> Tensor:
    """A tone that turns at `moved_hz`, whose phase is that of `hz` in the middle of each stretch of so many samples."""
    from_middle = (torch.arange(samples).double() - late) % stretch - stretch / 2
    phase = 2 * math.pi * moved_hz * from_middle / RATE_HZ + math.pi * DELAY_S_PER_HZ * hz**2
    return 0.1 * phase.cos().float()[None]


def test_the_clock_tells_the_frames_of_a_latent_frame_apart_and_has_no_level() -> None:
    pattern = clock(24)
    assert torch.equal(pattern[:, :8], pattern[:, 8:16])
    likeness = pattern[:, :8].T @ pattern[:, :8]
    assert bool((likeness.diag() > 4 * (likeness - likeness.diag().diag()).abs().amax()).all())
    assert pattern.mean(dim=0).abs().max() < 1e-5


def test_a_tone_on_the_grid_is_asked_for_as_it_is_but_for_its_phase(phases: Phases) -> None:
    hz = 90 * LATENT_HZ  # 969 Hz, in the fourth band from A4: nothing to move
    wanted, asked = phases.wanted(tone(hz), 0), as_asked(hz, hz, late=9 % 8 * 512)
    assert wanted.distance(phases(asked)) < 0.01
    assert wanted.distance(phases(tone(hz, 3.0))) > 0.5
    torch.testing.assert_close(asked[:, 512:-LATENT_SAMPLES], asked[:, 512 + LATENT_SAMPLES :])  # no jump


def test_tones_are_moved_to_the_grid_and_low_ones_a_little(phases: Phases) -> None:
    middle, low = 90.3 * LATENT_HZ, 10.4 * LATENT_HZ  # in the fourth band above A4, and the sixth below
    asked = as_asked(middle, 90 * LATENT_HZ, late=9 % 8 * 512)
    assert phases.wanted(tone(middle), 0).distance(phases(asked)) < 0.1
    moved = low - low / MOVED_HZ * 0.4 * LATENT_HZ
    asked = as_asked(low, moved, late=-18 % 8 * 512)
    assert phases.wanted(tone(low), 0).distance(phases(asked)) < 0.2  # it jumps once in a latent frame


@pytest.mark.parametrize(("hz", "band", "halvings"), [(1500.0, 5, 1), (3000.0, 8, 2)])
def test_phases_of_high_tones_are_fixed_more_often(phases: Phases, hz: float, band: int, halvings: int) -> None:
    grid_hz = LATENT_HZ * 2**halvings
    moved = round(hz / grid_hz) * grid_hz
    asked = as_asked(hz, moved, late=3 * band % 8 * 512, stretch=LATENT_SAMPLES // 2**halvings)
    assert phases.wanted(tone(hz), 0).distance(phases(asked)) < 0.1


def test_silence_is_a_whole_error(phases: Phases) -> None:
    assert phases.wanted(tone(440.0), 0).distance(phases(torch.zeros(1, RATE_HZ))) == pytest.approx(1.0, abs=0.05)


def test_audio_may_begin_anywhere_in_a_latent_frame(phases: Phases) -> None:
    whole, later = phases.wanted(tone(440.0), 0), phases.wanted(tone(440.0)[:, 1024:], 1024)
    torch.testing.assert_close(later.values, whole.values[..., 2:], rtol=1e-3, atol=1e-4)


def test_mel_frames_are_those_of_the_log_mel(phases: Phases) -> None:
    wanted = phases.of_mel_frames(tone(440.0)[:, : 64 * 512])
    assert wanted.values.shape == (1, phases.bins, 64)
    inner = phases.wanted(tone(440.0)[:, 256:], 256)  # its first frame has the middle of mel frame 2
    torch.testing.assert_close(wanted.values[..., 2:60], inner.values[..., :58], rtol=1e-2, atol=1e-3)


def test_noise_and_strokes_have_no_steady_tones(phases: Phases) -> None:
    noise = 0.1 * torch.randn(1, RATE_HZ, generator=torch.Generator().manual_seed(0))
    stroke = torch.zeros(1, RATE_HZ)
    stroke[0, 20_000] = 1.0
    loud = phases.wanted(tone(440.0), 0).tones.float().mean()
    assert phases.wanted(noise, 0).tones.float().mean() < 0.35
    assert phases.wanted(stroke, 0).tones.float().mean() < loud
