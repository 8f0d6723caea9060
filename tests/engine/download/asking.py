"""What the tests of downloads ask of a folder, and of a download that is refused."""

import pickle
from pathlib import Path

import pytest

from acestep_engine.checkpoint import LYRIC_VOCABULARY
from acestep_engine.download import WORK_FOLDER, Source, download_checkpoint
from acestep_engine.errors import DownloadError


def contents(folder: Path) -> dict[str, bytes]:
    """All files of the folder but those of the download's own work folder."""
    files = (file for file in folder.rglob("*") if file.is_file() and WORK_FOLDER not in file.parts)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def refused(folder: Path, source: Source) -> str:
    """The sentence of the DownloadError, which hides the libraries' own errors and survives pickling."""
    with pytest.raises(DownloadError) as caught:
        download_checkpoint(folder, source=source)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  our own bytes
    assert not (folder / LYRIC_VOCABULARY).exists()
    return str(error)
