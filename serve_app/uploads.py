"""Source audio at the edge: from base64, from an upload, from the operator's folder, and checked before it travels."""

import hashlib
import os
import re
import stat
from pathlib import Path

from acestep_engine.audio import AudioInfo, AudioLimits, check_audio
from deployments.messages import ByteArray, Upload
from serve_app.errors import too_large
from serve_app.fields import InvalidRequestError, invalid
from serve_app.large_text import decoded, foreign_letter, without_line_ends
from serve_app.settings import Limits

MIB = 2**20

DATA_URI = re.compile(r"data:[^,]{0,200};\s*base64,", re.ASCII | re.IGNORECASE)


def audio_limits(limits: Limits) -> AudioLimits:
    return AudioLimits(
        max_duration_s=limits.source_duration_s,
        max_channels=limits.source_channels,
        min_rate_hz=limits.source_min_rate_hz,
        max_rate_hz=limits.source_max_rate_hz,
    )


def decode_base64(field: str, text: object, limit_bytes: int) -> bytearray:
    """Base64 text to bytes: the standard alphabet. Padding may lack; line ends and a leading data URI are dropped.

    Raises InvalidRequestError, and HttpProblem 413 for text over `limit_bytes`.
    """
    if not isinstance(text, str):
        raise invalid(field, "is not text: send the audio file as base64")
    if len(text) > limit_bytes:
        raise too_large(f"{field}", limit_bytes)
    head = DATA_URI.match(text[:256])
    letters = without_line_ends(text[head.end() :] if head else text)
    if not letters:
        raise invalid(field, "is empty: send the audio file as base64")
    if "=" not in letters[-2:]:
        letters += "=" * (-len(letters) % 4)
    try:
        if len(letters) % 4 or letters.endswith("==="):  # the decoder lets too much padding pass
            raise invalid(field, _base64_fault(letters))
        return decoded(letters)
    except ValueError:
        raise invalid(field, _base64_fault(letters)) from None


def _base64_fault(letters: str) -> str:
    if " " in letters:
        return "has spaces, which a form makes of '+': percent-encode the base64 text"
    if "-" in letters or "_" in letters:
        return "uses the URL-safe alphabet: send the standard one, with '+' and '/'"
    foreign = foreign_letter(letters)
    if foreign is not None:
        return f"has a letter that is not base64, at position {foreign}"
    return f"is not whole: {len(letters)} letters with this padding are not base64"


def _no_such_file(field: str) -> InvalidRequestError:
    return invalid(field, "is not the relative path of a file under the server's audio folder")


def read_confined(field: str, root: Path | None, name: str, limit_bytes: int) -> bytes:
    """A regular file under `root`, opened one folder at a time and never through a link.

    Raises InvalidRequestError, with the same words whether or not there is something at a forbidden place, and
    HttpProblem 413 for a file over `limit_bytes`.
    """
    if root is None:
        raise invalid(field, "names a file, but the operator has not configured an audio folder (audio_root)")
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in name or "\0" in name:
        raise _no_such_file(field)
    try:
        file = _open_confined(root.expanduser(), parts)
    except OSError:
        raise _no_such_file(field) from None
    with os.fdopen(file, "rb") as opened:
        data = opened.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise too_large(f"the file that {field} names", limit_bytes)
    return data


def _open_confined(root: Path, parts: list[str]) -> int:
    """The file descriptor of a regular file. Raises OSError."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    inside = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        for part in parts[:-1]:
            inner = os.open(part, inside | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        file = os.open(parts[-1], inside | os.O_NONBLOCK, dir_fd=folder)  # a FIFO without a writer must not hold us up
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        os.close(file)
        raise FileNotFoundError
    finally:
        os.close(folder)


def checked_upload(field: str, data: ByteArray, limits: Limits) -> tuple[Upload, AudioInfo]:
    """An encoded audio file as it travels, without a copy, and what is in it. Raises AudioError, AudioTooLargeError."""
    if data.nbytes > limits.upload_mb * MIB:
        raise too_large(field, limits.upload_mb * MIB)
    info = check_audio(data.data, audio_limits(limits))
    return Upload(hashlib.sha256(data.data).hexdigest(), data), info
