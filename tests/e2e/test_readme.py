"""The README's examples of jobs, tasks, sources, batches and lyrics run as they are written."""

import re
import subprocess
import sys
import time
import wave
import zipfile
from pathlib import Path
from typing import Any

import pytest

from deployments.callbacks import sign
from tests.e2e.server import Server

pytestmark = pytest.mark.cluster

README = Path(__file__).parents[2] / "README.md"


def examples(section: str, language: str, url: str) -> list[str]:
    """The examples of a section, in one language, for the server at `url`."""
    text = README.read_text(encoding="utf-8")
    found = re.search(rf"^### {section}$(.*?)^##", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    blocks = re.findall(rf"^```{language}$(.*?)^```$", found[1], re.MULTILINE | re.DOTALL)
    assert sum(block.count("http://localhost:8019") for block in blocks) == 1
    return [block.replace("http://localhost:8019", url) for block in blocks]


def run(command: list[str], folder: Path) -> str:
    """What it prints. It must succeed."""
    ended = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def run_bash(section: str, server: Server, folder: Path) -> str:
    script = "\n".join(["set -euo pipefail", *examples(section, "bash", server.url)])
    return run(["bash", "-c", script], folder)


def test_the_examples_of_jobs_run_as_written(server: Server, tmp_path: Path) -> None:
    printed = run_bash("Jobs", server, tmp_path)
    events = re.findall(r"^event: (.*)$", printed, re.MULTILINE)
    assert "diffusion" in events
    assert (events.count("ended"), events[-1]) == (1, "ended")
    assert '"outcome":"cancelled"' in printed
    with wave.open(str(tmp_path / "harp.wav")) as song:
        assert song.getnframes() / song.getframerate() == pytest.approx(8, abs=0.3)
    follow, verify = examples("Jobs", "python", server.url)
    assert "'outcome': 'completed'" in run([sys.executable, "-c", follow], tmp_path)
    body, now_s = b'{"type": "job.ended"}', int(time.time())
    headers = {"webhook-id": "a", "webhook-timestamp": str(now_s)}
    headers["webhook-signature"] = sign("secret", "a", now_s, body)
    names: dict[str, Any] = {}
    exec(verify, names)
    assert names["is_genuine"](headers, body, "secret")
    assert not names["is_genuine"](headers, body + b" ", "secret")
    assert not names["is_genuine"](headers, body, "other")


def test_the_examples_from_a_song_to_a_song_run_as_written(server: Server, tmp_path: Path) -> None:
    assert '"spelling":"ich zähle drei rosen"' in run_bash("From a song to a song", server, tmp_path)
    for name, seconds in {"remix": 8, "repaint": 8, "extend": 10, "edit": 8, "retake": 8, "third": 4}.items():
        with wave.open(str(tmp_path / f"{name}.wav")) as song:
            assert song.getnframes() / song.getframerate() == pytest.approx(seconds, abs=0.3)
    for name, songs in {"songs": 3, "two": 2}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
            assert len(archive.namelist()) == 2 * songs
