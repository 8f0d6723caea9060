"""Sample rate conversion, for the rates that everybody uses and for any other."""

import math

import pytest
import torch
from torchaudio.transforms import Resample

from acestep_engine.model.resampling import Resampler, resample_any_rate


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(2, 5_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("rate_hz", "new_rate_hz"), [(48_000, 44_100), (44_100, 48_000), (8_000, 44_100), (192_000, 44_100)]
)
def test_filters_made_on_demand_give_the_same_as_kept_ones(noise: torch.Tensor, rate_hz: int, new_rate_hz: int) -> None:
    expected = Resample(rate_hz, new_rate_hz)(noise)

    # torchaudio rounds the positions of its filters' taps to float32
    torch.testing.assert_close(resample_any_rate(noise, rate_hz, new_rate_hz), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(Resampler(torch.device("cpu"))(noise, rate_hz, new_rate_hz), expected)


@pytest.mark.parametrize("rate_hz", [44_101, 44_099, 191_999, 8_001])
def test_a_rate_without_a_common_divisor_keeps_a_tone_where_it_is(rate_hz: int) -> None:
    tone = torch.sin(2 * math.pi * 440 * torch.arange(rate_hz // 4) / rate_hz)

    found = Resampler(torch.device("cpu"))(tone, rate_hz, 44_100)

    assert found.shape[-1] == math.ceil(len(tone) * 44_100 / rate_hz)
    expected = torch.sin(2 * math.pi * 440 * torch.arange(found.shape[-1]) / 44_100)
    assert (found - expected)[500:-500].abs().max() < 5e-3


def test_the_same_rate_changes_nothing(noise: torch.Tensor) -> None:
    assert torch.equal(Resampler(torch.device("cpu"))(noise, 44_100, 44_100), noise)
