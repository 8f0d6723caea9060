"""Sources that songs begin from take bounded memory, however many songs come with one."""

import asyncio

import numpy as np
import pytest

from acestep_engine.audio import SourceAudio
from deployments.source_room import SourceRoom

BYTES = 800


async def source() -> SourceAudio:
    await asyncio.sleep(0)
    return SourceAudio(np.zeros((2, BYTES // 8), np.float32), 48_000)


async def test_a_source_is_read_when_those_before_it_are_let_go_of() -> None:
    room: SourceRoom[SourceAudio] = SourceRoom(2 * BYTES)
    reading = [asyncio.create_task(room.read(name, source)) for name in "abcde"]
    await asyncio.sleep(0.05)
    assert [one.done() for one in reading] == [True, True, False, False, False]
    room.forget("b")
    await asyncio.sleep(0.05)
    assert [one.done() for one in reading] == [True, True, True, False, False]
    room.forget("a")
    room.forget("c")
    await asyncio.gather(*reading)
    assert room.nbytes == 2 * BYTES


async def test_a_source_larger_than_the_room_is_read_into_an_empty_one() -> None:
    room: SourceRoom[SourceAudio] = SourceRoom(BYTES // 2)
    await room.read("a", source)
    room.forget("a")
    await room.read("b", source)
    room.forget("b")
    assert room.nbytes == 0


async def test_a_call_that_ends_while_it_waits_holds_nobody_up() -> None:
    room: SourceRoom[SourceAudio] = SourceRoom(BYTES)
    await room.read("a", source)
    waiting, behind = (asyncio.create_task(room.read(name, source)) for name in "bc")
    await asyncio.sleep(0.02)
    waiting.cancel()
    room.forget("b")
    room.forget("a")
    assert (await behind).nbytes == BYTES


async def test_a_source_that_cannot_be_read_counts_for_nothing() -> None:
    async def fail() -> SourceAudio:
        raise ValueError("no audio")

    room: SourceRoom[SourceAudio] = SourceRoom(BYTES)
    with pytest.raises(ValueError, match="no audio"):
        await room.read("a", fail)
    assert room.nbytes == 0
    await room.read("b", source)
