"""Songs are made although what makes them faster on a GPU fails: compiled blocks, fused attention, bfloat16, cuDNN.

Here they are made to fail on a CPU. Recorded forwards have their own tests, in `test_graphs`.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from acestep_engine import calibrate, devices
from acestep_engine.batch import Batch
from acestep_engine.calibrate import compiling_pays
from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.decode import decode_latents
from acestep_engine.engine import Engine
from acestep_engine.model import attention
from acestep_engine.model.autoencoder import MusicAutoencoder
from acestep_engine.model.convolving import Convolving
from acestep_engine.model.transformer import Transformer
from acestep_engine.params import ModelSpec
from acestep_engine.requests import songs_of
from tests.engine.small import CPU, Ask, folded, latents, loaded_transformer, small_autoencoder
from tests.engine.wishes import KINDS, assert_as_alone, run
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

CompileFake = Callable[..., Callable[..., Any]]
GIVEN_UP = "compiled blocks fail, and are not used any more"


class KernelError(Exception):
    """What a compiler raises need not be a RuntimeError; Triton's errors are none."""


def compile_with(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """Have torch.compile answer functions that are not compiled, and call `before` with how often any was called."""
    calls = [0]

    def fake(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        def compiled(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            before(calls[0])
            return function(*args, **kwargs)

        return compiled

    monkeypatch.setattr(torch, "compile", fake)


def fails_from(call: int, error: Exception) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number >= call:
            raise error

    return before


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "MAX_ROWS", calibrate.LEAST_ROWS)
    monkeypatch.setattr(calibrate, "COMPILE_TRIALS", (1, 2))


@pytest.fixture
def model() -> Transformer:
    return folded(loaded_transformer())


def engine_of(model: Transformer, torch_compile: bool | None = True) -> Engine:
    return Engine(ModelSpec("small", "nowhere", torch_compile=torch_compile), model, small_autoencoder(), CPU)


# Compiled blocks


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("error", [KernelError("no C compiler"), RuntimeError("no Triton")])
def test_songs_are_made_where_nothing_can_be_compiled(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    compile_with(monkeypatch, fails_from(1, error))
    engine = engine_of(model)
    assert not model.is_compiled
    assert_as_alone(songs_of(run(engine, KINDS)), KINDS)
    assert caplog.text.count(GIVEN_UP) == 1
    assert str(error) in caplog.text


@pytest.mark.usefixtures("few_rows")
def test_songs_are_made_where_torch_compile_itself_fails(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fake(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        if function.__name__ == "finish":
            raise KernelError("not on this Python")
        return function

    monkeypatch.setattr(torch, "compile", fake)
    engine = engine_of(model)
    assert not model.is_compiled
    assert_as_alone(songs_of(run(engine, {"one": KINDS["usual"]})), {"one": KINDS["usual"]})
    assert caplog.text.count(GIVEN_UP) == 1


@pytest.mark.usefixtures("few_rows")
def test_a_step_whose_blocks_cannot_be_compiled_again_loses_no_song(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of a block, after all went well when the engine was loaded."""
    trouble: list[KernelError] = []

    def before(number: int) -> None:
        if trouble:
            raise trouble[0]

    compile_with(monkeypatch, before)
    engine = engine_of(model)
    assert model.is_compiled
    for name, wish in KINDS.items():
        wish.add_to(engine, name)
    events = [event for _ in range(3) for event in engine.step()]
    trouble.append(KernelError("a shape that was not foreseen"))
    while engine.busy:
        events += engine.step()
    assert_as_alone(songs_of(events), KINDS)
    assert not model.is_compiled
    assert caplog.text.count(GIVEN_UP) == 1


def test_memory_that_is_short_gives_no_compiled_block_up(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with(monkeypatch, fails_from(1, RuntimeError("Triton Error [CUDA]: out of memory")))
    model.compile_blocks()
    with pytest.raises(RuntimeError, match="out of memory"):
        Batch(model, CPU, torch.float32).forward([Ask(5).share()])
    assert model.is_compiled


def test_a_lost_device_is_not_asked_again_with_plain_blocks(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_with(monkeypatch, fails_from(1, torch.AcceleratorError("an illegal address")))
    model.compile_blocks()
    with pytest.raises(torch.AcceleratorError):
        Batch(model, CPU, torch.float32).forward([Ask(5).share()])


def trial(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether compiled blocks are taken where they take half the time."""

    def seconds(work: Callable[[], object], device: torch.device) -> float:
        work()
        return 0.5 if model.is_compiled else 1.0

    monkeypatch.setattr(calibrate, "_seconds", seconds)
    return compiling_pays(Batch(model, CPU, torch.float32), CPU)


@pytest.mark.usefixtures("few_rows")
def test_the_trial_takes_compiled_blocks_that_are_faster(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with(monkeypatch, lambda number: None)
    assert trial(model, monkeypatch)
    assert not model.is_compiled  # whoever asked compiles them


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("call", [1, 30, 120])
def test_the_trial_leaves_blocks_that_cannot_be_compiled_plain(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    compile_with(monkeypatch, fails_from(call, KernelError("no C compiler")))
    assert not trial(model, monkeypatch)
    assert not model.is_compiled


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_the_trial_refuses_compiled_blocks_that_compute_something_else(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, factor: float
) -> None:
    def fake(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        if function.__name__ != "finish":
            return function
        return lambda *args, **kwargs: factor * function(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", fake)
    assert not trial(model, monkeypatch)
    assert "answer otherwise" in caplog.text


# Fused attention


def fused_with(monkeypatch: pytest.MonkeyPatch, refused: Callable[[], bool], error: Exception) -> list[bool]:
    """Have all attention fused, and its kernels fail where they are `refused`; answers what was tried."""
    act, tried = attention.F.scaled_dot_product_attention, list[bool]()

    def fused(*args: Tensor) -> Tensor:
        tried.append(refused())
        if tried[-1]:
            raise error
        return act(*args)

    monkeypatch.setattr(attention, "MAX_SCORES", 0)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", fused)
    return tried


@pytest.mark.parametrize(
    ("refused", "kernels", "warnings"),
    [
        (torch.backends.cuda.cudnn_sdp_enabled, "FLASH_ATTENTION", 1),
        (torch.backends.cuda.flash_sdp_enabled, "MATH", 2),
    ],
)
def test_songs_are_made_without_the_attention_kernels_that_fail(
    model: Transformer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refused: Callable[[], bool],
    kernels: str,
    warnings: int,
) -> None:
    batch = Batch(model, CPU, torch.float32)
    share = Ask(5, query_scales=(1.0, 0.01)).share()
    expected = batch.forward([share])
    tried = fused_with(monkeypatch, refused, RuntimeError("cuDNN Frontend error: no valid execution plan"))
    for _ in range(2):
        for found, same in zip(batch.forward([share])[0], expected[0], strict=True):
            assert relative_error(found, same) < 1e-5
    assert sum(tried) == warnings == caplog.text.count("attention failed")  # once for all blocks
    assert kernels in caplog.messages[-1]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("an illegal address")]
)
def test_attention_that_fails_for_another_reason_is_not_given_up(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: RuntimeError
) -> None:
    fused_with(monkeypatch, lambda: True, error)
    with pytest.raises(type(error)):
        Batch(model, CPU, torch.float32).forward([Ask(5).share()])
    assert "attention failed" not in caplog.text


def test_attention_that_no_kernel_can_compute_fails(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = fused_with(monkeypatch, lambda: True, RuntimeError("not for such heads"))
    with pytest.raises(RuntimeError, match="not for such heads"):
        Batch(model, CPU, torch.float32).forward([Ask(5).share()])
    assert len(tried) == len(attention.KERNELS)


# bfloat16


@pytest.fixture
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is said to run bfloat16 and has no kernel for it."""
    norm = attention.F.rms_norm

    def rms_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.dtype == torch.bfloat16:
            raise RuntimeError('"rms_norm" not implemented for BFloat16')
        return norm(x, *args, **kwargs)

    monkeypatch.setattr(devices, "CPU_PRECISION", torch.bfloat16)
    monkeypatch.setattr(attention.F, "rms_norm", rms_norm)


@pytest.mark.usefixtures("few_rows", "no_bfloat16")
def test_a_model_runs_in_float32_where_bfloat16_fails(caplog: pytest.LogCaptureFixture) -> None:
    spec = ModelSpec("nano", str(NANO_PATH))
    engine = Engine.load(spec, "cpu")
    assert engine.spec is spec
    assert engine.dtype == torch.float32
    assert {parameter.dtype for parameter in engine.transformer.parameters()} == {torch.float32}
    assert caplog.text.count("runs in float32") == 1


@pytest.mark.usefixtures("no_bfloat16")
def test_a_precision_that_was_asked_for_is_not_changed() -> None:
    with pytest.raises(RuntimeError, match="not implemented for BFloat16"):
        Engine.load(ModelSpec("nano", str(NANO_PATH), precision="bfloat16"), "cpu")


# cuDNN


def convolutions_that(monkeypatch: pytest.MonkeyPatch, fail: Callable[[], bool], text: str) -> list[bool]:
    """Have convolutions fail; answers which of them did."""
    convolve, failed = attention.F.conv2d, list[bool]()

    def conv2d(*args: Any, **kwargs: Any) -> Tensor:
        failed.append(fail())
        if failed[-1]:
            raise RuntimeError(text)
        return convolve(*args, **kwargs)

    monkeypatch.setattr(attention.F, "conv2d", conv2d)
    return failed


def uses_cudnn() -> bool:
    return bool(torch.backends.cudnn.enabled)


@pytest.fixture
def codec() -> MusicAutoencoder:
    codec = copy(small_autoencoder())
    codec.convolving = Convolving()  # the others' stays as it is
    return codec


@pytest.mark.parametrize(
    "text",
    ["GET was unable to find an engine to execute this computation", "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"],
)
def test_songs_are_decoded_where_cudnn_fails(
    codec: MusicAutoencoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    song = latents(40)
    expected = decode_latents(codec, song)
    failed = convolutions_that(monkeypatch, uses_cudnn, text)
    for _ in range(2):
        assert torch.equal(decode_latents(codec, song), expected)
    assert sum(failed) == 1
    assert caplog.text.count("cuDNN fails") == 1
    assert uses_cudnn()  # the process may need it elsewhere


def test_sources_are_encoded_where_cudnn_fails(codec: MusicAutoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    expected = codec.encode(audio, 44_100)
    layer, failures = codec.dcae.encoder.conv_out, list[bool]()

    def refuse(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        failures.append(uses_cudnn())
        if failures[-1]:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM")

    handle = layer.register_forward_pre_hook(refuse)
    try:
        assert torch.equal(codec.encode(audio, 44_100), expected)
    finally:
        handle.remove()
    assert failures == [True, False]


@pytest.mark.parametrize("text", ["CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "a mistake of ours"])
def test_cudnn_is_kept_where_something_else_fails(
    codec: MusicAutoencoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    song = latents(40)
    failed = convolutions_that(monkeypatch, lambda: True, text)
    with pytest.raises(RuntimeError, match=text):
        decode_latents(codec, song)
    assert len(failed) == 1
    assert not caplog.text
