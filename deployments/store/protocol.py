"""What the JobManager needs of a job store, whatever keeps it.

Every change of a job is a compare-and-set: it answers False when the job was not in a state that allows it, so that an
ended job never changes again, whoever comes late. A job that has not ended is pending here: that it runs is known to
its JobManager only, and no longer true after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from acestep_engine.params import AudioFormat, GenerationParams
from deployments.messages import Outcome, SongResult, Status, StorageError


class StoreFormatError(StorageError):
    """The store was not written by this version, or it is damaged. It is left as it is."""


class StoreDeposedError(StorageError):
    """Another JobManager owns the store now. This is final: every later change raises it too, so do not try again."""


@dataclass(frozen=True)
class Callback:
    """Whom to tell that a job has ended. `attempts` were made to; the next one is due at `due`, in Unix seconds."""

    url: str
    attempts: int = 0
    due: float = 0.0


@dataclass(frozen=True)
class JobRow:
    """A job as it is kept. Times are Unix seconds."""

    request_id: str
    status: Status
    created_at: float
    songs: tuple[GenerationParams, ...]
    audio_format: AudioFormat
    request_json: dict[str, Any]
    key: str  # no two jobs have the same
    request_digest: str = ""  # of what was asked for
    save_file: bool = False
    priority: int = 5  # 0 to 9, the most urgent
    source: str | None = None  # the file that its songs begin from, as `JobFiles` names it
    attempts: int = 0  # how often one of its songs was handed to a Generator, at most
    started_at: float | None = None
    completed_at: float | None = None
    outcome: Outcome | None = None
    error: str | None = None
    error_code: str | None = None
    results: tuple[SongResult, ...] = ()  # one for each song
    output_paths: tuple[str, ...] = ()  # the file names it has claimed in the output folder, one for each song
    callback: Callback | None = None  # until it was delivered or given up

    @property
    def ended(self) -> bool:
        return self.outcome is not None


@dataclass(frozen=True)
class Ending:
    """How a job ended: `results` for completed ones, `error` and `error_code` for all others."""

    outcome: Outcome
    at: float
    results: tuple[SongResult, ...] = ()
    error: str | None = None
    error_code: str | None = None

    @property
    def status(self) -> Status:
        return "completed" if self.outcome == "completed" else "failed"


class JobStore(Protocol):
    """Every method raises StorageError when the store cannot be read or written just now."""

    @property
    def is_deposed(self) -> bool:
        """Return whether another JobManager owns the store."""

    def depose(self) -> None:
        """Refuse everything from now on: another JobManager owns the state folder."""

    async def hold(self) -> None:
        """Show other services that this store is in use, until this is cancelled or another JobManager owns it."""

    async def add(self, row: JobRow) -> bool:
        """Keep a new pending job. It is durable when this returns. False if another job has its id or its key."""

    async def get(self, request_id: str) -> JobRow | None:
        """The row, or None."""

    async def find_key(self, key: str) -> JobRow | None:
        """The row that has this key, or None."""

    async def set_attempts(self, request_id: str, attempts: int) -> bool:
        """Remember how often the songs of a job were tried. False if it has ended."""

    async def claim_outputs(self, request_id: str, paths: Sequence[str]) -> bool:
        """Remember which output files belong to a job that has not ended. False if it has."""

    async def finish(self, request_id: str, ending: Ending, started_at: float | None = None) -> bool:
        """pending -> completed or failed; `started_at` None if it never ran. False if it had ended before."""

    async def set_callback(self, request_id: str, callback: Callback | None) -> bool:
        """Remember how far the callback of an ended job is; None: nothing is left to do. False for an unknown job."""

    async def callbacks(self) -> list[JobRow]:
        """All jobs that have ended and whose callback is still to be made."""

    async def unfinished(self) -> list[JobRow]:
        """All jobs that have not ended, in the order they were added."""

    async def counts(self) -> dict[Status, int]:
        """How many jobs are kept, by status; every status is there."""

    async def expire_results(self, completed_before: float) -> Sequence[str]:
        """completed -> expired for the jobs completed before that time: their ids. Their status stays completed."""

    async def expire(self, request_ids: Sequence[str]) -> None:
        """completed -> expired for those of these jobs that are completed."""

    async def remove_ended(self, completed_before: float) -> Sequence[str]:
        """Forget the jobs that ended before that time: their ids."""

    async def get_setting(self, key: str) -> str | None:
        """A setting that outlives the process, or None."""

    async def put_setting(self, key: str, value: str) -> None:
        """Keep a setting."""

    async def close(self) -> None:
        """Write what is left and let go of the store."""
