"""What counts as an error of a mel or a sound."""

import torch
from torch import Tensor

from training.nano.codec_losses import SpectralLoss, audible_error, mel_loss, spectrum


def tone(hz: float, phase: float = 0.0) -> Tensor:
    """(1, 1, N)"""
    return 0.3 * torch.sin(2 * torch.pi * hz * torch.arange(8192) / 44_100 + phase)[None, None]


def noise(seed: int = 0) -> Tensor:
    """(1, 1, N)"""
    return 0.2 * torch.randn(1, 1, 8192, generator=torch.Generator().manual_seed(seed))


def test_an_error_counts_where_it_is_louder_than_60_db_below_the_loudest() -> None:
    expected = torch.full((1, 2, 128, 16), -9.0)
    expected[:, :, :32] = 0.0
    found = expected.clone()
    found[:, :, :32] += 0.5
    found[:, :, 32:] += 3.0

    torch.testing.assert_close(audible_error(found, expected), torch.tensor(0.5))


def test_an_audible_error_costs_more_than_one_in_silence() -> None:
    expected = torch.full((1, 2, 128, 16), -9.0)
    expected[:, :, :64] = 0.0
    audible, silent = expected.clone(), expected.clone()
    audible[:, :, :64] += 0.5
    silent[:, :, 64:] += 0.5

    assert mel_loss(expected, expected) == 0
    assert mel_loss(audible, expected) > 3 * mel_loss(silent, expected) > 0


def test_white_noise_of_unit_variance_has_a_spectrum_of_about_one() -> None:
    for size in (512, 4096):
        found = spectrum(noise()[0] / 0.2, torch.hann_window(size))

        assert 0.8 < found.square().mean() < 1.2


def test_a_sound_in_another_phase_is_nearer_than_one_of_another_pitch() -> None:
    loss = SpectralLoss()
    wanted = tone(440)

    assert loss(wanted, wanted) < 1e-3
    assert loss(-wanted, wanted) < 1e-3
    assert loss(tone(440, phase=1.0), wanted) < 0.5 * loss(tone(480), wanted)
