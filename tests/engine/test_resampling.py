"""Sample rate conversion, for the rates that everybody uses and for any other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.transforms import Resample

from acestep_engine.model.resampling import ResampledStream, Resampler, resample_any_rate


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


@given(
    pieces=st.lists(st.integers(1, 700), min_size=1, max_size=6),
    rates=st.sampled_from([(44_100, 48_000), (44_100, 44_100), (48_000, 44_100), (44_100, 8_000), (44_100, 44_099)]),
)
@settings(max_examples=40)
def test_a_song_in_pieces_is_resampled_as_a_whole(pieces: list[int], rates: tuple[int, int]) -> None:
    audio = torch.randn(2, sum(pieces), generator=torch.Generator().manual_seed(0))
    resampler = Resampler(torch.device("cpu"))
    whole = resampler(audio, *rates)

    stream = ResampledStream(resampler, *rates)
    *firsts, final = audio.split(pieces, dim=-1)
    joined = torch.cat([*(stream.push(part, last=False) for part in firsts), stream.push(final, last=True)], dim=-1)

    assert joined.shape[-1] >= whole.shape[-1]
    torch.testing.assert_close(joined[:, : whole.shape[-1]], whole, rtol=1e-5, atol=1e-6)


def test_pieces_come_out_almost_as_they_go_in() -> None:
    stream = ResampledStream(Resampler(torch.device("cpu")), 44_100, 48_000)

    lengths = [stream.push(torch.zeros(2, 4_410), last=False).shape[-1] for _ in range(10)]

    assert sum(lengths) >= 48_000 - 2 * 160


@pytest.mark.parametrize("samples", [1, 147, 148, 4096, 5_000, 2584 * 4096])
@pytest.mark.parametrize("new_rate_hz", [48_000, 44_100, 44_099])
def test_the_length_is_known_before(samples: int, new_rate_hz: int) -> None:
    resampler = Resampler(torch.device("cpu"))

    length = resampler.length(samples, 44_100, new_rate_hz)

    assert abs(length - samples * new_rate_hz / 44_100) <= 1
    if new_rate_hz != 44_099 or samples < 10_000:
        assert length == resampler(torch.zeros(1, samples), 44_100, new_rate_hz).shape[-1]


def test_the_same_rate_changes_nothing(noise: torch.Tensor) -> None:
    assert torch.equal(Resampler(torch.device("cpu"))(noise, 44_100, 44_100), noise)
