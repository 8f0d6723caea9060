"""The page about clients says what the code does."""

import re
from pathlib import Path

from serve_app.names import ALIASES, IGNORED
from serve_app.settings import JobSettings

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")


def test_the_page_lists_every_name_that_is_read() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|$", PAGE, re.MULTILINE)
    listed = {name: ours for ours, names in rows for name in re.findall(r"\w+", names)}
    assert listed == dict(ALIASES)


def test_the_page_lists_every_name_that_means_nothing() -> None:
    paragraph = PAGE.partition("without any effect: ")[2].partition(". So are")[0]
    assert set(re.findall(r"`(\w+)`", paragraph)) == IGNORED


def test_the_page_names_the_time_that_an_answer_waits() -> None:
    assert f"`jobs.sync_wait_s` ({JobSettings().sync_wait_s:g} s)" in PAGE
