"""How near audio is to what it was made from, and whether a join in it clicks."""

import numpy as np

from training.nano.evaluate.spectra import AUDIBLE_DB, NEPERS_PER_DB, RATE_HZ, Audio, log_mel

JOIN_S, AROUND_S = 0.001, 0.05
CLICK = 5.0  # a step of a tenth of the signal has over 10, a drum at the join under 3


def mel_error_nepers(found: Audio, reference: Audio) -> float:
    """The mean absolute difference of log-mels over what of the reference is louder than -60 dB beside its peak.

    The longer one's end is left out. Raises ValueError if the reference is silent.
    """
    one, two = log_mel(found), log_mel(reference)
    frames = min(one.shape[-1], two.shape[-1])
    one, two = one[..., :frames], two[..., :frames]
    if not np.any(reference):
        raise ValueError("the reference is silent: nothing of it can be compared")
    audible = two > two.max() + AUDIBLE_DB * NEPERS_PER_DB
    return float((one - two).abs()[audible].mean())


def click_ratio(audio: Audio, sample: int) -> float:
    """How much the waveform bends at a sample beside how much it bends in the 50 ms on either side.

    The second difference sees a step where the music, which is smooth, has none. About 1 where nothing happens.
    """
    reach, around = round(JOIN_S * RATE_HZ), round(AROUND_S * RATE_HZ)
    first, last = max(0, sample - around), min(audio.shape[1], sample + around)
    bend = np.abs(np.diff(audio[:, first:last].astype(np.float64), n=2, axis=1)).max(axis=0)
    middle = sample - first - 1  # of the three samples that make a second difference
    join = bend[max(0, middle - reach) : middle + reach + 1]
    rest = np.concatenate([bend[: max(0, middle - reach)], bend[middle + reach + 1 :]])
    if join.size == 0 or rest.size == 0:
        raise ValueError(f"sample {sample} is not within the {audio.shape[1]} samples of the audio")
    return float(join.max() / max(np.percentile(rest, 99), 1e-6))
