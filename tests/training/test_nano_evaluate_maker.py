"""The whole evaluation drives a real engine: here a tiny one, which makes noise and must be told so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.evaluate_sounds import RATE_HZ, beat
from training.nano.evaluate import edits
from training.nano.evaluate.edits import reference_mark, repaint_marks
from training.nano.evaluate.maker import Maker
from training.nano.evaluate.songs import params_of, seed_marks
from training.nano.evaluate.trials import Trial, held_out_trials


@pytest.fixture(scope="module")
def maker(tiny_checkpoint: Path) -> Maker:
    return Maker.of(str(tiny_checkpoint))


def test_x(maker):
    import time
    t = held_out_trials(1)[0]
    for i in range(2):
        a = time.time(); s = maker.make(params_of(t)); print(time.time()-a, maker.load_s)
    a = time.time(); maker.through_codec(maker.heard(s)); print(time.time()-a)
    assert 0
