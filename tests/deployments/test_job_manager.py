"""The JobManager with scripted replicas in place of Serve's handles: what happens when they misbehave.

The same with real replicas, and with those that are killed, is in tests/e2e.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from acestep_engine.errors import NumericalError
from acestep_engine.params import GenerationParams, Progress
from deployments.autoscaling import WANTED_SONGS
from deployments.failures import GpuMemoryError
from deployments.lease import LeaseTerms
from deployments.messages import (
    AudioFile,
    ByteArray,
    EarlierSong,
    Heartbeat,
    JobEndedError,
    JobFailedError,
    JobNotEndedError,
    JobView,
    KeyConflictError,
    QueueFullError,
    RenderJob,
    ReplicaState,
    SongNotFoundError,
    SourceGoneError,
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
    die,
    failing,
    sing,
    sing_for_ever,
    submission,
    until,
)
from tests.redis_server import RedisServer


async def test_a_replica_that_dies_twice_is_forgiven(house: House) -> None:
    deaths = 0

    async def die_twice(job: RenderJob) -> AsyncIterator[Message]:
        nonlocal deaths
        deaths += 1
        async for message in die(job) if deaths <= 2 else sing(job):
            yield message

    house.generator.script = die_twice
    view = await house.end_of(await house.submit())
    assert (view.outcome, deaths) == ("completed", 3)


async def test_a_job_that_ends_three_replicas_is_not_given_a_fourth(house: House) -> None:
    house.generator.script = die
    view = await house.end_of(await house.submit())
    assert (view.status, view.error_code, len(house.generator.started)) == ("failed", "replica_lost", 3)
    house.generator.script = sing
    assert (await house.end_of(await house.submit())).outcome == "completed"


async def test_a_job_whose_engine_stands_still_fails_although_its_replica_lives(house: House) -> None:
    async def stand_still(job: RenderJob) -> AsyncIterator[Message]:
        while True:
            yield Heartbeat(7)
            await asyncio.sleep(0.02)

    await house.close()
    await house.open(lease_terms=LeaseTerms(lease_s=10, stall_s=0.2))
    house.generator.script = stand_still
    view = await house.end_of(await house.submit())
    assert (view.outcome, view.error_code, view.error) == ("failed", "timeout", "timed out after 0.2 s")


async def test_a_song_that_waits_for_others_may_take_as_long_as_they_do(house: House) -> None:
    async def pause(job: RenderJob) -> AsyncIterator[Message]:
        for steps in range(20):
            yield Heartbeat(steps)
            await asyncio.sleep(0.05)
        async for message in sing(job):
            yield message

    await house.close()
    await house.open(lease_terms=LeaseTerms(lease_s=0.3, stall_s=0.3))
    house.generator.script = pause
    assert (await house.end_of(await house.submit())).outcome == "completed"


async def test_a_replica_that_falls_silent_loses_its_song_and_what_it_says_later_is_not_heard(house: House) -> None:
    wakes = asyncio.Event()

    async def freeze_once(job: RenderJob) -> AsyncIterator[Message]:
        if len(house.generator.started) == 1:
            yield Progress("diffusion", 1, 2)
            await wakes.wait()
            yield np.full(9, 7, np.uint8)  # its own idea of the song
            yield SONG
        async for message in sing(job):
            yield message

    await house.close()
    await house.open(lease_terms=LeaseTerms(lease_s=0.2, stall_s=60))
    house.generator.script = freeze_once
    request_id = await house.submit()
    view = await house.end_of(request_id)
    wakes.set()
    assert (view.outcome, len(house.generator.started)) == ("completed", 2)
    assert (await house.manager.result(request_id)).audio.tobytes() == AUDIO.tobytes()


async def test_the_more_urgent_start_first_and_know_how_long_they_wait(house: House) -> None:
    house.generator.script = sing_for_ever
    running = await house.submit()
    await house.until_running(running)
    late, urgent = await house.submit(priority=2), await house.submit(priority=7)
    views = {name: await house.manager.status(name) for name in (running, late, urgent)}
    assert [views[name].position for name in (running, urgent, late)] == [None, 0, 1]
    assert views[running].expected_wait_s is None
    assert views[urgent].expected_wait_s == 0.0
    assert (views[late].expected_wait_s or 0.0) > 0.0
    queue = await house.manager.queue_status()
    assert (queue.queue_size, queue.priority_counts) == (2, {2: 1, 7: 1})
    house.generator.script = sing
    await house.manager.cancel(running)
    ends = [await house.end_of(name) for name in (urgent, late)]
    assert (ends[0].completed_at or 0.0) <= (ends[1].started_at or 0.0)
    assert house.generator.started[1:] == [urgent, late]


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


async def test_who_waits_with_a_known_key_gets_the_audio_that_is_there(house: House) -> None:
    asked = submission(key="order 8")
    for _ in range(2):
        answers = [answer async for answer in house.manager.submit_and_wait(asked, 10, wants_audio=True)]
        assert isinstance(answers[-1], AudioFile)
        assert answers[-1].audio.tobytes() == AUDIO.tobytes()
    assert len(house.generator.started) == 1


async def test_every_replica_that_is_there_gets_its_songs_and_the_others_keep_their_order(house: House) -> None:
    house.generator.script = sing_for_ever
    first, second, third = [await house.submit() for _ in range(3)]
    await house.until_running(first)
    assert (await house.manager.status(second)).position == 0
    assert house.manager.record_autoscaling_stats() == {WANTED_SONGS: 3.0}
    for name in ("one", "two"):
        await house.manager.report(ReplicaState(name, "nano", "cpu"))
    await house.until_running(second)
    assert (await house.manager.status(third)).position == 0


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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NumericalError("the model answered NaN"), "numerical"),
        (GpuMemoryError("the song does not fit"), "out_of_memory"),
        (ZeroDivisionError("secret"), "internal_error"),
    ],
)
async def test_what_a_replica_raises_fails_its_job_at_once(house: House, error: Exception, code: str) -> None:
    house.generator.script = failing(error)
    view = await house.end_of(await house.submit())
    assert (view.outcome, view.error_code, len(house.generator.started)) == ("failed", code, 1)
    assert view.error is not None
    assert "secret" not in view.error
    assert house.files() == []


async def test_jobs_start_in_the_order_they_came(house: House) -> None:
    ids = [await house.submit() for _ in range(5)]
    for request_id in ids:
        await house.end_of(request_id)
    assert house.generator.started == ids


async def test_no_more_jobs_of_one_size_run_at_once_than_may(house: House) -> None:
    await house.close()
    await house.open(songs_per_size=2)
    house.generator.script = sing_for_ever
    ids = [await house.submit() for _ in range(4)]
    await house.until_running(ids[1])
    assert house.generator.started == ids[:2]
    assert [(await house.manager.status(request_id)).position for request_id in ids] == [None, None, 0, 1]
    counts = (await house.manager.queue_status()).status_counts
    assert counts == {"pending": 2, "processing": 2, "completed": 0, "failed": 0}
    await house.manager.cancel(ids[0])
    await house.until_running(ids[2])


async def test_long_songs_that_fill_the_server_never_keep_a_short_one_waiting(house: House) -> None:
    house.generator.script = sing_for_ever
    long = GenerationParams("piano", "", 240.0, seed=3)
    running, waiting = await house.submit(songs=(long,)), await house.submit(songs=(long,))
    short, behind = await house.submit(), await house.submit()
    await house.until_running(running)
    await house.until_running(short)
    assert house.generator.started == [running, short]
    assert [(await house.manager.status(request_id)).position for request_id in (waiting, behind)] == [0, 1]
    await house.manager.cancel(running)
    await house.until_running(waiting)
    assert (await house.manager.status(behind)).position == 0


async def test_a_poisonous_job_does_not_use_up_its_neighbours_attempts(house: House) -> None:
    await house.close()
    await house.open(songs_per_size=4)
    poison = uuid.uuid4().hex
    death = asyncio.Event()  # of the replica that they share

    async def share_a_replica(job: RenderJob) -> AsyncIterator[Message]:
        nonlocal death
        mine = death
        yield Progress("diffusion", 1, 2)
        if job.request_id == poison:
            await asyncio.sleep(0.02)  # so that its neighbours are there
            death.set()
            death = asyncio.Event()
            raise ActorDiedError
        await asyncio.wait([asyncio.ensure_future(mine.wait())], timeout=0.1)
        if mine.is_set():
            raise ActorDiedError
        yield AUDIO
        yield SONG

    house.generator.script = share_a_replica
    ids = [await house.submit(), await house.submit(request_id=poison), await house.submit()]
    views = [await house.end_of(request_id) for request_id in ids]
    assert [view.outcome for view in views] == ["completed", "failed", "completed"]
    assert views[1].error_code == "replica_lost"


async def test_last_attempts_run_one_at_a_time(house: House) -> None:
    await house.close()
    await house.open(songs_per_size=4)
    attempts: dict[str, int] = {}
    together: set[str] = set()

    async def die_twice(job: RenderJob) -> AsyncIterator[Message]:
        attempts[job.request_id] = attempts.get(job.request_id, 0) + 1
        if attempts[job.request_id] < 3:
            raise ActorDiedError
        assert not together
        together.add(job.request_id)
        yield Progress("diffusion", 1, 2)
        await asyncio.sleep(0.01)
        together.clear()
        yield AUDIO
        yield SONG

    house.generator.script = die_twice
    ids = [await house.submit() for _ in range(4)]
    assert [(await house.end_of(request_id)).outcome for request_id in ids] == ["completed"] * 4


def batch(*seeds: int) -> tuple[GenerationParams, ...]:
    return tuple(GenerationParams("piano", "", 1.0, seed=seed) for seed in seeds)


def audio_of(job: RenderJob) -> ByteArray:
    """That tells its seed."""
    return np.full(4, job.params.seed, np.uint8)


async def test_the_songs_of_a_job_are_made_at_the_same_time_and_each_is_its_own(house: House) -> None:
    await house.close()
    await house.open(songs_per_size=3)
    together = asyncio.Barrier(3)

    async def sing_together(job: RenderJob) -> AsyncIterator[Message]:
        yield Progress("diffusion", 1, 2)
        await together.wait()
        yield audio_of(job)
        yield SONG

    house.generator.script = sing_together
    view = await house.end_of(await house.submit(songs=batch(5, 6, 7), save_file=True))
    assert [song.seed for song in view.songs] == [5, 6, 7]
    files = [await house.manager.result(view.request_id, index) for index in range(3)]
    assert [file.audio.tolist() for file in files] == [[seed] * 4 for seed in (5, 6, 7)]
    paths = [result.audio_path for result in view.results]
    assert [str(path)[-6:] for path in paths] == ["_0.wav", "_1.wav", "_2.wav"]
    assert [(house.root / str(path)).read_bytes() for path in paths] == [file.audio.tobytes() for file in files]
    with pytest.raises(SongNotFoundError):
        await house.manager.result(view.request_id, 3)


async def test_a_job_of_more_songs_than_there_are_places_makes_them_one_after_the_other(house: House) -> None:
    first, second = await house.submit(songs=batch(5, 6, 7)), await house.submit()
    assert (await house.end_of(first)).outcome == "completed"
    assert (await house.end_of(second)).outcome == "completed"
    assert house.generator.started == [first] * 3 + [second]


async def test_a_lost_replica_repeats_only_the_songs_that_are_missing(house: House) -> None:
    await house.close()
    await house.open(songs_per_size=3)
    made: list[int] = []

    async def die_once_of_six(job: RenderJob) -> AsyncIterator[Message]:
        made.append(job.params.seed)
        yield Progress("diffusion", 1, 2)
        if made.count(6) == 1 and job.params.seed == 6:
            raise ActorDiedError
        yield audio_of(job)
        yield SONG

    house.generator.script = die_once_of_six
    assert (await house.end_of(await house.submit(songs=batch(5, 6, 7)))).outcome == "completed"
    assert sorted(made) == [5, 6, 6, 7]


async def test_a_song_that_fails_ends_the_others_of_its_job(house: House) -> None:
    await house.close()
    await house.open(songs_per_size=2)

    async def fail_six(job: RenderJob) -> AsyncIterator[Message]:
        yield Progress("diffusion", 1, 2)
        script = failing(NumericalError("NaN")) if job.params.seed == 6 else sing_for_ever
        async for message in script(job):
            yield message

    house.generator.script = fail_six
    view = await house.end_of(await house.submit(songs=batch(5, 6, 7), save_file=True))
    assert (view.outcome, view.error_code, house.files()) == ("failed", "numerical", [])
    house.generator.script = sing
    following = await asyncio.gather(*(house.submit() for _ in range(3)))
    assert [(await house.end_of(request_id)).outcome for request_id in following] == ["completed"] * 3


async def test_a_job_is_as_far_as_its_slowest_song_and_ends_as_a_whole_when_it_is_cancelled(house: House) -> None:
    await house.close()
    await house.open(songs_per_size=2)

    async def sing_by_seed(job: RenderJob) -> AsyncIterator[Message]:
        yield Progress("diffusion", job.params.seed, 10)
        if job.params.seed < 9:
            await asyncio.Event().wait()
        yield audio_of(job)
        yield SONG

    house.generator.script = sing_by_seed
    request_id = await house.submit(songs=batch(9, 5, 7))

    async def as_far_as_five() -> bool:
        return (await house.manager.status(request_id)).progress == Progress("diffusion", 5, 10)

    await until(as_far_as_five)
    assert (await house.manager.cancel(request_id)).outcome == "cancelled"
    await house.end_of(request_id)
    house.generator.script = sing
    assert (await house.end_of(await house.submit())).outcome == "completed"
    assert not [name for name in house.files() if request_id in name]


async def test_an_earlier_song_is_a_source_as_long_as_its_latents_are_kept(house: House) -> None:
    first = await house.submit()
    await house.end_of(first)
    second = await house.submit(source=EarlierSong(first))
    assert (await house.end_of(second)).outcome == "completed"
    (latents,) = [source for source in house.generator.sources if source is not None]
    assert latents.shape == SONG.latents.shape
    (house.root / f"state/latents/{first}_0.safetensors").unlink()
    with pytest.raises(SourceGoneError):
        await house.submit(source=EarlierSong(first))


async def test_what_a_song_was_asked_for_is_known_longer_than_its_latents(house: House) -> None:
    request_id = await house.submit(songs=batch(5, 6))
    with pytest.raises(JobNotEndedError):
        await house.manager.source_song(request_id, 1)
    await house.end_of(request_id)
    song = await house.manager.source_song(request_id, 1)
    assert (song.params.seed, song.duration_s, song.is_kept) == (6, SONG.duration_s, True)
    with pytest.raises(SongNotFoundError):
        await house.manager.source_song(request_id, 2)
    await house.close()
    await house.open(retention=RetentionTerms(result_ttl_s=-1, row_ttl_s=3600))

    async def expired() -> bool:
        return (await house.manager.status(request_id)).outcome == "expired"

    await until(expired)
    song = await house.manager.source_song(request_id, 1)
    assert (song.params.seed, song.is_kept) == (6, False)


async def test_an_upload_can_be_had_again(house: House) -> None:
    upload = Upload("5e", np.arange(3, dtype=np.uint8))
    await house.end_of(await house.submit(source=upload))
    assert (await house.manager.upload("5e")).tobytes() == upload.content.tobytes()
    with pytest.raises(SourceGoneError):
        await house.manager.upload("5f")


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
