"""Sample rate conversion by windowed sinc interpolation (Smith, Digital Audio Resampling), as torchaudio defines it."""

from math import ceil, gcd, pi

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.transforms import Resample

from acestep_engine.caching import LruCache

ZERO_CROSSINGS = 6  # torchaudio's lowpass_filter_width
ROLLOFF = 0.99
# torchaudio keeps one filter per phase. Rates with a large common divisor need a few hundred phases; for 44,101 Hz to
# 44,100 Hz they would take 8 GB.
MAX_KEPT_TAPS = 2**22
OUTPUTS_AT_ONCE = 2**16
KEPT_FILTERS = 8
KEPT_FILTER_BYTES = 2**26  # four of the largest; the one of 44.1 to 48 kHz takes 0.1 MB


class Resampler:
    """Converts sample rates in float32 on one device. The filters of rates used lately are kept."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._filters: LruCache[tuple[int, int], Resample] = LruCache(KEPT_FILTERS, KEPT_FILTER_BYTES, _filter_bytes)

    def free(self) -> None:
        """Let go of all filters: the memory is needed."""
        self._filters.clear()

    def __call__(self, audio: Tensor, rate_hz: int, new_rate_hz: int) -> Tensor:
        """Audio (..., N) at `rate_hz` to (..., ceil(N * new_rate_hz / rate_hz)) at `new_rate_hz`, float32."""
        audio = audio.to(self._device, torch.float32)
        if rate_hz == new_rate_hz:
            return audio
        if _taps_of_all_phases(rate_hz, new_rate_hz) > MAX_KEPT_TAPS:
            return resample_any_rate(audio, rate_hz, new_rate_hz)
        key = (rate_hz, new_rate_hz)
        convert = self._filters.get(key)
        if convert is None:
            convert = Resample(rate_hz, new_rate_hz).to(self._device)
            self._filters.put(key, convert)
        resampled: Tensor = convert(audio)
        return resampled

    def length(self, samples: int, rate_hz: int, new_rate_hz: int) -> int:
        """How many samples a call answers for `samples`."""
        length = samples * new_rate_hz / rate_hz
        if rate_hz != new_rate_hz and _taps_of_all_phases(rate_hz, new_rate_hz) <= MAX_KEPT_TAPS:
            length = torch.tensor(length).item()  # torchaudio rounds to float32 before it rounds up
        return ceil(length)


class ResampledStream:
    """One song's sample rate conversion, piece by piece: the answers, joined, are those of the whole song."""

    def __init__(self, resampler: Resampler, rate_hz: int, new_rate_hz: int) -> None:
        self._resampler = resampler
        self._rates_hz = rate_hz, new_rate_hz
        self._block, self._new_block = _reduced(rate_hz, new_rate_hz)  # as many samples in as out, in time
        self._reach = 0 if rate_hz == new_rate_hz else _reach(rate_hz, new_rate_hz)
        self._kept: Tensor | None = None
        self._answered = 0  # of the blocks that are kept: the first ones, now context of the next

    def push(self, audio: Tensor, *, last: bool) -> Tensor:
        """The next samples (C, N >= 1) at `rate_hz` to those that they complete (C, M) at `new_rate_hz`, float32.

        The `last` answer reaches a little beyond the song's end. A call that raises may be repeated.
        """
        if self._kept is not None:
            audio = torch.cat([self._kept, audio], dim=-1)
        if last:
            audio = F.pad(audio, (0, self._reach + self._block))
        resampled = self._resampler(audio, *self._rates_hz)
        complete = max(self._answered, (audio.shape[-1] - self._reach) // self._block)
        context = min(complete, ceil(self._reach / self._block))
        self._kept = audio[:, (complete - context) * self._block :].clone()
        answer = resampled[:, self._answered * self._new_block : complete * self._new_block]
        self._answered = context
        return answer


def resample_any_rate(audio: Tensor, rate_hz: int, new_rate_hz: int) -> Tensor:
    """The same interpolation with each output's filter computed when it is needed: slower, but of bounded memory."""
    rate, new_rate = _reduced(rate_hz, new_rate_hz)
    cutoff = min(rate, new_rate) * ROLLOFF / rate  # in cycles per two input samples
    reach = _reach(rate_hz, new_rate_hz)
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


def _filter_bytes(convert: Resample) -> int:
    return sum(buffer.nbytes for buffer in convert.buffers())


def _reduced(rate_hz: int, new_rate_hz: int) -> tuple[int, int]:
    common = gcd(rate_hz, new_rate_hz)
    return rate_hz // common, new_rate_hz // common


def _reach(rate_hz: int, new_rate_hz: int) -> int:
    """Input samples that a filter has on either side."""
    rate, new_rate = _reduced(rate_hz, new_rate_hz)
    return ceil(ZERO_CROSSINGS * rate / (min(rate, new_rate) * ROLLOFF))


def _taps_of_all_phases(rate_hz: int, new_rate_hz: int) -> int:
    rate, new_rate = _reduced(rate_hz, new_rate_hz)
    return new_rate * (rate + 2 * _reach(rate_hz, new_rate_hz))
