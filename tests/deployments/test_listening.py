"""A song that is heard while it is made, by readers who each are where they are, whatever happens to its replica."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from acestep_engine.errors import NumericalError
from acestep_engine.params import GenerationParams, Progress
from deployments.growing_audio import READ_BYTES
from deployments.messages import ByteArray, JobFailedError, JobNotFoundError, RenderJob, SongChangedError
from tests.deployments.house import SONG, House, Message, failing, sing, sing_for_ever

WAIT_S = 10.0


def part(*values: int) -> ByteArray:
    return np.array(values, np.uint8)


class Stage:
    """Replicas that sing what they are told, when they are told. An exception is theirs."""

    def __init__(self, house: House) -> None:
        house.generator.script = self._sing
        self._cues: asyncio.Queue[Message | Exception] = asyncio.Queue()

    def cue(self, *cues: Message | Exception) -> None:
        for cue in cues:
            self._cues.put_nowait(cue)

    async def _sing(self, job: RenderJob) -> AsyncIterator[Message]:
        yield Progress("diffusion", 0, 2)
        while True:
            cue = await self._cues.get()
            if isinstance(cue, Exception):
                raise cue
            yield cue
            if cue is SONG:
                return


class Reader:
    """Of one song's file, part by part."""

    def __init__(self, house: House, request_id: str, index: int = 0) -> None:
        self._house = house
        self._where = request_id, index
        self._edition: str | None = None
        self.content = b""
        self.at_the_end = False

    async def read(self, timeout_s: float = WAIT_S) -> bytes:
        found = await self._house.manager.listen(*self._where, len(self.content), self._edition, timeout_s)
        self._edition = found.edition
        self.content += found.audio.tobytes()
        self.at_the_end = found.last
        return found.audio.tobytes()

    async def read_all(self) -> bytes:
        while not self.at_the_end:
            await self.read()
        return self.content


async def test_a_song_is_heard_while_it_is_made_and_all_that_was_heard_is_its_file(house: House) -> None:
    stage = Stage(house)
    reader = Reader(house, await house.submit())
    reading = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    stage.cue(part(1, 2))
    assert await reading == b"\x01\x02"
    stage.cue(part(3))
    assert (await reader.read(), reader.at_the_end) == (b"\x03", False)
    stage.cue(part(4), SONG)
    assert await reader.read_all() == b"\x01\x02\x03\x04"
    request_id, _ = reader._where
    assert (await house.manager.status(request_id)).outcome == "completed"  # at once: all of it was heard
    assert (await house.manager.result(request_id)).audio.tobytes() == reader.content


async def test_who_comes_late_hears_all_of_it_and_who_is_slow_goes_on_from_the_file(house: House) -> None:
    stage = Stage(house)
    request_id = await house.submit()
    slow = Reader(house, request_id)
    stage.cue(part(1, 2))
    await slow.read()
    late = Reader(house, request_id)
    assert await late.read() == b"\x01\x02"
    stage.cue(part(3, 4), SONG)
    await house.end_of(request_id)
    assert await slow.read() == b"\x03\x04"
    assert slow.at_the_end
    assert await late.read_all() == await Reader(house, request_id).read_all() == slow.content


async def test_a_part_is_of_bounded_size_from_memory_and_from_the_file(house: House) -> None:
    stage = Stage(house)
    request_id = await house.submit()
    large = np.arange(2 * READ_BYTES + 5, dtype=np.uint32).astype(np.uint8)
    stage.cue(large)
    reader = Reader(house, request_id)
    assert [len(await reader.read()) for _ in range(3)] == [READ_BYTES, READ_BYTES, 5]
    stage.cue(SONG)
    await house.end_of(request_id)
    kept = Reader(house, request_id)
    assert [len(await kept.read()) for _ in range(3)] == [READ_BYTES, READ_BYTES, 5]
    assert (kept.content, kept.at_the_end) == (large.tobytes(), True)


async def test_nothing_to_hear_for_a_while_is_an_empty_part(house: House) -> None:
    house.generator.script = sing_for_ever
    reader = Reader(house, await house.submit())
    assert (await reader.read(0.01), reader.at_the_end) == (b"", False)


async def test_a_song_that_another_replica_makes_again_goes_on_where_it_was(house: House) -> None:
    stage = Stage(house)
    reader = Reader(house, await house.submit())
    stage.cue(part(1, 2, 3))
    await reader.read()
    stage.cue(ActorDiedError(), part(1), part(2, 3, 4), part(5), SONG)
    assert await reader.read_all() == b"\x01\x02\x03\x04\x05"


@pytest.mark.parametrize("again", [part(1, 9, 3, 4), part(1, 2)])
async def test_a_song_that_turns_out_otherwise_the_second_time_is_never_heard_mixed(
    house: House, again: ByteArray
) -> None:
    stage = Stage(house)
    request_id = await house.submit()
    reader = Reader(house, request_id)
    stage.cue(part(1, 2, 3))
    await reader.read()
    stage.cue(ActorDiedError(), again, SONG)
    await house.end_of(request_id)
    with pytest.raises(SongChangedError):
        await reader.read()
    assert await Reader(house, request_id).read_all() == again.tobytes()


async def test_a_restart_of_the_service_does_not_mix_two_songs_either(house: House) -> None:
    stage = Stage(house)
    request_id = await house.submit()
    reader = Reader(house, request_id)
    stage.cue(part(1, 2, 3))
    await reader.read()
    await house.close()
    await house.open()
    stage.cue(part(7, 8, 9), SONG)
    await house.end_of(request_id)
    with pytest.raises(SongChangedError):
        await reader.read()


async def test_a_song_that_fails_ends_the_reading_with_its_failure(house: House) -> None:
    stage = Stage(house)
    reader = Reader(house, await house.submit())
    stage.cue(part(1))
    await reader.read()
    reading = asyncio.create_task(reader.read())
    house.generator.script = failing(NumericalError("NaN"))  # what the next attempt does
    stage.cue(ActorDiedError())
    with pytest.raises(JobFailedError) as failed:
        await reading
    assert failed.value.view.error_code == "numerical"


async def test_a_song_that_is_cancelled_ends_the_reading(house: House) -> None:
    house.generator.script = sing_for_ever
    request_id = await house.submit()
    reading = asyncio.create_task(Reader(house, request_id).read())
    await house.until_running(request_id)
    await house.manager.cancel(request_id)
    with pytest.raises(JobFailedError) as failed:
        await reading
    assert failed.value.view.outcome == "cancelled"


async def test_a_song_that_cannot_be_kept_has_no_end_to_be_heard(house: House) -> None:
    stage = Stage(house)
    reader = Reader(house, await house.submit())
    (house.root / "state/results").rmdir()
    (house.root / "state/results").write_text("in the way")
    stage.cue(part(1), SONG)
    with pytest.raises(JobFailedError):
        await reader.read_all()
    assert reader.content == b"\x01"


async def test_each_song_of_a_job_is_heard_on_its_own(house: House) -> None:
    await house.close()
    await house.open(songs_per_size=2)

    async def sing_the_seed(job: RenderJob) -> AsyncIterator[Message]:
        yield part(job.params.seed)
        if job.params.seed == 6:
            await asyncio.Event().wait()
        yield SONG

    house.generator.script = sing_the_seed
    request_id = await house.submit(songs=tuple(GenerationParams("piano", "", 1.0, seed) for seed in (5, 6)))
    assert await Reader(house, request_id, 0).read_all() == b"\x05"
    second = Reader(house, request_id, 1)
    assert (await second.read(), second.at_the_end) == (b"\x06", False)


async def test_nobody_hears_a_song_that_nobody_asked_for(house: House) -> None:
    house.generator.script = sing
    with pytest.raises(JobNotFoundError):
        await Reader(house, "a" * 32).read()
