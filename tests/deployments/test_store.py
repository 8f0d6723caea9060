"""What every job store does. Sentences about SQLite alone are in test_store_sqlite.py."""

import asyncio
import dataclasses

from deployments.messages import SongResult
from deployments.store.protocol import Callback, Ending, JobStore
from tests.deployments.conftest import OpenStore, make_row

RESULT = SongResult("nano", "cpu", 9.9, 1234, {"diffusion_s": 1.5}, "./outputs/output_20261121103000_0.flac")
COMPLETED = Ending("completed", 2_000.0, results=(RESULT, RESULT))
CANCELLED = Ending("cancelled", 2_100.0, error="Cancelled by user", error_code="cancelled")


async def test_a_job_is_read_back_as_it_was_written(store: JobStore) -> None:
    song = make_row("a").songs[0]
    row = make_row("a", songs=(song, dataclasses.replace(song, seed=5)), save_file=True, source="sources/5e")
    await store.add(row)
    assert await store.get("a") == row


async def test_an_unknown_job_is_none(store: JobStore) -> None:
    assert await store.get("nobody") is None


async def test_a_job_outlives_the_store_that_took_it(open_store: OpenStore) -> None:
    row = make_row("a")
    await (await open_store()).add(row)
    assert await (await open_store()).get("a") == row


async def test_an_id_is_taken_once_even_by_a_job_that_has_ended(store: JobStore) -> None:
    first = make_row("a")
    assert await store.add(first)
    assert not await store.add(make_row("a", audio_format="mp3"))
    assert await store.get("a") == first
    await store.finish("a", COMPLETED)
    assert not await store.add(make_row("a"))
    assert await store.add(make_row("b"))


async def test_a_key_is_taken_once_and_finds_its_job_until_that_is_forgotten(store: JobStore) -> None:
    first = make_row("a", key="mine")
    assert await store.add(first)
    assert not await store.add(make_row("b", key="mine"))
    assert await store.find_key("mine") == first
    assert await store.find_key("yours") is None
    await store.finish("a", COMPLETED)
    await store.remove_ended(9_999.0)
    assert await store.find_key("mine") is None
    assert await store.add(make_row("b", key="mine"))


async def test_a_completed_job_keeps_its_result_and_when_it_ran(store: JobStore) -> None:
    await store.add(make_row("a"))
    assert await store.finish("a", COMPLETED, started_at=1_500.0)
    row = await store.get("a")
    assert row is not None
    assert (row.status, row.outcome, row.results) == ("completed", "completed", (RESULT, RESULT))
    assert (row.started_at, row.completed_at) == (1_500.0, 2_000.0)


async def test_an_ended_job_never_changes_again(store: JobStore) -> None:
    await store.add(make_row("a"))
    assert await store.finish("a", CANCELLED)
    ended = await store.get("a")
    assert ended is not None
    assert (ended.status, ended.outcome, ended.error) == ("failed", "cancelled", "Cancelled by user")
    assert not await store.finish("a", COMPLETED)
    assert not await store.claim_outputs("a", ("output_1_0.wav",))
    assert not await store.set_attempts("a", 1)
    assert await store.get("a") == ended


async def test_of_many_who_end_a_job_at_once_one_succeeds(store: JobStore) -> None:
    await store.add(make_row("a"))
    answers = await asyncio.gather(*(store.finish("a", ending) for ending in [COMPLETED, CANCELLED] * 10))
    assert answers.count(True) == 1


async def test_attempts_are_remembered_across_restarts(open_store: OpenStore) -> None:
    store = await open_store()
    await store.add(make_row("a"))
    assert await store.set_attempts("a", 2)
    row = await (await open_store()).get("a")
    assert row == make_row("a", attempts=2)


async def test_jobs_that_have_not_ended_are_found_again_in_their_order(open_store: OpenStore) -> None:
    store = await open_store()
    for request_id in ("d", "a", "c", "b"):
        await store.add(make_row(request_id))
    await store.set_attempts("d", 1)
    await store.claim_outputs("d", ("output_1_0.wav", "output_1_1.wav"))
    await store.finish("a", COMPLETED)
    rows = await (await open_store()).unfinished()
    assert [(row.request_id, row.status, row.attempts) for row in rows] == [
        ("d", "pending", 1),
        ("c", "pending", 0),
        ("b", "pending", 0),
    ]
    assert rows[0].output_paths == ("output_1_0.wav", "output_1_1.wav")


async def test_counts_name_every_status(store: JobStore) -> None:
    assert await store.counts() == {"pending": 0, "processing": 0, "completed": 0, "failed": 0}
    for request_id in "abc":
        await store.add(make_row(request_id))
    await store.finish("b", COMPLETED)
    assert await store.counts() == {"pending": 2, "processing": 0, "completed": 1, "failed": 0}


async def test_only_old_results_expire_and_their_jobs_stay_completed(store: JobStore) -> None:
    for request_id in "abc":
        await store.add(make_row(request_id))
    await store.finish("a", COMPLETED)
    await store.finish("b", CANCELLED)
    assert await store.expire_results(2_000.0) == []
    assert await store.expire_results(9_000.0) == ["a"]
    assert await store.expire_results(9_000.0) == []
    row = await store.get("a")
    assert row is not None
    assert (row.status, row.outcome) == ("completed", "expired")


async def test_completed_jobs_expire_by_their_ids_and_others_stay_as_they_are(store: JobStore) -> None:
    for request_id in "abcd":
        await store.add(make_row(request_id))
    for request_id in "ab":
        await store.finish(request_id, COMPLETED)
    await store.finish("c", CANCELLED)
    await store.expire(["a", "c", "d", "nobody"])
    rows = [await store.get(request_id) for request_id in "abcd"]
    assert [row and row.outcome for row in rows] == ["expired", "completed", "cancelled", None]
    assert await store.expire_results(9_000.0) == ["b"]


async def test_only_old_ended_jobs_are_forgotten(store: JobStore) -> None:
    for request_id in "abc":
        await store.add(make_row(request_id))
    await store.finish("a", COMPLETED)
    await store.finish("b", CANCELLED)
    assert await store.remove_ended(2_050.0) == ["a"]
    assert await store.get("a") is None
    assert await store.get("b") is not None
    assert await store.get("c") is not None


async def test_a_setting_outlives_the_store(open_store: OpenStore) -> None:
    store = await open_store()
    assert await store.get_setting("model") is None
    await store.put_setting("model", "nano")
    await store.put_setting("model", "v1-3.5b")
    assert await (await open_store()).get_setting("model") == "v1-3.5b"


async def test_a_callback_is_to_be_made_from_the_end_of_its_job_until_it_is_over(open_store: OpenStore) -> None:
    store = await open_store()
    asked = Callback("https://example.org/done")
    for request_id in "abc":
        await store.add(make_row(request_id, callback=None if request_id == "c" else asked))
    assert await store.callbacks() == []
    for request_id in "cba":
        await store.finish(request_id, COMPLETED)
    assert sorted(row.request_id for row in await store.callbacks()) == ["a", "b"]
    tried = Callback(asked.url, attempts=3, due=2_345.6)
    assert await store.set_callback("a", tried)
    assert await store.set_callback("b", None)
    store = await open_store()
    assert [(row.request_id, row.callback) for row in await store.callbacks()] == [("a", tried)]
    await store.remove_ended(9_999.0)
    assert await store.callbacks() == []
    assert not await store.set_callback("a", None)


async def test_jobs_added_together_keep_their_order(open_store: OpenStore) -> None:
    store = await open_store()
    ids = [f"{i:03}" for i in range(100)]
    await asyncio.gather(*(store.add(make_row(request_id)) for request_id in ids))
    assert [row.request_id for row in await store.unfinished()] == ids
