"""The JobManager with scripted replicas: when the TextEncoder is asked, and what the Generator gets of it."""

from collections.abc import AsyncIterator
from typing import Any

from acestep_engine.conditioning import EncodeRequest
from acestep_engine.errors import NumericalError
from acestep_engine.params import GenerationParams
from deployments.messages import RenderJob
from tests.deployments.house import House, Message, die, failing, sing


async def make(house: House, prompt: str = "piano", seed: int = 1, **changes: Any) -> None:
    song = GenerationParams(prompt, "la la", 1.0, seed=seed, **changes)
    await house.end_of(await house.submit(songs=(song,)))


async def test_the_same_words_are_encoded_once_whatever_the_seed(house: House) -> None:
    await make(house, seed=1)
    await make(house, seed=2, steps=10)
    await make(house, "drums")
    await make(house, vocal_language="de")
    await make(house, seed=3)
    assert house.text_encoder.asked == [
        EncodeRequest("piano", "la la"),
        EncodeRequest("drums", "la la"),
        EncodeRequest("piano", "la la", vocal_language="de"),
    ]
    assert house.generator.encodings == [(1,), (1,), (2,), (3,), (1,)]


async def test_an_edited_song_is_encoded_as_it_is_and_as_it_is_to_become(house: House) -> None:
    await make(house, task="edit", edit_target_prompt="drums", edit_target_lyrics="lo lo")
    await make(house, seed=2)
    assert [(one.prompt, one.lyrics) for one in house.text_encoder.asked] == [("piano", "la la"), ("drums", "lo lo")]
    assert house.generator.encodings == [(1, 2), (1,)]


async def test_after_a_loss_everything_is_encoded_anew(house: House) -> None:
    """The node of the TextEncoder may be gone, and with it what it had made."""
    await make(house, "drums")
    await make(house)

    async def die_once(job: RenderJob) -> AsyncIterator[Message]:
        house.generator.script = sing
        async for message in die(job):
            yield message

    house.generator.script = die_once
    await make(house, seed=2)
    await make(house, seed=3)
    await make(house, "drums", seed=2)
    assert house.generator.encodings == [(1,), (2,), (2,), (3,), (3,), (4,)]


async def test_words_that_no_song_was_made_with_are_encoded_anew(house: House) -> None:
    house.generator.script = failing(NumericalError("NaN"))
    await make(house)
    house.generator.script = sing
    await make(house, seed=2)
    assert house.generator.encodings == [(1,), (2,)]
