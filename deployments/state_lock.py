"""One JobManager at a time for one state folder: while Serve replaces it, two of them live for a moment."""

import asyncio
import fcntl
import os
import time
from pathlib import Path
from typing import Self

from deployments.messages import StorageError

WAIT_S = 60.0
CHECK_S = 0.5
POLL_S = 0.1


class StateLock:
    """Holds a lock that the system releases when the process ends, however it ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    async def acquire(cls, folder: Path) -> Self:
        """Wait until no other process holds the folder. Raises StorageError after a minute, or if it is read-only."""
        descriptor = _open(folder)
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if asyncio.get_running_loop().time() >= deadline:
                    os.close(descriptor)
                    raise StorageError(_in_use(folder)) from None
                await asyncio.sleep(POLL_S)
            else:
                return cls(folder / "lock", descriptor)

    def is_lost(self) -> bool:
        """Return whether the locked file is no longer the folder's: another process may have locked the new one."""
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return True
        except OSError:  # nobody else can lock it either
            return False
        return not os.path.samestat(there, os.fstat(self._descriptor))

    @staticmethod
    def check(folder: Path) -> None:
        """Raise StorageError if another process holds the folder, or if it is read-only.

        A process that is ending has a moment to let go of it.
        """
        descriptor = _open(folder)
        give_up_at = time.monotonic() + CHECK_S
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    if time.monotonic() >= give_up_at:
                        raise StorageError(_in_use(folder)) from None
                    time.sleep(POLL_S)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        os.close(self._descriptor)


def _open(folder: Path) -> int:
    try:
        os.makedirs(folder, exist_ok=True)
        return os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise StorageError(f"the state folder {folder} cannot be written: {error.strerror}") from error


def _in_use(folder: Path) -> str:
    return f"another service uses the state folder {folder}: stop it, or set another `state_dir`"
