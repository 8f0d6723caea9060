"""What phases a vocoder is asked for, and that tones which have them go on."""

import math

import pytest
import torch
from torch import Tensor

from acestep_engine.params import SAMPLES_PER_LATENT as LATENT_SAMPLES
from training.nano.phases import DELAY_S_PER_HZ, MOVED_HZ, Phases, clock

RATE_HZ = 44_100
LATENT_HZ = RATE_HZ / LATENT_SAMPLES


@pytest.fixture(scope="module")
def phases() -> Phases:
    return Phases(2048, 150.0, 4000.0)


def tone(hz: float, phase: float = 1.0, samples: int = RATE_HZ) -> Tensor:
    return 0.1 * torch.cos(2 * math.pi * hz * torch.arange(samples).double() / RATE_HZ + phase).float()[None]


def as_asked(hz: float, moved_hz: float, late: int, period: int = LATENT_SAMPLES, samples: int = RATE_HZ) -> Tensor:
    """The lines beside `moved_hz`, weighted by a Hann window's spectrum, with the phase of `hz` amid each period."""
    delay = math.pi * DELAY_S_PER_HZ * hz**2
    periods = (torch.arange(samples).double() - late) / period - 0.5
    turns = moved_hz * period / RATE_HZ
    audio = torch.zeros(samples).double()
    for line in (math.floor(turns + 1e-9), math.floor(turns + 1e-9) + 1):
        apart = turns - line
        share = math.sin(2 * math.pi * apart) / (2 * math.pi * apart * (1 - 4 * apart**2)) if abs(apart) > 1e-6 else 1.0
        audio += share * (2 * math.pi * line * periods + delay).cos()
    return 0.1 * audio.float()[None]


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
    steady = asked[:, LATENT_SAMPLES:-LATENT_SAMPLES]
    torch.testing.assert_close(steady[:, LATENT_SAMPLES:], steady[:, :-LATENT_SAMPLES], rtol=0, atol=1e-5)


def test_a_tone_above_500_hz_is_moved_to_the_grid(phases: Phases) -> None:
    asked = as_asked(90.3 * LATENT_HZ, 90 * LATENT_HZ, late=9 % 8 * 512)  # in the fourth band above A4
    assert phases.wanted(tone(90.3 * LATENT_HZ), 0).distance(phases(asked)) < 0.01


@pytest.mark.parametrize(("lines", "band"), [(20.4, -3), (10.4, -6), (5.5, -9)])
def test_a_low_tone_is_moved_a_little_and_parted_between_two_lines(lines: float, band: int) -> None:
    long = Phases(8192, 40.0, 400.0)
    hz = lines * LATENT_HZ
    moved = hz + hz / MOVED_HZ * (round(lines) * LATENT_HZ - hz)
    asked = as_asked(hz, moved, late=3 * band % 8 * 512, samples=2 * RATE_HZ)
    wanted = long.wanted(tone(hz, samples=2 * RATE_HZ), 0)
    assert wanted.tones.any()
    assert wanted.distance(long(asked)) < 0.01
    elsewhere = as_asked(hz, moved, late=3 * band % 8 * 512 + LATENT_SAMPLES // 2, samples=2 * RATE_HZ)
    assert wanted.distance(long(elsewhere)) > 0.3


@pytest.mark.parametrize(("hz", "band", "coarser"), [(1500.0, 5, 1), (3000.0, 8, 2)])
def test_the_grid_is_coarser_for_high_tones(phases: Phases, hz: float, band: int, coarser: int) -> None:
    grid_hz = LATENT_HZ * 2**coarser
    moved = round(hz / grid_hz) * grid_hz
    asked = as_asked(hz, moved, late=3 * band % 8 * 512, period=LATENT_SAMPLES // 2**coarser)
    assert phases.wanted(tone(hz), 0).distance(phases(asked)) < 0.01


def test_a_long_window_parts_the_tones_of_a_bass() -> None:
    together = tone(55.0) + tone(110.0)
    apart = {
        window: Phases(window, 40.0, 400.0).wanted(together, 0).distance(
            Phases(window, 40.0, 400.0)(lines_of(55.0, -9) + lines_of(110.0, -6))
        )
        for window in (2048, 8192)
    }  # fmt: skip
    assert apart[8192] < 0.05
    assert apart[2048] > 3 * apart[8192]


def lines_of(hz: float, band: int, coarser: int = 0) -> Tensor:
    grid_hz = LATENT_HZ * 2**coarser
    moved = hz + min(hz / MOVED_HZ, 1.0) * (round(hz / grid_hz) * grid_hz - hz)
    return as_asked(hz, moved, late=3 * band % 8 * 512, period=LATENT_SAMPLES // 2**coarser)


def test_silence_is_a_whole_error_of_tones() -> None:
    phases = Phases(2048, 150.0, 4000.0, elsewhere=0.0)
    wanted = phases.wanted(tone(440.0), 0)
    assert wanted.distance(phases(torch.zeros(1, RATE_HZ))) == pytest.approx(1.0, abs=0.01)


def test_what_is_louder_beside_a_tone_is_an_error_and_what_is_softer_is_none(phases: Phases) -> None:
    wanted = phases.wanted(tone(969.0) + tone(2500.0), 0)
    clean = lines_of(969.0, 3) + lines_of(2500.0, 7, coarser=2)
    near = wanted.distance(phases(clean))
    assert near < 0.01
    assert wanted.distance(phases(clean + 0.01 * tone(1700.0))) > near + 0.05
    tones_alone = Phases(2048, 150.0, 4000.0, elsewhere=0.0).wanted(tone(969.0) + tone(2500.0), 0)
    assert tones_alone.distance(phases(clean + 0.01 * tone(1700.0))) < 0.01
    stroke = torch.zeros(1, RATE_HZ)
    stroke[0, 20_000] = 1.0
    without = phases.wanted(tone(969.0) + stroke, 0).distance(phases(lines_of(969.0, 3)))
    assert without < 0.1


def test_audio_may_begin_anywhere_in_a_latent_frame(phases: Phases) -> None:
    whole, later = phases.wanted(tone(440.0), 0), phases.wanted(tone(440.0)[:, 1024:], 1024)
    torch.testing.assert_close(later.values, whole.values[..., 2:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("window", [2048, 8192])
def test_mel_frames_are_those_of_the_log_mel(window: int) -> None:
    phases = Phases(window, 150.0, 1000.0)
    wanted = phases.of_mel_frames(tone(440.0)[:, : 64 * 512])
    assert wanted.values.shape == (1, phases.bins, 64)
    inner = phases.wanted(tone(440.0)[:, 256:], 256)  # its frames have their middles in those of mel frames
    first = window // 1024
    torch.testing.assert_close(wanted.values[..., first : first + 40], inner.values[..., :40], rtol=1e-2, atol=1e-3)


def test_noise_and_strokes_have_no_steady_tones(phases: Phases) -> None:
    noise = 0.1 * torch.randn(1, RATE_HZ, generator=torch.Generator().manual_seed(0))
    stroke = torch.zeros(1, RATE_HZ)
    stroke[0, 20_000] = 1.0
    loud = phases.wanted(tone(440.0), 0).tones.float().mean()
    assert phases.wanted(noise, 0).tones.float().mean() < 0.35
    assert phases.wanted(stroke, 0).tones.float().mean() < loud
