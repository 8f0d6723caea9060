"""Folders that a start needs: whether they can be written, and where Ray keeps its files."""

import os
import shutil
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from serve_app.start.errors import StartError

PROBE_BYTES = 64 * 1024
RAY_NEEDS_MIB = 100
MIB = 2**20
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107  # the longest name of a UNIX socket
RAY_SOCKET = "ray/session_2026-11-30_19-16-00_123456_1234567/sockets/plasma_store"  # Ray's longest, below its folder
PYTHON_SOCKET = "pymp-12345678/listener-12345678"  # of a process that forks others, below TMPDIR


def writing_problem(folder: Path) -> str | None:
    """Return why no file can be written in this folder, or None. The folder need not exist yet."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


def choose_folders(environment: MutableMapping[str, str]) -> None:
    """Set RAY_TMPDIR and TMPDIR where Ray cannot use what they are. Raises StartError as `choose_ray_folder` does."""
    choose_ray_folder(environment)
    temporary = environment.get("TMPDIR")
    if temporary is not None and len(os.fsencode(Path(temporary) / PYTHON_SOCKET)) > SOCKET_PATH_BYTES:
        environment["TMPDIR"] = environment.get("RAY_TMPDIR", "/tmp")  # else Ray's dashboard does not start


def choose_ray_folder(environment: MutableMapping[str, str]) -> None:
    """Set RAY_TMPDIR if Ray cannot use its default folder. Raises StartError if the user's own choice is the reason.

    Ray keeps its sockets and logs in `ray` below RAY_TMPDIR, TMPDIR or /tmp.
    """
    chosen = environment.get("RAY_TMPDIR")
    default = Path(chosen or (environment.get("TMPDIR") if sys.platform == "linux" else None) or "/tmp")
    problem = ray_folder_problem(default)
    if problem is None:
        return
    if chosen is not None:
        raise StartError(f"Ray cannot keep its files below RAY_TMPDIR, {chosen}: {problem}. Set it to another folder")
    for parent in (Path("/tmp"), Path("/var/tmp")):
        for folder in (parent, parent / f"acestep-{os.getuid()}"):
            if (folder == parent or _make_private(folder)) and ray_folder_problem(folder) is None:
                print(
                    f"acestep-serve: Ray keeps its files in {folder}/ray; {default}/ray cannot be used: {problem}",
                    file=sys.stderr,
                )
                environment["RAY_TMPDIR"] = str(folder)
                return
    raise StartError(f"Ray cannot keep its files in {default}/ray: {problem}. Set RAY_TMPDIR to another folder")


def ray_folder_problem(parent: Path) -> str | None:
    """Return why Ray cannot keep its files below this folder, or None."""
    if not parent.is_absolute():
        return "the path is not absolute"
    length = len(os.fsencode(parent / RAY_SOCKET))
    if length > SOCKET_PATH_BYTES:
        return f"a socket's path of {length} bytes would exceed the limit of {SOCKET_PATH_BYTES}"
    folder = parent / "ray"
    problem = writing_problem(folder)
    if problem is not None:
        return problem
    place = folder if folder.exists() else next(above for above in folder.parents if above.exists())
    free_mib = shutil.disk_usage(place).free // MIB
    return None if free_mib >= RAY_NEEDS_MIB else f"{free_mib} MiB are free there, {RAY_NEEDS_MIB} are needed"


def _make_private(folder: Path) -> bool:
    """Make a folder that only this user can enter. Return False if the name belongs to another user."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    return folder.is_dir() and not folder.is_symlink() and status.st_uid == os.getuid() and not status.st_mode & 0o077
