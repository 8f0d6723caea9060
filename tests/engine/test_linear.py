"""The matrix product for weights beside the one of torch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from acestep_engine.model import linear
from acestep_engine.model.linear import SMALL_PRODUCT, Linear, project
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_shapes_below_are_on_both_sides_of_the_threshold() -> None:
    assert 1 * 16 * 8 < SMALL_PRODUCT < 300 * 128 * 64
    assert 16 * 8 * 1 < SMALL_PRODUCT < 3 * 100 * 128 * 64
    assert SMALL_PRODUCT < 1 * 2048 * 2048


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("shape", "out"),
    [((1, 16), 8), ((5, 16), 8), ((300, 128), 64), ((3, 100, 128), 64), ((2, 3, 4, 16), 8), ((1, 2048), 2048)],
)
def test_a_projection_is_that_of_torch(shape: tuple[int, ...], out: int, biased: bool) -> None:
    x, weight = draw(*shape), draw(out, shape[-1], seed=1)
    bias = draw(out, seed=2) if biased else None
    found = project(x, weight, bias)
    assert relative_error(found, F.linear(x.double(), weight.double(), None if bias is None else bias.double())) <= 1e-6


@pytest.mark.parametrize("tokens", [3, 500])
def test_inputs_and_weights_need_not_be_contiguous(tokens: int) -> None:
    weight, bias = draw(128, 64, seed=1).T, draw(64, seed=2)
    for x in (draw(128, tokens).T, draw(tokens, 256)[:, ::2], draw(tokens, 1, 256)[..., 64:192]):
        assert not x.is_contiguous()
        assert relative_error(project(x, weight, bias), F.linear(x.double(), weight.double(), bias.double())) <= 1e-6


@given(
    leading=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 150),
    biased=st.booleans(),
)
def test_any_shape_is_projected_as_torch_does(leading: list[int], inputs: int, outputs: int, biased: bool) -> None:
    x, weight = draw(*leading, inputs), draw(outputs, inputs, seed=1)
    bias = draw(outputs, seed=2) if biased else None
    found = project(x, weight, bias)
    assert found.shape == (*leading, outputs)
    torch.testing.assert_close(found, F.linear(x, weight, bias), rtol=1e-5, atol=1e-5 * inputs**0.5)


def test_no_tokens_at_all_are_no_products() -> None:
    assert project(draw(0, 16), draw(8, 16), draw(8)).shape == (0, 8)


def test_other_precisions_are_left_to_torch() -> None:
    x, weight, bias = draw(300, 128).bfloat16(), draw(64, 128).bfloat16(), draw(64).bfloat16()
    torch.testing.assert_close(project(x, weight, bias), F.linear(x, weight, bias), rtol=0, atol=0)


def test_the_layer_is_the_projection_with_its_weights() -> None:
    layer = Linear(128, 64).requires_grad_(False)
    x = draw(300, 128)
    torch.testing.assert_close(layer(x), project(x, layer.weight, layer.bias), rtol=0, atol=0)


def test_without_onednn_products_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(300, 128), draw(64, 128)
    monkeypatch.setattr(linear, "ONEDNN", False)
    torch.testing.assert_close(project(x, weight), F.linear(x, weight), rtol=0, atol=0)
