"""Recordings that the tests of training share."""

from pathlib import Path

import pytest

from tests.training.codec import chords


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `make_recordings` leaves it."""
    return chords(tmp_path_factory.mktemp("recordings"))
