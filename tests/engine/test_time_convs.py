"""Convolutions over time beside torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from acestep_engine.model.time_convs import DepthwiseConv, TimeConv, TimeUpsample

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(channels: int, samples: int) -> Tensor:
    return torch.randn(2, channels, samples, generator=torch.Generator().manual_seed(samples))


def as_image(x: Tensor) -> Tensor:
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dilation", [1, 3, 5])
@pytest.mark.parametrize("kernel_size", [1, 3, 7, 13])
@pytest.mark.parametrize(
    ("channels_in", "channels_out", "folded"), [(2, 2, 8), (4, 4, 4), (8, 8, 2), (12, 1, 8), (2, 1, 8), (12, 12, 1)]
)
def test_a_convolution_is_that_of_torch_however_many_samples_it_takes_for_channels(
    channels_in: int, channels_out: int, folded: int, kernel_size: int, dilation: int
) -> None:
    conv = TimeConv(channels_in, channels_out, kernel_size, dilation).requires_grad_(False)
    assert conv.folded == (1 if channels_out == 8 and dilation == 5 else folded)
    for samples in (160, 8, 157):  # the last is no multiple, and convolved as it is
        x = drawn(channels_in, samples)
        expected = F.conv1d(x, conv.weight, conv.bias, padding="same", dilation=dilation)
        with torch.no_grad():
            found = conv(as_image(x))
            of_a_part = conv(as_image(F.pad(x, (3, 3)))[..., 3:-3])
        assert found.shape == (2, channels_out, 1, samples)
        torch.testing.assert_close(found.squeeze(2), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(of_a_part.squeeze(2), expected, rtol=1e-5, atol=1e-5)


def test_what_takes_samples_for_channels_learns_as_others_do() -> None:
    conv, x = TimeConv(2, 2, 7), drawn(2, 160)
    conv(as_image(x)).square().sum().backward()
    assert conv.weight.grad is not None
    found = conv.weight.grad.clone()
    conv.weight.grad = None
    F.conv1d(x, conv.weight, conv.bias, padding="same").square().sum().backward()
    torch.testing.assert_close(found, conv.weight.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("kernel_size", "rate"), [(16, 8), (8, 4), (4, 2), (4, 4), (2, 2), (6, 2), (10, 4), (14, 8)])
def test_an_upsampling_is_a_transposed_convolution(kernel_size: int, rate: int) -> None:
    up = TimeUpsample(6, kernel_size, rate).requires_grad_(False)
    x = drawn(6, 50)
    expected = F.conv_transpose1d(x, up.weight, up.bias, stride=rate, padding=(kernel_size - rate) // 2)

    assert expected.shape == (2, 3, 50 * rate)
    torch.testing.assert_close(up(as_image(x)).squeeze(2), expected)


@pytest.mark.parametrize("kernel_size", [7, 15])
def test_a_depthwise_convolution_is_that_of_torch(kernel_size: int) -> None:
    conv, x = DepthwiseConv(6, kernel_size).requires_grad_(False), drawn(6, 50)
    torch.testing.assert_close(conv(x), F.conv1d(x, conv.weight, conv.bias, padding="same", groups=6))
