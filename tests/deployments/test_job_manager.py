"""The JobManager with scripted replicas: what is accepted, waited for, cancelled and kept.

The same with real replicas, and with those that are killed, is in tests/e2e.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from acestep_engine.errors import NumericalError
from acestep_engine.params import Progress
from deployments.messages import (
    AudioFile,
    JobEndedError,
    JobFailedError,
    JobNotFoundError,
    JobView,
    KeyConflictError,
    QueueFullError,
    RenderJob,
    ReplicaState,
    Resend,
    StorageError,
    Upload,
)
from deployments.retention import RetentionTerms
from deployments.store.protocol import StoreFormatError
from tests.deployments.house import (
    AUDIO,
    SONG,
    House,
    Message,
    Script,
    failing,
    sing,
    sing_for_ever,
    submission,
    until,
)
from tests.redis_server import RedisServer


async def test_the_same_key_makes_one_job_however_often_and_whenever_it_comes(house: House) -> None:
    asked = {"key": "order 7", "request_digest": "d"}
    first = await asyncio.gather(*(house.submit(**asked) for _ in range(10)))
    assert len(set(first)) == 1
    await house.end_of(first[0])
    assert await house.submit(**asked) == first[0]
    await house.close()
    await house.open()
    assert await house.submit(**asked) == first[0]
    assert house.generator.started == first[:1]
    with pytest.raises(KeyConflictError):
        await house.submit(key="order 7", request_digest="other words")


async def test_a_known_key_is_answered_even_by_a_full_queue(house: House) -> None:
    house.generator.script = sing_for_ever
    await house.until_running(await house.submit())
    waiting = [await house.submit(key=str(number)) for number in range(5)]
    with pytest.raises(QueueFullError):
        await house.submit()
    assert await house.submit(key="3") == waiting[3]


async def resent(house: House, key: str) -> str:
    """The job that a request gets which was sent before."""
    digest = await house.manager.digest_of_key(key)
    assert digest is not None
    return (await house.manager.submit(Resend(key, digest))).request_id


async def test_a_resend_is_answered_while_the_queue_is_full_and_while_the_disk_is(house: House) -> None:
    ended = await house.submit(key="1", request_digest="a")
    await house.end_of(ended)
    house.generator.script = sing_for_ever
    running = await house.submit(key="2", request_digest="b")
    await house.until_running(running)
    waiting = await house.submit(key="3", request_digest="c")
    for number in range(4):
        await house.submit(key=f"more {number}")
    with pytest.raises(QueueFullError):
        await house.submit()
    assert [await resent(house, key) for key in ("1", "2", "3")] == [ended, running, waiting]
    await house.close()
    full = RetentionTerms(result_ttl_s=3600, row_ttl_s=7200, disk_reserve=0.999999)
    await house.open(retention=full, queue_size=100)
    with pytest.raises(StorageError):
        await house.submit()
    assert [await resent(house, key) for key in ("1", "2", "3")] == [ended, running, waiting]


@pytest.mark.parametrize("kept_in", ["sqlite", "redis"])
async def test_a_resend_is_answered_by_the_next_life_whatever_keeps_the_jobs(
    house: House, redis_server: RedisServer, kept_in: str
) -> None:
    await house.close()
    redis_server.empty()
    url = redis_server.url if kept_in == "redis" else None
    await house.open(redis_url=url)
    ended = await house.submit(key="1", request_digest="a")
    await house.end_of(ended)
    house.generator.script = sing_for_ever
    running = await house.submit(key="2", request_digest="b")
    await house.until_running(running)
    await house.close()
    await house.open()
    assert [await resent(house, key) for key in ("1", "2")] == [ended, running]
    assert await house.manager.digest_of_key("3") is None


async def test_a_resend_with_another_digest_is_refused_and_one_without_a_job_is_not_found(house: House) -> None:
    await house.submit(key="1", request_digest="a")
    with pytest.raises(KeyConflictError):
        await house.manager.submit(Resend("1", "b"))
    with pytest.raises(JobNotFoundError):
        await house.manager.submit(Resend("2", "a"))


async def test_who_waits_with_a_known_key_gets_the_audio_that_is_there(house: House) -> None:
    asked = submission(key="order 8")
    for _ in range(2):
        answers = [answer async for answer in house.manager.submit_and_wait(asked, 10, wants_audio=True)]
        assert isinstance(answers[-1], AudioFile)
        assert answers[-1].audio.tobytes() == AUDIO.tobytes()
    assert len(house.generator.started) == 1


async def test_jobs_kept_in_redis_outlive_the_job_manager_and_a_redis_that_forgets(
    house: House, redis_server: RedisServer
) -> None:
    redis_server.empty()
    await house.close()
    await house.open(redis_url=redis_server.url)
    ended = await house.submit()
    await house.end_of(ended)
    house.generator.script = sing_for_ever
    running, waiting = await house.submit(), await house.submit()
    await house.until_running(running)
    redis_server.empty()
    last = await house.submit()
    await house.close()
    house.generator.script = sing
    await house.open()
    views = [await house.end_of(name) for name in (running, waiting, last)]
    assert [view.outcome for view in views] == ["completed"] * 3
    assert house.generator.started == [ended, running, running, waiting, last]
    assert (await house.manager.result(ended)).audio.tobytes() == AUDIO.tobytes()


async def test_priorities_outlive_the_job_manager(house: House) -> None:
    house.generator.script = sing_for_ever
    await house.until_running(await house.submit())
    late, urgent = await house.submit(priority=2), await house.submit(priority=7)
    await house.close()
    await house.open()
    await house.until_running(urgent)
    assert (await house.manager.status(late)).position == 1  # behind the one that ran


async def test_a_job_that_names_an_id_twice_gets_another_one(house: House) -> None:
    house.generator.script = sing_for_ever
    source = Upload("5e", np.arange(3, dtype=np.uint8))
    views = [await house.manager.submit(submission("a" * 32, source=source)) for _ in range(2)]
    assert views[0].request_id == "a" * 32
    assert views[1].request_id != "a" * 32
    assert "state/sources/5e" in house.files()
    house.generator.script = sing
    for view in views:
        await house.manager.cancel(view.request_id)
    again = await house.manager.submit(submission("a" * 32, source=source))
    assert again.request_id not in [view.request_id for view in views]
    assert (await house.end_of(again.request_id)).outcome == "completed"


async def test_two_who_name_the_same_id_at_once_get_two_jobs(house: House) -> None:
    views = await asyncio.gather(*(house.manager.submit(submission("a" * 32)) for _ in range(3)))
    assert len({view.request_id for view in views}) == 3
    assert [(await house.end_of(view.request_id)).outcome for view in views] == ["completed"] * 3


async def test_who_waits_hears_of_the_acceptance_and_then_gets_the_audio(house: House) -> None:
    accepted, ended = [answer async for answer in house.manager.submit_and_wait(submission(), 10, wants_audio=True)]
    assert isinstance(accepted, JobView)
    assert isinstance(ended, AudioFile)
    assert (accepted.status, ended.view.outcome) == ("pending", "completed")
    assert ended.audio.tobytes() == AUDIO.tobytes()
    assert (await house.manager.status(accepted.request_id)) == ended.view
    assert f"state/results/{accepted.request_id}_0.wav" in house.files()


@pytest.mark.parametrize(
    ("script", "timeout_s", "wants_audio", "outcome"),
    [
        (sing, 10, False, "completed"),
        (failing(NumericalError("the model answered NaN")), 10, True, "failed"),
        (sing_for_ever, 0.05, True, None),
    ],
)
async def test_who_waits_is_told_how_a_job_stands_where_there_is_no_audio(
    house: House, script: Script, timeout_s: float, wants_audio: bool, outcome: str | None
) -> None:
    house.generator.script = script
    answers = [answer async for answer in house.manager.submit_and_wait(submission(), timeout_s, wants_audio)]
    views = [answer for answer in answers if isinstance(answer, JobView)]
    assert [view.outcome for view in views] == [None, outcome]


async def test_audio_that_cannot_be_written_is_nobodys_song_and_the_next_one_runs(house: House) -> None:
    (house.root / "state/results").rmdir()
    (house.root / "state/results").write_text("in the way")
    *_, ended = [answer async for answer in house.manager.submit_and_wait(submission(), 10, wants_audio=True)]
    assert isinstance(ended, JobView)
    assert (ended.outcome, ended.error_code) == ("failed", "storage")
    (house.root / "state/results").unlink()
    assert (await house.end_of(await house.submit())).outcome == "completed"


async def test_a_cancelled_job_that_waited_never_runs(house: House) -> None:
    house.generator.script = sing_for_ever
    running, waiting, following = [await house.submit() for _ in range(3)]
    await house.until_running(running)
    assert (await house.manager.cancel(waiting)).outcome == "cancelled"
    assert (await house.manager.cancel(waiting)).outcome == "cancelled"
    await house.manager.cancel(running)
    await house.until_running(following)
    assert house.generator.started == [running, following]


async def test_a_result_that_comes_after_the_cancel_is_thrown_away(house: House) -> None:
    release = asyncio.Event()

    async def sing_slowly(job: RenderJob) -> AsyncIterator[Message]:
        yield Progress("diffusion", 1, 2)
        await release.wait()
        yield AUDIO
        yield SONG

    house.generator.script = sing_slowly
    request_id = await house.submit(save_file=True)
    await house.until_running(request_id)
    release.set()
    await asyncio.sleep(0)
    assert (await house.manager.cancel(request_id)).outcome == "cancelled"
    await house.end_of(await house.submit())  # the slot is free again, so the first one is over
    assert (await house.manager.status(request_id)).outcome == "cancelled"
    assert not [name for name in house.files() if request_id in name]


async def test_a_completed_job_cannot_be_cancelled(house: House) -> None:
    request_id = await house.submit()
    await house.end_of(request_id)
    with pytest.raises(JobEndedError):
        await house.manager.cancel(request_id)
    assert (await house.manager.result(request_id)).audio.tobytes() == AUDIO.tobytes()


async def test_a_caller_who_leaves_while_it_is_accepted_leaves_a_job_that_runs(house: House) -> None:
    submitting = asyncio.create_task(house.submit(request_id="a" * 32))
    await asyncio.sleep(0)
    submitting.cancel()
    await asyncio.gather(submitting, return_exceptions=True)

    async def completed() -> bool:
        return (await house.manager.queue_status()).status_counts["completed"] == 1

    await until(completed)
    assert (await house.manager.status("a" * 32)).outcome == "completed"


async def test_jobs_go_on_after_a_restart_and_a_stop_costs_no_attempt(house: House) -> None:
    house.generator.script = sing_for_ever
    running, waiting = await house.submit(), await house.submit()
    for _ in range(4):  # once more than a job has attempts
        await house.until_running(running)
        await house.close()
        await house.open()
    house.generator.script = sing
    await house.close()
    await house.open()
    assert [(await house.end_of(request_id)).outcome for request_id in (running, waiting)] == ["completed"] * 2


async def test_a_row_that_cannot_be_read_costs_its_job_only_and_the_service_starts(house: House) -> None:
    house.generator.script = sing_for_ever
    running, damaged, waiting = [await house.submit() for _ in range(3)]
    await house.until_running(running)
    await house.manager._store._run(  # type: ignore[attr-defined]
        lambda db: db.execute("UPDATE jobs SET songs = '5' WHERE request_id = ?", (damaged,))
    )
    await house.close()
    house.generator.script = sing
    await house.open()
    assert [(await house.end_of(one)).outcome for one in (running, waiting)] == ["completed"] * 2
    view = await house.manager.status(damaged)
    assert (view.status, view.outcome, view.error_code) == ("failed", "failed", "internal_error")
    assert (await house.manager.queue_status()).status_counts["pending"] == 0


async def test_a_saved_song_is_written_once_even_if_the_service_died_after_writing_it(house: House) -> None:
    request_id = await house.submit(save_file=True)
    (result,) = (await house.end_of(request_id)).results
    row = await house.manager._store.get(request_id)
    assert row is not None
    await house.manager._store._run(  # type: ignore[attr-defined]
        lambda db: db.execute("UPDATE jobs SET status = 'processing', outcome = NULL, results = '[]'")
    )
    await house.close()
    await house.open()
    (again,) = (await house.end_of(request_id)).results
    assert again.audio_path == result.audio_path
    assert len([name for name in house.files() if name.endswith(".wav") and name.startswith("outputs")]) == 1


async def test_a_song_that_cannot_be_written_fails_its_job(house: House) -> None:
    (house.root / "outputs").rmdir() if (house.root / "outputs").exists() else None
    (house.root / "outputs").write_text("in the way")
    view = await house.end_of(await house.submit(save_file=True))
    assert (view.outcome, view.error_code) == ("failed", "storage")
    assert str(house.root) not in str(view.error)
    (house.root / "outputs").unlink()
    assert (await house.end_of(await house.submit(save_file=True))).outcome == "completed"


async def test_an_old_result_is_expired_and_its_job_still_known(house: House) -> None:
    request_id = await house.submit()
    await house.end_of(request_id)
    await house.close()
    await house.open(retention=RetentionTerms(result_ttl_s=-1, row_ttl_s=3600))

    async def removed() -> bool:
        return house.files() == []

    await until(removed)
    view = await house.manager.status(request_id)
    assert (view.status, view.outcome, view.error_code) == ("completed", "expired", "expired")
    with pytest.raises(JobFailedError):
        await house.manager.result(request_id)


async def test_a_result_whose_file_is_gone_is_expired(house: House) -> None:
    request_id = await house.submit()
    await house.end_of(request_id)
    (house.root / "state/results" / f"{request_id}_0.wav").unlink()
    with pytest.raises(JobFailedError) as gone:
        await house.manager.result(request_id)
    assert gone.value.view.outcome == "expired"


async def test_an_upload_that_is_lost_fails_its_job(house: House) -> None:
    house.generator.script = sing_for_ever
    running = await house.submit()
    await house.until_running(running)
    request_id = await house.submit(source=Upload("5e", np.arange(3, dtype=np.uint8)))
    (house.root / "state/sources/5e").unlink()
    await house.manager.cancel(running)
    assert (await house.end_of(request_id)).error_code == "storage"


async def test_a_replica_that_reports_is_known_until_it_falls_silent(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not (await house.manager.service_status()).loaded
    state = ReplicaState("r1", "nano", "cpu")
    await house.manager.report(state)
    status = await house.manager.service_status()
    assert (status.loaded, status.replicas, status.model) == (True, (state,), "nano")
    monkeypatch.setattr("deployments.fleet.STALE_S", -1.0)
    assert not (await house.manager.service_status()).loaded


async def test_two_job_managers_never_share_a_state_folder(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    other = House(house.root)
    monkeypatch.setattr("deployments.state_lock.WAIT_S", 0.2)
    with pytest.raises(StorageError, match="another service uses the state folder"):
        await other.open()


async def test_a_damaged_store_refuses_to_start(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/jobs.sqlite3").write_bytes(b"broken" * 1000)
    with pytest.raises(StoreFormatError):
        await House(tmp_path).open()
