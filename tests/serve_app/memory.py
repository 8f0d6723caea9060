"""A JobManager in memory, which renders real audio: a tone of the request's seed."""

import asyncio
import hashlib
import io
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import soundfile

from acestep_engine.checkpoint import LYRIC_VOCABULARY, NANO_PATH
from acestep_engine.encode import encode_audio
from acestep_engine.lyrics import LyricTokenizer, is_instrumental
from acestep_engine.params import Progress, file_extension
from deployments.events import EventLog
from deployments.failures import CANCELLED, CLIENT_LEFT
from deployments.messages import (
    AudioFile,
    AudioPart,
    ByteArray,
    EventBatch,
    JobEndedError,
    JobFailedError,
    JobNotEndedError,
    JobNotFoundError,
    JobView,
    KeyConflictError,
    LoraInfo,
    LoraNotFoundError,
    LoraRefusedError,
    LyricLineReading,
    LyricReading,
    ModelUnavailableError,
    QueueFullError,
    QueueStatus,
    ReplicaState,
    Resend,
    ServiceStatus,
    SongNotFoundError,
    SongResult,
    SourceGoneError,
    SourceSong,
    Status,
    Submission,
    Upload,
)
from deployments.views import end_event
from serve_app.errors import BackendUnavailableError

RENDERED_S = 0.25  # every song is this short, whatever was asked for


def render(submission: Submission, index: int = 0) -> ByteArray:
    """A quiet tone whose pitch depends on the song's seed, in the asked format."""
    at = np.arange(int(48_000 * RENDERED_S)) / 48_000
    tone = 0.1 * np.sin(2 * np.pi * (220 + submission.songs[index].seed % 660) * at)
    samples = np.stack([tone, tone]).astype(np.float32)  # (2, N)
    return np.frombuffer(encode_audio(samples, submission.audio_format, {}), dtype=np.uint8)


class MemoryJobs:
    """A JobManager that keeps everything in memory. While `held`, jobs wait; `fail_with` fails the next ones."""

    def __init__(self, queue_limit: int = 10) -> None:
        self.submissions: dict[str, Submission] = {}
        self.views: dict[str, JobView] = {}
        self.audio: dict[str, list[ByteArray]] = {}  # of each song
        self.song_s = 20.0  # how long its songs are as sources
        self.queue_limit = queue_limit
        self.fail_with: tuple[str, str] | None = None
        self.loaded = True
        self.loading = False  # another model, on the replica that is there
        self.reachable = True
        self.waits = True  # else it is lost while somebody waits
        self.accepted = asyncio.Event()
        self.loras_there: dict[str, LoraInfo] = {}
        self.initialized: list[tuple[str | None, dict[str, bool]]] = []
        self._go = asyncio.Event()
        self._go.set()
        self._more = asyncio.Event()  # than the first half of each song
        self._more.set()
        self.heard: dict[tuple[str, int], bytes] = {}  # what there is of each song
        self._changed = asyncio.Condition()
        self.logs: dict[str, EventLog] = {}
        self._work: set[asyncio.Task[None]] = set()

    def hold(self) -> None:
        self._go.clear()

    def release(self) -> None:
        self._go.set()

    def hold_the_second_half(self) -> None:
        self._more.clear()

    def release_the_second_half(self) -> None:
        self._more.set()

    def _check(self, request_id: str) -> JobView:
        if not self.reachable:
            raise BackendUnavailableError("down")
        if request_id not in self.views:
            raise JobNotFoundError(request_id)
        return self.views[request_id]

    async def _update(self, request_id: str, **changes: object) -> JobView:
        async with self._changed:
            view = self.views[request_id] = replace(self.views[request_id], **changes)  # type: ignore[arg-type]
            if view.ended:
                self.logs[request_id].add("ended", end_event(view).data)
            elif view.progress is not None:
                self.logs[request_id].add(view.progress.stage, {"step": view.progress.step})
            self._changed.notify_all()
        return self.views[request_id]

    async def _run(self, submission: Submission) -> None:
        key = submission.request_id
        await self._go.wait()
        if self.views[key].ended:
            return
        progress = Progress("diffusion", 1, submission.songs[0].steps)
        await self._update(key, status="processing", started_at=time.time(), position=None, progress=progress)
        if self.fail_with is not None:
            code, error = self.fail_with
            await self._update(
                key, status="failed", outcome="failed", completed_at=time.time(), error=error, error_code=code
            )
            return
        self.audio[key] = [await asyncio.to_thread(render, submission, index) for index in range(len(submission.songs))]
        for index, audio in enumerate(self.audio[key]):
            self.heard[key, index] = audio.tobytes()[: audio.size // 2]
        await self._update(key)
        await self._more.wait()
        if self.views[key].ended:
            return
        results = []
        for index, audio in enumerate(self.audio[key]):
            self.heard[key, index] = audio.tobytes()
            saved = f"./outputs/output_20260101000000_{index}.{file_extension(submission.audio_format)}"
            path = saved if submission.save_file else None
            results.append(SongResult("tiny", "cpu", RENDERED_S, audio.size, {"diffusion_s": 0.0}, path))
        await self._update(
            key, status="completed", outcome="completed", completed_at=time.time(), results=tuple(results)
        )

    async def digest_of_key(self, key: str) -> str | None:
        return next((known.request_digest for known in self.submissions.values() if known.key == key), None)

    async def submit(self, submission: Submission | Resend) -> JobView:
        if not self.reachable:
            raise BackendUnavailableError("down")
        for known in self.submissions.values():
            if known.key == submission.key:
                if known.request_digest != submission.request_digest:
                    raise KeyConflictError(submission.key)
                return self.views[known.request_id]
        if isinstance(submission, Resend):
            raise JobNotFoundError(submission.key)
        waiting = sum(view.status == "pending" for view in self.views.values())
        if waiting >= self.queue_limit:
            raise QueueFullError(waiting, self.queue_limit, 3.2)
        if submission.request_id in self.views:
            submission = replace(submission, request_id=uuid.uuid4().hex)
        self.submissions[submission.request_id] = submission
        view = JobView(
            submission.request_id,
            "pending",
            time.time(),
            submission.audio_format,
            submission.request_json,
            submission.songs,
            position=waiting,
        )
        self.views[view.request_id] = view
        self.logs[view.request_id] = EventLog()
        self.logs[view.request_id].add("queued", {"position": waiting})
        self.accepted.set()
        task = asyncio.create_task(self._run(submission))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return view

    async def submit_and_wait(
        self, submission: Submission | Resend, timeout_s: float, wants_audio: bool
    ) -> AsyncIterator[JobView | AudioFile]:
        accepted = await self.submit(submission)
        yield accepted
        view = await self.wait(accepted.request_id, timeout_s)
        yield AudioFile(view, self.audio[view.request_id][0]) if wants_audio and view.outcome == "completed" else view

    async def status(self, request_id: str) -> JobView:
        return self._check(request_id)

    async def wait(self, request_id: str, timeout_s: float) -> JobView:
        """The job at its end, or as it stands after `timeout_s`."""
        self._check(request_id)
        if not self.waits:
            raise BackendUnavailableError("gone")
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.views[request_id].ended)
        except TimeoutError:
            pass
        return self.views[request_id]

    async def result(self, request_id: str, index: int) -> AudioFile:
        view = self._check(request_id)
        if not view.ended:
            raise JobNotEndedError(view)
        if view.outcome != "completed":
            raise JobFailedError(view)
        if index >= len(view.songs):
            raise SongNotFoundError(index, len(view.songs))
        return AudioFile(view, self.audio[request_id][index], index)

    async def listen(self, request_id: str, index: int, heard: int, edition: str | None, wait_s: float) -> AudioPart:
        """At most a tenth of the song at a time."""
        view = self._check(request_id)
        if index >= len(view.songs):
            raise SongNotFoundError(index, len(view.songs))
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(
                    lambda: self.views[request_id].ended or len(self.heard.get((request_id, index), b"")) > heard
                )
        except TimeoutError:
            pass
        view = self._check(request_id)
        if view.ended and view.outcome != "completed":
            raise JobFailedError(view)
        content = self.heard.get((request_id, index), b"")
        audio = np.frombuffer(content[heard : heard + 5_000], dtype=np.uint8)
        return AudioPart(view, audio, "one", last=view.ended and heard + audio.size == len(content))

    async def fail(self, request_id: str) -> None:
        """End a job that runs."""
        error = {"error": "the model answered NaN", "error_code": "numerical"}
        await self._update(request_id, status="failed", outcome="failed", completed_at=time.time(), **error)

    async def source_song(self, request_id: str, index: int) -> SourceSong:
        view = self._check(request_id)
        if not view.ended:
            raise JobNotEndedError(view)
        if view.outcome not in ("completed", "expired"):
            raise JobFailedError(view)
        if index >= len(view.songs):
            raise SongNotFoundError(index, len(view.songs))
        return SourceSong(view.songs[index], self.song_s, view.outcome == "completed")

    async def upload(self, digest: str) -> ByteArray:
        for submission in self.submissions.values():
            if isinstance(submission.source, Upload) and submission.source.digest == digest:
                return submission.source.content
        raise SourceGoneError(digest)

    async def loras(self) -> tuple[LoraInfo, ...]:
        return tuple(self.loras_there.values())

    async def register_lora(self, name: str, path: str, root: str) -> LoraInfo:
        if not path.endswith(".safetensors"):
            raise LoraRefusedError(f"{Path(path).name} holds nothing")
        digest = hashlib.sha256(path.encode()).hexdigest()
        self.loras_there[name] = LoraInfo(name, digest, path, 4, ("attn.to_q",), 1_000, "")
        return self.loras_there[name]

    async def remove_lora(self, name: str) -> None:
        if self.loras_there.pop(name, None) is None:
            raise LoraNotFoundError(name)

    async def events(self, request_id: str, after: int, wait_s: float) -> EventBatch:
        self._check(request_id)
        log = self.logs[request_id]
        return EventBatch(tuple(await log.wait_after(after, wait_s)), log.ended)

    async def cancel(self, request_id: str, client_left: bool = False) -> JobView:
        view = self._check(request_id)
        if view.ended:
            raise JobEndedError(view)
        reason = CLIENT_LEFT if client_left else CANCELLED
        ending = {"outcome": "cancelled", "error": reason.sentence, "error_code": reason.code}
        return await self._update(request_id, status="failed", completed_at=time.time(), **ending)

    async def read_lyrics(self, lyrics: str, vocal_language: str | None) -> LyricReading:
        tokenizer = LyricTokenizer.load(NANO_PATH / LYRIC_VOCABULARY)
        read = tokenizer.encode(lyrics, vocal_language)
        lines = (LyricLineReading(**asdict(line), tokens=tuple(tokenizer.tokens(line.ids))) for line in read.lines)
        return LyricReading("tiny", is_instrumental(lyrics), len(read.ids), 8_192, tuple(lines))

    async def queue_status(self) -> QueueStatus:
        counts: dict[Status, int] = {}
        for view in self.views.values():
            counts[view.status] = counts.get(view.status, 0) + 1
        return QueueStatus(counts.get("pending", 0), counts, len(self.views), {5: 1}, 2.5, 1)

    async def service_status(self) -> ServiceStatus:
        if not self.reachable:
            raise BackendUnavailableError("down")
        replicas = (ReplicaState("r1", "" if self.loading else "tiny", "cpu"),) if self.loaded else ()
        return ServiceStatus("tiny", "a test tone, not music", self.loaded and not self.loading, replicas, 0)

    async def initialize(self, name: str | None, options: dict[str, bool]) -> ServiceStatus:
        if name == "v1-3.5b":
            raise ModelUnavailableError("no model is called 'v1-3.5b'; there are tiny")
        self.initialized.append((name, options))
        return await self.service_status()


def wav(seconds: float = 0.2, rate: int = 48_000, channels: int = 2) -> bytes:
    """A WAV file of a quiet noise."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (int(seconds * rate), channels)).astype(np.float32)
    soundfile.write(buffer, noise, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
