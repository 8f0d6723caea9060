"""The page about limits lists all of them, with their defaults."""

import re
from pathlib import Path

from serve_app.settings import Limits

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text(encoding="utf-8")


def test_the_page_lists_every_limit_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| [^|]+ \| (\d{3}) `\w+`", PAGE, re.MULTILINE)
    assert {name: float(default) for name, default, _ in rows} == {
        name: float(value) for name, value in Limits().model_dump().items()
    }
