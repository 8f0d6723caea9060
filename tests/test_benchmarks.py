"""The benchmarks still run; what they say is for people."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.__main__ import PARTS
from benchmarks.tables import percentile, print_table

ROOT = Path(__file__).parent.parent


def test_a_percentile_of_few_values_is_the_nearest_above() -> None:
    values = [float(value) for value in range(20, 0, -1)]
    assert [percentile(values, percent) for percent in (5, 50, 95, 96, 100)] == [1.0, 10.0, 19.0, 20.0, 20.0]


def test_a_table_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Songs", ("audio", "s"), [("10 s", 0.12345)])
    assert capsys.readouterr().out == "### Songs\n\n| audio | s     |\n|-------|-------|\n| 10 s  | 0.123 |\n\n"


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("part", PARTS)
def test_every_part_prints_its_tables(part: str) -> None:
    assert "\n### " in _printed("benchmarks", "--only", part, "--repeats", "1")


def test_the_script_for_a_gpu_runs_on_a_cpu(
    golden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a few short songs, of the tiny model."""
    small = {"DURATIONS_S": (10.0,), "ROWS": (1, 2), "CALLERS": (2,), "MIX": ((10.0, 3), (5.0, 2)), "REPEATS": 1}
    for name, value in small.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "SONG", replace(gpu.SONG, duration_s=5.0))
    monkeypatch.setattr(sys, "argv", ["gpu", "--manifest", str(golden / "manifest-tiny.json"), "--device", "cpu"])
    gpu.main()
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert printed.count("### ") == 4
    assert len(rows) == 4 + 2 + 2 + 1 + 1  # heads; forwards, songs, decoding, traffic
    assert not any(wrong in row for row in rows for wrong in ("nan", "inf", "-"))


def _printed(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *command], check=True, cwd=ROOT, text=True, stdout=subprocess.PIPE
    ).stdout
