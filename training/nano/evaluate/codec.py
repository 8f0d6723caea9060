"""The autoencoder and the vocoder alone: held-out renderings encoded and decoded again."""

from collections.abc import Sequence
from statistics import fmean, median

from acestep_engine.decode import AUDIO_WINDOW, FIRST_WINDOW, SHORT_SONG
from acestep_engine.decode_units import first_and_equal_windows
from acestep_engine.params import SAMPLES_PER_LATENT
from training.nano.evaluate.report import Mark
from training.nano.evaluate.roundtrip import CLICK, click_ratio, mel_error_nepers
from training.nano.evaluate.spectra import Audio
from training.nano.evaluate.tonality import tonal_to_noise_db

MOST_ERROR_NEPERS = 0.5
TONAL_TOLERANCE_DB = 3.0


def codec_marks(renderings: Sequence[Audio], decoded: Sequence[Audio]) -> list[Mark]:
    """What must hold of each rendering beside what the codec leaves of it."""
    pairs = list(zip(decoded, renderings, strict=True))
    errors = [mel_error_nepers(one, other) for one, other in pairs]
    seams = [(one, other, seam) for one, other in pairs for seam in window_seams(one.shape[1])]
    clicking = [click_ratio(one, seam) for one, other, seam in seams if click_ratio(other, seam) <= CLICK]
    before, after = (median(tonal_to_noise_db(audio) for audio in clips) for clips in (renderings, decoded))
    return [
        Mark(
            "round trip: log-mel error, mean (worst)",
            f"at most {MOST_ERROR_NEPERS} nepers",
            f"{fmean(errors):.2f} ({max(errors):.2f})",
            fmean(errors) <= MOST_ERROR_NEPERS,
        ),
        Mark(
            "round trip: clicks at window seams",
            "none",
            f"{sum(ratio > CLICK for ratio in clicking)} of {len(clicking)}",
            all(ratio <= CLICK for ratio in clicking),
        ),
        Mark(
            "round trip: tonal to noise",
            f"within {TONAL_TOLERANCE_DB:g} dB of the renderings",
            f"{after:.1f} dB",
            abs(after - before) <= TONAL_TOLERANCE_DB,
            f"{before:.1f} dB",
        ),
    ]


def window_seams(samples: int) -> list[int]:
    """The samples at 44.1 kHz where a song of so many passes from one window of the decoder to the next."""
    frames = -(-samples // SAMPLES_PER_LATENT)
    first_stop = frames if frames <= SHORT_SONG else FIRST_WINDOW
    windows = first_and_equal_windows(0, first_stop, frames, AUDIO_WINDOW)
    return [stop * SAMPLES_PER_LATENT for _, stop in windows[:-1]]
