"""The README's examples of tasks, sources, batches and lyrics run as they are written."""

import re
import subprocess
import wave
import zipfile
from pathlib import Path

import pytest

from tests.e2e.server import Server

pytestmark = pytest.mark.cluster

README = Path(__file__).parents[2] / "README.md"
SECTION = re.compile(r"^### From a song to a song$(.*?)^##", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```bash$(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_examples_from_a_song_to_a_song_run_as_written(server: Server, tmp_path: Path) -> None:
    section = SECTION.search(README.read_text(encoding="utf-8"))
    assert section is not None
    script = "\n".join(["set -euo pipefail", *BLOCK.findall(section[1])])
    assert script.count("http://localhost:8019") == 1
    script = script.replace("http://localhost:8019", server.url)
    ended = subprocess.run(["bash", "-c", script], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert '"spelling":"ich zähle drei rosen"' in ended.stdout
    for name, seconds in {"remix": 8, "repaint": 8, "extend": 10, "edit": 8, "retake": 8, "third": 4}.items():
        with wave.open(str(tmp_path / f"{name}.wav")) as song:
            assert song.getnframes() / song.getframerate() == pytest.approx(seconds, abs=0.3)
    for name, songs in {"songs": 3, "two": 2}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
            assert len(archive.namelist()) == 2 * songs
