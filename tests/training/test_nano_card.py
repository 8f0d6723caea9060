"""The model card names every word that the model knows."""

import re

from acestep_engine.checkpoint import NANO_PATH
from training.nano.words import vocabulary


def test_the_card_lists_the_whole_vocabulary() -> None:
    told = set(re.findall(r"[a-z\-]+", (NANO_PATH / "README.md").read_text().lower()))
    assert vocabulary() <= told
