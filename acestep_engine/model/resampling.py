"""Sample rate conversion by windowed sinc interpolation (Smith, Digital Audio Resampling), as torchaudio defines it."""

from math import ceil, gcd, pi

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.transforms import Resample

ZERO_CROSSINGS = 6  # torchaudio's lowpass_filter_width
ROLLOFF = 0.99
# torchaudio keeps one filter per phase. Rates with a large common divisor need a few hundred phases; for 44,101 Hz to
# 44,100 Hz they would take 8 GB.
MAX_KEPT_TAPS = 2**22
OUTPUTS_AT_ONCE = 2**16


class Resampler:
    """Converts sample rates in float32 on one device. Filters are kept, so that a rate costs once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._filters: dict[tuple[int, int], Resample] = {}

    def __call__(self, audio: Tensor, rate_hz: int, new_rate_hz: int) -> Tensor:
        """Audio (..., N) at `rate_hz` to (..., ceil(N * new_rate_hz / rate_hz)) at `new_rate_hz`, float32."""
        audio = audio.to(self._device, torch.float32)
        if rate_hz == new_rate_hz:
            return audio
        if _taps_of_all_phases(rate_hz, new_rate_hz) > MAX_KEPT_TAPS:
            return resample_any_rate(audio, rate_hz, new_rate_hz)
        key = (rate_hz, new_rate_hz)
        if key not in self._filters:
            self._filters[key] = Resample(rate_hz, new_rate_hz).to(self._device)
        resampled: Tensor = self._filters[key](audio)
        return resampled


def resample_any_rate(audio: Tensor, rate_hz: int, new_rate_hz: int) -> Tensor:
    """The same interpolation with each output's filter computed when it is needed: slower, but of bounded memory."""
    common = gcd(rate_hz, new_rate_hz)
    rate, new_rate = rate_hz // common, new_rate_hz // common
    cutoff = min(rate, new_rate) * ROLLOFF / rate  # in cycles per two input samples
    reach = ceil(ZERO_CROSSINGS / cutoff)
    outputs = ceil(audio.shape[-1] * new_rate / rate)
    padded = F.pad(audio, (reach, reach + 1))
    offsets = torch.arange(-reach, reach + 2, device=audio.device)
    parts = []
    for start in range(0, outputs, OUTPUTS_AT_ONCE):
        ticks = torch.arange(start, min(start + OUTPUTS_AT_ONCE, outputs), device=audio.device) * rate
        nearest = ticks.div(new_rate, rounding_mode="floor")
        # float64: a position an hour into the signal still needs its fraction
        fraction = (ticks - nearest * new_rate).double() / new_rate
        distance = ((offsets - fraction[:, None]) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
        window = torch.cos(distance * pi / ZERO_CROSSINGS / 2).square()
        taps = (torch.sinc(distance) * window * cutoff).float()  # (outputs, taps)
        columns = nearest[:, None] + offsets + reach
        parts.append((padded[..., columns] * taps).sum(-1))
    return torch.cat(parts, dim=-1)


def _taps_of_all_phases(rate_hz: int, new_rate_hz: int) -> int:
    common = gcd(rate_hz, new_rate_hz)
    rate, new_rate = rate_hz // common, new_rate_hz // common
    return new_rate * (rate + 2 * ceil(ZERO_CROSSINGS * rate / (min(rate, new_rate) * ROLLOFF)))
