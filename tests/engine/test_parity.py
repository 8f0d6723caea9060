"""Every golden figure, through the same code as tests/parity.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.parity import Comparison

FAMILIES = (
    "lyrics",
    "text_encoder",
    "transformer",
    "schedulers",
    "guidance",
    "autoencoder",
    "overlapped_decode",
    "pipeline",
)


@pytest.fixture(scope="module")
def comparison(tiny_checkpoint: Path, golden: Path) -> Comparison:
    return Comparison(tiny_checkpoint, golden / "cases")


def test_every_golden_file_is_compared(comparison: Comparison) -> None:
    assert tuple(comparison.families()) == FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_figures_are_those_of_the_published_pipeline(comparison: Comparison, family: str) -> None:
    figures = list(comparison.families()[family]())
    assert figures
    assert not [str(figure) for figure in figures if not figure.passed]


@pytest.mark.slow
def test_the_command_exits_with_1_for_another_checkpoint(tmp_path: Path, golden: Path) -> None:
    """Sigmas do not depend on the checkpoint; hidden states do."""
    made = [sys.executable, golden / "make_checkpoint.py", tmp_path / "other", "--seed", "1"]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, golden.parent / "parity.py", tmp_path / "other", golden / "cases", "--only"]
    assert subprocess.run([*command, "schedulers"], check=False, capture_output=True).returncode == 0
    failed = subprocess.run([*command, "text_encoder"], check=False, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "FAIL" in failed.stdout
