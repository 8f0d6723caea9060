"""The TextEncoder with the nano model: who is encoded together with whom."""

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.conditioning import Conditioning, EncodeRequest
from acestep_engine.errors import CheckpointError, ParameterError
from acestep_engine.params import ModelSpec
from acestep_engine.text_encoder import TextEncoder as Encoder
from deployments.failures import GpuMemoryError
from deployments.text_encoder import TextEncoder, logger

NANO = ModelSpec("nano", str(NANO_PATH))
HANGS_AFTER_S = 60.0
WORDS = EncodeRequest("piano", "[verse]\nla la")


class Recorder(TextEncoder):
    """Remembers the prompts of each batch, and breaks on one of them."""

    batches: list[list[str]]

    def _encode(self, spec: ModelSpec, requests: Sequence[EncodeRequest]) -> list[Conditioning | Exception]:
        self.batches.append([request.prompt for request in requests])
        if "break" in self.batches[-1]:
            raise ZeroDivisionError
        return super()._encode(spec, requests)


@pytest.fixture
async def encoder() -> Recorder:
    encoder = Recorder.__new__(Recorder)  # as Serve does: the constructor is a coroutine
    encoder.batches = []
    await TextEncoder.__init__(encoder, NANO, False, 0, 3, None, HANGS_AFTER_S)  # type: ignore[misc]
    return encoder


def asked(prompt: str, **changes: Any) -> EncodeRequest:
    return dataclasses.replace(WORDS, prompt=prompt, **changes)


async def test_the_first_is_encoded_at_once_and_with_it_all_who_come_in_the_same_moment(encoder: Recorder) -> None:
    await asyncio.gather(*(encoder.encode(NANO, asked(prompt)) for prompt in "abcde"))
    assert encoder.batches == [["a", "b", "c"], ["d", "e"]]  # three at most
    await encoder.encode(NANO, asked("f"))
    assert encoder.batches[2:] == [["f"]]


async def test_a_replica_that_hangs_in_a_batch_ends_and_one_that_waits_stays(
    encoder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[str] = []
    monkeypatch.setattr("deployments.text_encoder.end_hanging_replica", ends.append)
    hangs, released = threading.Event(), threading.Event()

    def hang(self: object, requests: Sequence[EncodeRequest]) -> list[Conditioning]:
        hangs.set()
        released.wait()
        return []

    monkeypatch.setattr("acestep_engine.text_encoder.TextEncoder.encode", hang)
    encoder._hangs_after_s = 0.1
    encoding = asyncio.create_task(encoder.encode(NANO, WORDS))
    await asyncio.to_thread(hangs.wait)
    await asyncio.sleep(0.2)
    await encoder.check_health()
    assert len(ends) == 1
    released.set()
    encoding.cancel()
    await asyncio.gather(encoding, return_exceptions=True)
    await encoder._in_thread(lambda: None)
    await asyncio.sleep(0.2)
    await encoder.check_health()
    assert len(ends) == 1


async def test_each_gets_what_it_would_get_alone(encoder: Recorder) -> None:
    together = await asyncio.gather(*(encoder.encode(NANO, asked(prompt)) for prompt in ("piano", "a calm guitar")))
    for prompt, one in zip(("piano", "a calm guitar"), together, strict=True):
        alone = await encoder.encode(NANO, asked(prompt))
        for found, expected in zip(dataclasses.astuple(one), dataclasses.astuple(alone), strict=True):
            if found is not None:
                np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5)


async def test_a_request_that_cannot_be_encoded_fails_alone(encoder: Recorder) -> None:
    answers = await asyncio.gather(
        encoder.encode(NANO, asked("a")),
        encoder.encode(NANO, asked("b", vocal_language="xx")),
        return_exceptions=True,
    )
    assert isinstance(answers[0], Conditioning)
    assert isinstance(answers[1], ParameterError)


async def test_a_model_that_cannot_be_loaded_fails_its_requests_and_no_others(encoder: Recorder) -> None:
    broken = ModelSpec("broken", "/nowhere")
    answers = await asyncio.gather(
        encoder.encode(NANO, asked("a")),
        encoder.encode(broken, asked("b")),
        encoder.encode(NANO, asked("c")),
        return_exceptions=True,
    )
    assert encoder.batches == [["a", "c"], ["b"]]
    assert isinstance(answers[1], CheckpointError)
    assert [isinstance(answer, Conditioning) for answer in answers] == [True, False, True]


async def test_a_failure_that_nobody_foresaw_is_heard_by_all_whom_it_concerns_and_by_nobody_after(
    encoder: Recorder,
) -> None:
    failed = await asyncio.gather(
        *(encoder.encode(NANO, asked(prompt)) for prompt in ("a", "break")), return_exceptions=True
    )
    assert [type(error) for error in failed] == [ZeroDivisionError] * 2
    assert isinstance(await encoder.encode(NANO, asked("c")), Conditioning)


async def test_memory_that_is_short_is_freed_and_prompts_are_encoded_one_by_one(
    encoder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = Encoder.encode

    def encode(self: Encoder, requests: Sequence[EncodeRequest]) -> list[Conditioning]:
        if len(requests) > 1:
            raise torch.OutOfMemoryError("a Generator on the same GPU holds it")
        return together(self, requests)

    expected = [await encoder.encode(NANO, asked(prompt)) for prompt in "ab"]
    monkeypatch.setattr(Encoder, "encode", encode)
    found = await asyncio.gather(*(encoder.encode(NANO, asked(prompt)) for prompt in "ab"))
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.text, other.text)


async def test_an_encoder_without_memory_says_so(encoder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(self: Encoder, requests: Sequence[EncodeRequest]) -> list[Conditioning]:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Encoder, "encode", encode)
    with pytest.raises(GpuMemoryError, match="text encoder"):
        await encoder.encode(NANO, asked("a"))


@pytest.mark.parametrize("error", [torch.AcceleratorError("an illegal address"), RuntimeError("a mistake")])
async def test_an_encoder_whose_gpu_is_lost_ends_its_process(
    encoder: Recorder, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    """Every later batch would fail as well."""
    ends: list[str] = []

    def encode(self: Encoder, requests: Sequence[EncodeRequest]) -> list[Conditioning]:
        raise error

    monkeypatch.setattr(Encoder, "encode", encode)
    monkeypatch.setattr("deployments.text_encoder.end_process", lambda: ends.append("ended"))
    with pytest.raises(RuntimeError):
        await encoder.encode(NANO, asked("a"))
    assert ends == (["ended"] if isinstance(error, torch.AcceleratorError) else [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
async def test_an_encoder_whose_gpu_cannot_be_used_says_why(caplog: pytest.LogCaptureFixture) -> None:
    encoder = TextEncoder.__new__(TextEncoder)
    await TextEncoder.__init__(encoder, NANO, True, 0, 3, None, HANGS_AFTER_S)  # type: ignore[misc]
    assert "torch cannot use" in caplog.text
    assert "driver" in caplog.text


async def test_a_caller_that_leaves_is_not_waited_for(encoder: Recorder) -> None:
    leaving, staying = (asyncio.create_task(encoder.encode(NANO, asked(prompt))) for prompt in "ab")
    await asyncio.sleep(0)
    leaving.cancel()
    assert isinstance(await staying, Conditioning)
    assert leaving.cancelled()


async def test_a_clients_mistake_leaves_no_traceback_in_the_replicas_log(
    encoder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def log_as_serve_does(error: Exception) -> None:
        logger.error("Request failed.", exc_info=error)

    mistakes = await asyncio.gather(
        encoder.read_lyrics(NANO, "la", "xx"),
        encoder.encode(NANO, asked("a", lyrics="[lang:xx] la")),
        encoder.encode(NANO, asked("b", lyrics="1234567 " * 1_250)),  # too long once it is spelled out
        return_exceptions=True,
    )
    for mistake in mistakes:
        assert isinstance(mistake, ParameterError)
        log_as_serve_does(mistake)
    assert not caplog.records
    log_as_serve_does(ZeroDivisionError())
    assert len(caplog.records) == 1


async def test_lyrics_are_read_as_a_song_would_have_them(encoder: Recorder) -> None:
    lyrics = "[verse]\nIch zähle 3 Rosen"
    read = await encoder.read_lyrics(NANO, lyrics, "de")
    song = await encoder.encode(NANO, asked("piano", lyrics=lyrics, vocal_language="de"))
    assert (read.model, read.total) == ("nano", len(song.lyric_ids))
    assert [line.language for line in read.lines] == ["en", "de"]
    assert read.lines[1].spelling == "ich zähle drei rosen"
    with pytest.raises(ParameterError):
        await encoder.read_lyrics(NANO, "la", "xx")
