"""How fast music is: the beat that best explains when its notes begin."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from training.nano.evaluate.spectra import RATE_HZ, Audio, magnitudes

SLOWEST_BPM, FASTEST_BPM, GRID_BPM = 50.0, 200.0, 0.25
TOLERANCE = 0.06

WINDOW, HOP = 1024, 256
ONSET_RATE_HZ = RATE_HZ / HOP
BANDS = 48
COMPRESSION = 300.0  # of log(1 + c x): a band 50 dB below full scale still counts
LOCAL_S = 0.4  # an onset stands out of the mean of so much around it
COMB_BEATS = 8
# Listeners tap near this; between equal combs the nearer to it is taken (van Noorden and Moelants 1999).
PREFERRED_BPM, PREFERENCE_OCTAVES = 110.0, 1.4


def onset_strength(audio: Audio) -> Tensor:
    """How much begins, (T,) at `ONSET_RATE_HZ`, 0 or more: the growth of log-mel bands, over that around it."""
    bank = melscale_fbanks(WINDOW // 2 + 1, 30.0, 16_000.0, BANDS, RATE_HZ, norm=None, mel_scale="htk")
    bands = (1 + COMPRESSION * (bank.T @ magnitudes(audio, WINDOW, HOP))).log()  # (BANDS, T)
    growth = F.pad((bands[:, 1:] - bands[:, :-1]).clamp(min=0).mean(dim=0), (1, 0))  # (T,)
    return (growth - _local_mean(growth, round(LOCAL_S * ONSET_RATE_HZ))).clamp(min=0)


def tempo_bpm(audio: Audio) -> float:
    """Beats per minute, 50 to 200, of audio of 4 s or more. An octave off is as right. Silence answers the slowest."""
    onsets = onset_strength(audio)
    tempos = torch.arange(SLOWEST_BPM, FASTEST_BPM + GRID_BPM / 2, GRID_BPM)
    preference = torch.exp(-0.5 * ((tempos / PREFERRED_BPM).log2() / PREFERENCE_OCTAVES) ** 2)
    score = _comb(_autocorrelation(onsets), tempos).clamp(min=0) * _periodicity(onsets, tempos) * preference
    return _refined(tempos, score)


def same_tempo(found_bpm: float, asked_bpm: float) -> bool:
    """Whether one is the other within 6 %, or half or double of it."""
    octaves = math.log2(found_bpm / asked_bpm)
    return round(octaves) in (-1, 0, 1) and abs(2.0 ** (octaves - round(octaves)) - 1) <= TOLERANCE


def rhythm_similarity(audio: Audio, other: Audio, slack_s: float = 0.05) -> float:
    """How alike it is when notes begin in two pieces, -1 to 1: the best correlation with a shift of up to `slack_s`."""
    length = min(audio.shape[1], other.shape[1])
    one, two = (_standardised(onset_strength(part[:, :length])) for part in (audio, other))
    slack = round(slack_s * ONSET_RATE_HZ)
    shifts = range(-slack, slack + 1)
    return max(float((one * two.roll(shift)).mean()) for shift in shifts)


def _standardised(onsets: Tensor) -> Tensor:
    """Of mean 0 and variance 1, smoothed over what no listener tells apart."""
    smooth = _local_mean(onsets, 5)
    return (smooth - smooth.mean()) / smooth.std().clamp(min=1e-9)


def _local_mean(values: Tensor, width: int) -> Tensor:
    """The mean of `width` (made odd) values around each (T,)."""
    odd = width | 1
    return F.avg_pool1d(values[None, None], odd, 1, odd // 2, count_include_pad=False)[0, 0]


def _autocorrelation(onsets: Tensor) -> Tensor:
    """Normalised to 1 at lag 0, for every lag of at most three quarters of (T,), unbiased."""
    centred = onsets - onsets.mean()
    length = len(onsets)
    power = torch.fft.rfft(centred, 2 * length).abs().square()
    raw = torch.fft.irfft(power)[: 3 * length // 4]
    unbiased = raw / (length - torch.arange(len(raw)))
    normalised: Tensor = unbiased / unbiased[0].clamp(min=1e-12)
    return normalised


def _comb(correlation: Tensor, tempos: Tensor) -> Tensor:
    """For each tempo the mean correlation at its first beats."""
    lags = 60.0 / tempos[:, None] * torch.arange(1, COMB_BEATS + 1) * ONSET_RATE_HZ  # (tempos, beats)
    known = lags < len(correlation) - 1
    lower = lags.floor().clamp(max=len(correlation) - 2).long()
    share = lags - lower
    values = correlation[lower] * (1 - share) + correlation[lower + 1] * share
    return torch.where(known, values, 0.0).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def _periodicity(onsets: Tensor, tempos: Tensor) -> Tensor:
    """For each tempo how strongly the onsets repeat at the beat and at its halves, thirds or quarters, the strongest.

    A comb whose every third or fourth tooth is a beat matches by chance; what repeats at its own rate is weaker.
    """
    seconds = torch.arange(len(onsets)) / ONSET_RATE_HZ
    windowed = (onsets - onsets.mean()) * torch.hann_window(len(onsets))
    phase = 2 * math.pi / 60.0 * tempos[:, None] * seconds  # (tempos, T)
    beat, *parts = (torch.hypot((n * phase).cos() @ windowed, (n * phase).sin() @ windowed) for n in (1, 2, 3, 4))
    return beat + torch.stack(parts).amax(dim=0)


def _refined(tempos: Tensor, score: Tensor) -> float:
    """The best tempo, between grid points by the parabola through its neighbours."""
    best = int(score.argmax())
    if not 0 < best < len(score) - 1:
        return float(tempos[best])
    left, middle, right = (float(score[best + step]) for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    offset = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return float(tempos[best]) + offset * GRID_BPM
