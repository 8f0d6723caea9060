"""A twentieth of most kinds of abuse, against a server of its own; `python -m tests.abuse` does all of it."""

from pathlib import Path

import pytest

from tests.abuse.campaign import run
from tests.abuse.cases import CASES
from tests.e2e.server import serving

AMOUNT = 0.05
TAKE_MINUTES = ("amplified sources", "500 songs")  # of the model's time; nothing of them can be small


@pytest.mark.timeout(600)
def test_one_client_cannot_hurt_the_others(tmp_path: Path) -> None:
    cases = [case for case in CASES if case.name not in TAKE_MINUTES]
    with serving(tmp_path) as server:
        for record in run(cases, server.url, server.pid, tmp_path / ".acestep", AMOUNT):
            # The times are for the table: a machine that runs tests is slow in its own ways.
            assert record.song_is_made, record.row()
            assert not record.left, record.row()
            assert not record.health.failures, record.row()
            assert max(record.grown_mib.values()) < 400, record.row()
    assert "Traceback" not in (tmp_path / "log").read_text(errors="replace")
