"""The stages of the training follow one another, and a signal stops them all."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.stage_runner import LEAVE_A_MARK, Script
from training.nano.stages import TORCHRUN, run_stages, stages

TIMEOUT_S = 60.0


def test_every_stage_reads_what_an_earlier_one_writes(tmp_path: Path) -> None:
    written: set[str] = set()
    for stage in stages(tmp_path, 1.0):
        named = dict(zip(stage.arguments[::2], stage.arguments[1::2], strict=True))
        read = {"autoencoder": {"--data"}, "vocoder": {"--data", "--through"}, "latents": {"--autoencoder"}}
        assert {named[option] for option in read.get(stage.module, set())} <= written
        if stage.module == "transformer":
            assert {f"{named['--data']}/train", f"{named['--data']}/held-out"} <= written
        written |= {named[option] for option in ("--out", "--data") if option in named}


def test_a_team_is_started_by_torchrun_and_a_process_alone_is_not(tmp_path: Path) -> None:
    first, *_, last = stages(tmp_path, 1.0, processes=2)
    assert first.command[1:3] == ["-m", "training.nano.codec_data"]
    assert last.command[1:7] == ["-m", *TORCHRUN, "--nproc-per-node", "2", "-m"]
    assert last.command[7] == "training.nano.transformer"
    assert stages(tmp_path, 1.0)[-1].command[2] == "training.nano.transformer"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_stage_save_and_no_other_begins(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.stage_runner", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as runner:
        deadline = time.monotonic() + TIMEOUT_S
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        runner.send_signal(number)
        _, told = runner.communicate(timeout=TIMEOUT_S)

    assert runner.returncode == 128 + number
    assert told == "first was stopped; the same command goes on from here\n"
    assert (tmp_path / "saved").read_text() == "once"
    assert not (tmp_path / "second").exists()


def test_after_a_stage_that_fails_no_other_begins(tmp_path: Path) -> None:
    failing, second = Script("first", "", ("raise SystemExit(3)",)), Script("second", "", (LEAVE_A_MARK, str(tmp_path)))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]

    with pytest.raises(SystemExit, match="first ended with 3"):
        run_stages([failing, second])

    assert not (tmp_path / "second").exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
