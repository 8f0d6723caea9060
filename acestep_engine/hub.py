"""One published file over HTTP: fetched from where the last attempt stopped, verified, its progress in the log.

huggingface_hub's own download is not used: it starts a new temporary file on every call, so that an interrupted
download cannot go on.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from acestep_engine.errors import DownloadError

logger = logging.getLogger(__name__)

AGAIN = "run `acestep-serve download` again, which goes on from here"
TIMEOUT_S = 30.0  # to connect, and between two pieces of an answer
LOG_EVERY_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file as it is published. `path` is its place in the checkpoint folder, `size` is in bytes.

    `digest` is the sha256 of the content (64 hexadecimal digits) or its git blob id (40).
    """

    path: str
    url: str
    size: int
    digest: str

    def matches(self, file: Path) -> bool:
        """Whether `file` has this size and digest. Reads all of it, if the size is right."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        is_git = len(self.digest) == 40
        begun = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False) if is_git else hashlib.sha256()
        with file.open("rb") as content:
            return hashlib.file_digest(content, lambda: begun).hexdigest() == self.digest


def open_client() -> httpx.Client:
    """What servers are asked through. Raises DownloadError if the environment's proxy or certificates are unusable."""
    try:
        # identity: an offset into a compressed answer is no offset into the file
        return httpx.Client(follow_redirects=True, timeout=TIMEOUT_S, headers={"Accept-Encoding": "identity"})
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        raise DownloadError(
            f"the proxy or certificates that the environment names cannot be used ({error}): "
            f"check HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE, then {AGAIN}"
        ) from None


@dataclass(frozen=True)
class Server:
    """A place that files come from. `advice` is what to do when it fails, as an error can say it.

    A failure that may pass is followed by another attempt after each of `waits_s`, which begin anew when bytes arrived.
    `token` goes to the server itself, not to a storage that it redirects to.
    """

    client: httpx.Client
    advice: str
    waits_s: tuple[float, ...]
    token: str | None = None

    def read(self, url: str, name: str) -> bytes:
        """The whole answer. `name` is what an error calls it. Raises DownloadError."""

        def attempt() -> bytes:
            with self._get(url) as response:
                return response.read()

        return self._persist(attempt, name)

    def fetch(self, file: RemoteFile, part: Path) -> None:
        """Make `part` the whole file, going on from what it holds; if it turns out to be something else, remove it.

        Raises DownloadError if the server fails or the content is not what was published, OSError if the disk fails.
        """
        part.touch()
        logger.info("%s: %s, %s of it to fetch", file.path, readable(file.size), readable(file.size - size_of(part)))
        self._persist(lambda: self._append(file, part), file.path, progress=lambda: size_of(part))
        if not file.matches(part):
            size = size_of(part)
            part.unlink()
            raise DownloadError(
                f"{file.path} is not what was published: these {size} bytes are not the {file.size} with digest "
                f"{file.digest}, and were removed; {AGAIN}, and if that does not help, {self.advice}"
            )

    def _append(self, file: RemoteFile, part: Path) -> None:
        """One attempt to get what `part` lacks. What has arrived when the connection breaks is kept."""
        offset = size_of(part)
        if offset >= file.size:
            return
        with self._get(file.url, offset) as response, part.open("ab") as output:
            if offset and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                output.truncate(0)  # the whole file comes, whatever was asked for
                offset = 0
            received = offset
            for block in _logged(response.iter_bytes(), file, offset):
                output.write(block)
                received += len(block)
                if received > file.size:
                    break
            output.flush()
            os.fsync(output.fileno())

    @contextmanager
    def _get(self, url: str, offset: int = 0) -> Iterator[httpx.Response]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        with self.client.stream("GET", url, headers=headers) as response:
            yield response.raise_for_status()

    def _persist(self, attempt: Callable[[], T], name: str, progress: Callable[[], int] = lambda: 0) -> T:
        """What `attempt` returns, at last. The waits begin anew when `progress`, in bytes, is further than ever."""
        waits, furthest = iter(self.waits_s), 0
        while True:
            try:
                return attempt()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                problem = _problem(error, name)
                if progress() > furthest:
                    waits, furthest = iter(self.waits_s), progress()
                wait_s = next(waits, None) if _may_pass(error) else None
                if wait_s is None:
                    raise DownloadError(f"{problem}: {self.advice}, then {AGAIN}") from None
            logger.warning("%s; trying again in %.0f s", problem, wait_s)
            time.sleep(wait_s)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in {408, 429} or error.response.is_server_error
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def _problem(error: httpx.HTTPError | httpx.InvalidURL, name: str) -> str:
    """What went wrong, without the addresses that httpx would name: they may hold passwords and signatures."""
    if isinstance(error, httpx.InvalidURL):
        return f"the address of {name} is invalid ({error})"
    host = error.request.url.netloc.decode()
    if isinstance(error, httpx.HTTPStatusError):
        return f"{host} answers {error.response.status_code} {error.response.reason_phrase} for {name}"
    return f"{host} did not send {name} ({str(error) or type(error).__name__})"


def _logged(blocks: Iterable[bytes], file: RemoteFile, offset: int) -> Iterator[bytes]:
    """The same blocks. A log line tells every LOG_EVERY_S seconds how much of the file they make, and how fast."""
    received = told = offset
    told_at = time.monotonic()
    for block in blocks:
        yield block
        received += len(block)
        waited_s = time.monotonic() - told_at
        if waited_s > LOG_EVERY_S:
            share, rate = 100 * received / file.size, (received - told) / waited_s
            logger.info("%s: %.0f %% of %s, %s/s", file.path, share, readable(file.size), readable(rate))
            told, told_at = received, told_at + waited_s


def size_of(file: Path) -> int:
    """In bytes; 0 if there is no such file."""
    return file.stat().st_size if file.exists() else 0


def readable(size: float) -> str:
    """1_500_000 -> 1.5 MB."""
    return f"{size / 1e6:.1f} MB"
