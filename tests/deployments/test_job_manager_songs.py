"""The JobManager with scripted replicas: jobs of several songs, and songs that others begin from."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from acestep_engine.errors import NumericalError
from acestep_engine.params import GenerationParams, Progress
from deployments.failures import LatentSpaceError
from deployments.messages import (
    ByteArray,
    EarlierSong,
    JobNotEndedError,
    RenderJob,
    ReplicaState,
    SongNotFoundError,
    SourceGoneError,
    SourceOfOtherModelError,
    Upload,
)
from deployments.retention import RetentionTerms
from tests.deployments.house import (
    AUDIO,
    SONG,
    House,
    Message,
    Script,
    failing,
    sing,
    sing_for_ever,
    until,
)


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


async def test_latents_of_another_model_are_no_source_whatever_the_models_are_called(house: House) -> None:
    house.generator.script = sing_in("first")
    first = await house.submit()
    await house.end_of(first)
    await house.manager.report(ReplicaState("r1", "nano", "cpu", latent_space="second"))  # new weights, the same name
    with pytest.raises(SourceOfOtherModelError):
        await house.submit(source=EarlierSong(first))
    await house.manager.report(ReplicaState("r1", "other", "cpu", latent_space="second"))  # not the current model
    await house.manager.report(ReplicaState("r2", "nano", "cpu", latent_space="first"))
    second = await house.submit(source=EarlierSong(first))
    assert (await house.end_of(second)).outcome == "completed"
    assert [job.latent_space for job in house.generator.jobs] == ["", "first"]


@pytest.mark.parametrize(("model", "is_source"), [("nano", True), ("other", False)])
async def test_latents_of_an_earlier_version_are_a_source_for_the_model_that_made_them(
    house: House, model: str, is_source: bool
) -> None:
    async def sing_as_before(job: RenderJob) -> AsyncIterator[Message]:
        yield replace(SONG, rest=AUDIO, model=model)

    house.generator.script = sing_as_before
    await house.manager.report(ReplicaState("r1", "nano", "cpu", latent_space="first"))
    first = await house.submit()
    await house.end_of(first)
    with nullcontext() if is_source else pytest.raises(SourceOfOtherModelError):
        second = await house.submit(source=EarlierSong(first))
        assert (await house.end_of(second)).outcome == "completed"


async def test_a_song_whose_source_the_model_does_not_understand_fails_for_this_reason(house: House) -> None:
    house.generator.script = failing(LatentSpaceError("made by another model"))
    view = await house.end_of(await house.submit())
    assert (view.outcome, view.error_code, view.error) == ("failed", "source_of_other_model", "made by another model")


def sing_in(latent_space: str) -> Script:
    async def sing_there(job: RenderJob) -> AsyncIterator[Message]:
        yield replace(SONG, rest=AUDIO, latent_space=latent_space)

    return sing_there


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
