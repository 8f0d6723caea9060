"""What a client knows for itself: which jobs were accepted, how each ended, and what was published."""

import hashlib
import itertools
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.faults.application import Application

PATIENCE_S = 240.0
POLL_S = 0.05
AT_ONCE = 8  # questions

SHORT = {"prompt": "piano", "audio_duration": 1.0, "infer_step": 4, "guidance_scale": 1.0}
LONG = {"prompt": "piano", "audio_duration": 12.0, "infer_step": 60, "guidance_scale": 3.0}  # seconds of work

_seeds = itertools.count(1)  # no two jobs have the same, so that a published file tells whose it is


@dataclass
class Entry:
    """One accepted job."""

    request_id: str
    seed: int
    outcome: str | None = None
    error_code: str | None = None
    digest: str | None = None
    wrongs: list[str] = field(default_factory=list)  # what must not have happened


@dataclass(frozen=True)
class Verdict:
    """On the jobs of a ledger. Both lists are empty if the service kept its word."""

    lost: list[str]  # without an end, or without the result of a good one
    twice: list[str]  # two ends, two ids for a key, two results, two files, or a file of one that did not complete


class Ledger:
    def __init__(self, application: Application) -> None:
        self._application = application
        self._http = httpx.Client(base_url=application.url, timeout=130.0, trust_env=False)
        self._lock = threading.Lock()
        self.entries: dict[str, Entry] = {}  # by id

    def close(self) -> None:
        self._http.close()

    def submit(self, body: dict[str, Any] = SHORT, **changes: Any) -> str:
        """Have a job accepted, asking again with the same key as a careful client does: its id."""
        key, seed = uuid.uuid4().hex, next(_seeds)
        answer = self.until_answered(
            lambda: self._http.post(
                "/generate_music_async",
                json=body | {"manual_seeds": seed} | changes,
                headers={"Idempotency-Key": key},
            )
        )
        assert answer.status_code == 200, answer.text
        return self._accepted(answer.json()["request_id"], seed)

    def try_to_submit(self, body: dict[str, Any] = SHORT) -> int:
        """Ask once; the answer's status. Who is answered 200 is in the ledger, and nobody else."""
        seed = next(_seeds)
        answer = self._http.post("/generate_music_async", json=body | {"manual_seeds": seed})
        if answer.status_code == 200:
            self._accepted(answer.json()["request_id"], seed)
        return answer.status_code

    def make(self, body: dict[str, Any] = SHORT) -> int:
        """Ask for a song and wait for it, as the synchronous route does; the answer's status."""
        seed = next(_seeds)
        answer = self._http.post("/generate_music", json=body | {"manual_seeds": seed})
        if answer.status_code == 200:
            self._accepted(answer.json()["request_id"], seed)
        return answer.status_code

    def _accepted(self, request_id: str, seed: int) -> str:
        with self._lock:
            known = self.entries.setdefault(request_id, Entry(request_id, seed))
        if known.seed != seed:
            known.wrongs.append(f"{request_id} is the id of two jobs")
        return request_id

    def get(self, path: str) -> httpx.Response:
        """The answer to a question, asked again while nobody can answer."""
        return self.until_answered(lambda: self._http.get(path))

    def cancel(self, request_id: str) -> bool:
        """Whether it is cancelled now; False for one that had ended."""
        answer = self.until_answered(lambda: self._http.delete(f"/request/{request_id}"))
        assert answer.status_code in (200, 409), answer.text
        if answer.status_code == 200:
            self.note_end(self.entries[request_id], "cancelled")
        return answer.status_code == 200

    def until_answered(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = ask()
                if answer.status_code < 500 and answer.status_code != 429:
                    return answer
            except httpx.HTTPError as error:
                if time.monotonic() > give_up_at:
                    raise AssertionError(f"nobody answers: {error!r}") from error
            else:
                assert time.monotonic() < give_up_at, answer.text
            time.sleep(POLL_S)

    def status(self, request_id: str) -> dict[str, Any]:
        answer = self.get(f"/status/{request_id}")
        return answer.json() if answer.status_code == 200 else {}

    def until(self, request_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        give_up_at = time.monotonic() + PATIENCE_S
        while not condition(status := self.status(request_id)):
            assert time.monotonic() < give_up_at, f"it stays so: {status}"
            time.sleep(POLL_S)
        return status

    def until_running(self, request_id: str) -> int:
        """Until its first step is done, or it has ended: the step."""
        return step_of(self.until(request_id, lambda status: step_of(status) > 0 or has_ended(status)))

    def until_running_again(self, request_id: str) -> None:
        """After a fault: until it is seen back at the start, and then doing steps. Or until it has ended."""
        before = step_of(self.status(request_id))
        self.until(request_id, lambda status: step_of(status) < max(1, before) or has_ended(status))
        self.until_running(request_id)

    def until_ended(self, request_id: str) -> str:
        """Its outcome."""
        entry = self.entries[request_id]
        status = self.until(request_id, has_ended)
        entry.error_code = status["error_code"]
        self.note_end(entry, status["outcome"])
        return str(status["outcome"])

    @staticmethod
    def note_end(entry: Entry, outcome: str) -> None:
        if entry.outcome not in (None, outcome):
            entry.wrongs.append(f"{entry.request_id} was {entry.outcome}, then {outcome}")
        entry.outcome = outcome

    def audit(self) -> Verdict:
        """Wait for every job's end, read all that is told of it, and count what was published."""
        lost: list[str] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for entry, problem in zip(
                self.entries.values(), pool.map(self._check, list(self.entries.values())), strict=True
            ):
                if problem is not None:
                    lost.append(f"{entry.request_id}: {problem}")
        twice = [wrong for entry in self.entries.values() for wrong in entry.wrongs]
        return Verdict(lost, twice + self._wrong_files())

    def _check(self, entry: Entry) -> str | None:
        """What is missing of a job."""
        try:
            outcome = self.until_ended(entry.request_id)
        except AssertionError as error:
            return str(error)
        ends = self.get(f"/events/{entry.request_id}").text.count("event: ended")
        if ends > 1:
            entry.wrongs.append(f"{entry.request_id} told {ends} ends")
        elif ends == 0:
            return "its events have no end"
        if outcome == "completed":
            answer = self.get(f"/result/{entry.request_id}")
            if answer.status_code != 200:
                return f"its result is answered {answer.status_code}"
            digest = hashlib.sha256(answer.content).hexdigest()
            if entry.digest not in (None, digest):
                entry.wrongs.append(f"{entry.request_id} has another result than before")
            entry.digest = digest
        return None

    def _wrong_files(self) -> list[str]:
        """Published files that should not be there, or not be so, or are missing."""
        published: dict[int, list[str]] = {}
        for path in self._application.outputs.glob("output_*.wav"):
            sidecar = path.with_name(f"{path.stem}_input_params.json")
            seed = _seed_of(sidecar)
            published.setdefault(seed, []).append(hashlib.sha256(path.read_bytes()).hexdigest())
        wrong = []
        for entry in self.entries.values():
            expected = [entry.digest] if entry.outcome == "completed" else []
            if published.get(entry.seed, []) != expected:
                found = len(published.get(entry.seed, []))
                wrong.append(f"{entry.request_id}, {entry.outcome}, has {found} files that are not its result")
        return wrong

    def outcomes(self) -> Counter[str]:
        return Counter(entry.outcome or "none" for entry in self.entries.values())


def _seed_of(sidecar: Path) -> int:
    try:
        return int(json.loads(sidecar.read_text())["manual_seeds"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def step_of(status: dict[str, Any]) -> int:
    progress = status.get("progress")
    return 0 if progress is None or progress["stage"] == "encoding" else max(1, progress["step"])


def has_ended(status: dict[str, Any]) -> bool:
    return status.get("outcome") is not None


def in_parallel(work: Callable[[Any], Any], items: Iterable[Any], at_once: int = AT_ONCE) -> list[Any]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(work, items))
