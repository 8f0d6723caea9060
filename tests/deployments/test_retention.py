"""What is kept of ended jobs: for how long, up to how many bytes, and that nothing stays behind."""

import asyncio
import dataclasses
import gc
import logging
import pathlib
import shutil
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from acestep_engine.params import Progress
from deployments.messages import EarlierSong, RenderJob, StorageError, Upload
from deployments.results import JobFiles
from deployments.retention import RetentionTerms
from tests.deployments.house import SONG, House, Message, sing, sing_for_ever, until
from tests.faults.campaign import NotStagedError
from tests.faults.disks import mounted
from tests.redis_server import RedisServer

SONG_BYTES = 100_000  # of audio; its latents are small


async def sing_large(job: RenderJob) -> AsyncIterator[Message]:
    yield Progress("diffusion", 1, 2)
    yield np.zeros(SONG_BYTES, np.uint8)
    yield SONG


async def ended(house: House, count: int) -> list[str]:
    ids = [await house.submit() for _ in range(count)]
    for request_id in ids:
        assert (await house.end_of(request_id)).outcome == "completed"
    return ids


async def outcomes(house: House, ids: list[str]) -> list[str | None]:
    return [(await house.manager.status(request_id)).outcome for request_id in ids]


def quota(songs: float) -> RetentionTerms:
    return RetentionTerms(result_ttl_s=3600, row_ttl_s=7200, quota_bytes=int(songs * SONG_BYTES))


@pytest.mark.parametrize("backend", ["sqlite", "redis"])
async def test_the_oldest_results_expire_when_there_is_more_than_the_quota(
    house: House, request: pytest.FixtureRequest, backend: str
) -> None:
    redis_url = None
    if backend == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        server.empty()
        redis_url = server.url
    await house.close()
    await house.open(retention=quota(3.5), redis_url=redis_url)
    house.generator.script = sing_large
    ids = await ended(house, 5)

    async def two_expired() -> bool:
        return await outcomes(house, ids) == ["expired"] * 2 + ["completed"] * 3 and len(house.files()) == 6

    await until(two_expired)
    view = await house.manager.status(ids[0])
    assert (view.status, view.error_code) == ("completed", "expired")
    for request_id in ids[2:]:
        assert (await house.manager.result(request_id)).audio.nbytes == SONG_BYTES


async def test_a_song_that_a_waiting_job_begins_from_never_goes_before_it(house: House) -> None:
    house.generator.script = sing_large
    oldest, *others = await ended(house, 4)
    house.generator.script = sing_for_ever
    running = await house.submit()
    await house.until_running(running)
    waiting = await house.submit(source=EarlierSong(oldest))
    await house.close()
    await house.open(retention=quota(1.5))

    async def only_two() -> bool:
        return await outcomes(house, [oldest, *others]) == ["completed", "expired", "expired", "completed"]

    await until(only_two)
    house.generator.script = sing
    await house.manager.cancel(running)
    assert (await house.end_of(waiting)).outcome == "completed"


async def test_the_last_result_stays_however_large_it_is(house: House) -> None:
    await house.close()
    await house.open(retention=quota(0.5))
    house.generator.script = sing_large
    first, last = await ended(house, 2)

    async def one_expired() -> bool:
        return await outcomes(house, [first, last]) == ["expired", "completed"]

    await until(one_expired)
    await house.manager._retention.clean_up(time.time())
    assert (await house.manager.result(last)).audio.nbytes == SONG_BYTES


async def test_a_file_that_was_used_since_it_was_counted_is_not_removed(house: House) -> None:
    first, _ = await ended(house, 2)
    files = JobFiles(house.config.folders)
    counted = files.kept()[:1]
    assert [job.request_id for job in counted] == [first]
    await asyncio.sleep(0.01)  # for the file system's clock
    files.keep_source(EarlierSong(first))
    files.remove(counted)
    assert [name for name in house.files() if first in name] == [f"state/latents/{first}_0.safetensors"]


async def test_uploads_count_for_the_quota_and_the_oldest_go_first(house: House) -> None:
    await house.close()
    await house.open(retention=quota(3.5), songs_per_size=8, queue_size=20)
    house.generator.script = sing_for_ever
    audio = np.zeros(SONG_BYTES, np.uint8)
    for number in range(6):  # as a client does that submits and cancels
        request_id = await house.submit(source=Upload(f"{number}", audio))
        await house.manager.cancel(request_id)
        await asyncio.sleep(0.01)  # for the file system's clock
    needed = await house.submit(source=Upload("needed", audio))

    async def three_are_left() -> bool:
        return sorted(house.files()) == ["state/sources/4", "state/sources/5", "state/sources/needed"]

    await until(three_are_left)
    await house.manager.cancel(needed)


async def test_the_last_tenth_of_a_disk_is_never_filled(tmp_path: Path) -> None:
    """On a small disk of its own: the oldest results go, and if that does not help, nothing is accepted."""
    song_bytes, state, foreign = 400_000, tmp_path / "state", tmp_path / "state/foreign"

    async def sing_long(job: RenderJob) -> AsyncIterator[Message]:
        yield np.zeros(song_bytes, np.uint8)
        yield SONG

    try:
        disk = mounted(state, f"size={24 * 2**20}")
        disk.__enter__()
    except NotStagedError as reason:
        pytest.skip(str(reason))
    house = House(tmp_path)
    house.generator.script = sing_long
    try:
        await house.open(retention=RetentionTerms(result_ttl_s=3600, row_ttl_s=7200, disk_reserve=0.1))
        ids: list[str] = []
        for _ in range(60):
            ids += await ended(house, 1)
            usage = shutil.disk_usage(state)
            assert usage.free > 0.1 * usage.total - 2 * song_bytes
        kept = await outcomes(house, ids)
        expired = kept.count("expired")
        assert kept == ["expired"] * expired + ["completed"] * (60 - expired)
        assert 5 < expired < 50
        for _ in range(60):
            with foreign.open("ab") as file:
                file.write(bytes(max(0, shutil.disk_usage(state).free - 1_000_000)))
            try:
                await ended(house, 1)
            except StorageError as refusal:
                assert "almost full" in str(refusal)  # noqa: PT017  how many are made before, the disk's blocks decide
                break
        else:
            pytest.fail("nothing was refused")
        foreign.unlink()
        await asyncio.sleep(1.1)  # it does not look again at once
        await ended(house, 1)
    finally:
        await house.close()
        disk.__exit__(None, None, None)


async def test_a_resend_is_answered_with_its_job_even_if_the_disk_is_full(house: House) -> None:
    asked = {"key": "order 7", "request_digest": "d"}
    request_id = await house.submit(**asked)
    await house.end_of(request_id)
    await house.close()
    await house.open(retention=RetentionTerms(result_ttl_s=3600, row_ttl_s=7200, disk_reserve=0.999999))
    with pytest.raises(StorageError):
        await house.submit()
    assert await house.submit(**asked) == request_id


async def test_of_a_large_disk_no_more_than_a_number_of_bytes_stays_free(house: House) -> None:
    almost_all = RetentionTerms(result_ttl_s=3600, row_ttl_s=7200, disk_reserve=0.999999)
    await house.close()
    await house.open(retention=almost_all)
    with pytest.raises(StorageError):
        await house.submit()
    await house.close()
    await house.open(retention=dataclasses.replace(almost_all, disk_reserve_bytes=2**20))
    assert (await house.end_of(await house.submit())).outcome == "completed"
    await house.close()
    await house.open(retention=dataclasses.replace(almost_all, disk_reserve_bytes=2**60))
    with pytest.raises(StorageError):
        await house.submit()


ROUND = 50


async def a_round(house: House) -> tuple[int, int, int, int]:
    """Some jobs, which are then forgotten: bytes in memory, files, rows, pages of the store."""
    ids = [await house.submit() for _ in range(ROUND)]
    await house.manager.cancel(ids[-1])
    for request_id in ids:
        await house.end_of(request_id)
    house.generator.started.clear()
    house.generator.sources.clear()
    house.generator.jobs.clear()
    house.generator.encodings.clear()
    await house.manager._retention.clean_up(time.time() + house.config.retention.row_ttl_s + 1)
    rows = sum((await house.manager.queue_status()).status_counts.values())
    pages = await house.manager._store._run(  # type: ignore[attr-defined]
        lambda db: db.execute("PRAGMA page_count").fetchone()[0]
    )
    gc.collect()
    return traced_bytes(), len(house.files()), rows, pages


def traced_bytes() -> int:
    """What is allocated since tracing began, but for the interpreter's table of interned names.

    pathlib fills it, and at some time it is rebuilt as large as it was before: new memory only to whoever traces.
    """
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, pathlib.__file__)])
    return sum(trace.size for trace in snapshot.traces)


@pytest.mark.parametrize(
    "jobs", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1_800)], id="ten_thousand")]
)
async def test_ended_jobs_leave_nothing_behind(house: House, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    """What is remembered of the last ones for a while is bounded, and full after the first round."""
    monkeypatch.setattr("deployments.job_manager.KEPT_ENDED", ROUND)
    monkeypatch.setattr("deployments.job_manager.KEPT_LOGS", ROUND)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "disabled", True)  # pytest keeps every line
    await house.close()
    await house.open(queue_size=2 * ROUND, songs_per_size=ROUND // 2)
    tracemalloc.start()
    try:
        for _ in range(2):
            memory, files, rows, pages = await a_round(house)
        for _ in range(jobs // ROUND):
            later = await a_round(house)
    finally:
        tracemalloc.stop()
    assert (files, rows) == later[1:3] == (0, 0)
    assert later[0] - memory < 50_000 + 10 * jobs  # a row is of some hundred bytes
    assert later[3] <= pages + 10
