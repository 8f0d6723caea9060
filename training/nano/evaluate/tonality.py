"""Whether a spectrogram shows notes: peaks over what is between them."""

import torch
from torch import Tensor

from training.nano.evaluate.spectra import Audio, band_rows, magnitudes

WINDOW, HOP = 8192, 4096
LOW_HZ, HIGH_HZ = 80.0, 5000.0
NEIGHBOURHOOD = 48  # bins, about 260 Hz: partials of one note leave most of them free
PEAK_DB = 10.0  # over the middle of its neighbourhood; of white noise every hundredth bin is
LOUD_DB = -50.0  # under full scale: softer frames are not judged


def tonal_to_noise_db(audio: Audio) -> float:
    """The power of spectral peaks over that of their neighbourhoods, in dB: the median of frames louder than -50 dB.

    White noise has about -15 dB, a chord of sines over 40 dB. Minus infinity if all is softer.
    """
    power = magnitudes(audio, WINDOW, HOP)[band_rows(WINDOW, LOW_HZ, HIGH_HZ)].square()  # (F, T)
    power = power[:, 10 * power.sum(dim=0).log10() > LOUD_DB]
    if power.shape[1] == 0:
        return float("-inf")
    floor = _middle_around(power)
    peaks = torch.where(power > 10 ** (PEAK_DB / 10) * floor, power, 0.0).sum(dim=0)
    ratio = (peaks + 1e-12) / (floor.sum(dim=0) + 1e-12)
    return float((10 * ratio.log10()).median())


def _middle_around(power: Tensor) -> Tensor:
    """The median of each bin's block of neighbours, (F, T) as `power`; the last block is the last whole one."""
    bins = power.shape[0]
    middles = torch.stack([block.median(dim=0).values for block in power.split(NEIGHBOURHOOD)[: bins // NEIGHBOURHOOD]])
    return middles.repeat_interleave(NEIGHBOURHOOD, dim=0)[
        torch.arange(bins).clamp(max=len(middles) * NEIGHBOURHOOD - 1)
    ]
