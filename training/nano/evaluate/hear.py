"""Everything that the evaluation hears in a clip, and whether it is what was asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

from training.nano.evaluate.classify import FamilyNet, family_shares
from training.nano.evaluate.drums import DrumLine, drums_probability
from training.nano.evaluate.keys import Key, KeyNet, key_of
from training.nano.evaluate.spectra import Audio
from training.nano.evaluate.tempo import same_tempo, tempo_bpm
from training.nano.evaluate.tonality import tonal_to_noise_db
from training.nano.evaluate.trials import Asked


@dataclass(frozen=True)
class Heard:
    """What a clip sounds like. `drums` and `leads` are probabilities, `tonal_db` is its tonal-to-noise ratio."""

    bpm: float
    drums: float
    leads: Mapping[str, float]
    key: Key
    tonal_db: float

    @property
    def lead(self) -> str:
        return max(self.leads, key=lambda family: self.leads[family])

    def verdicts(self, asked: Asked) -> dict[str, bool]:
        """Whether "tempo", "drums", "lead" and "mode" are as asked, as far as they were; tempo only where drums are."""
        found: dict[str, bool] = {}
        if asked.bpm is not None and asked.with_drums:
            found["tempo"] = same_tempo(self.bpm, asked.bpm)
        if asked.drums is not None:
            found["drums"] = (self.drums > 0.5) == asked.drums
        if asked.lead is not None:
            found["lead"] = self.lead == asked.lead
        if asked.mode is not None:
            found["mode"] = self.key.mode == asked.mode
        return found


@dataclass(frozen=True, eq=False)
class Judges:
    """The trained ears."""

    family: FamilyNet
    key: KeyNet
    drums: DrumLine

    def hear(self, audio: Audio) -> Heard:
        """Audio (2, N) of 4 s or more."""
        return Heard(
            bpm=tempo_bpm(audio),
            drums=drums_probability(self.drums, audio),
            leads=family_shares(self.family, audio),
            key=key_of(self.key, audio),
            tonal_db=tonal_to_noise_db(audio),
        )
