"""Small networks that tell a recording from the vocoder's output, and what each side of the contest loses.

Periods: HiFi-GAN (Kong et al. 2020). Resolutions: UnivNet (Jang et al. 2021). Least squares: Mao et al. 2017.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.nano.codec_losses import STFT_FLOOR, spectrum

PERIODS = (2, 3, 5, 7, 11)
RESOLUTIONS = (512, 1024, 2048)
SLOPE = 0.1


@dataclass(frozen=True)
class Contest:
    """Losses: the discriminators' own, and the generator's two, its features' distance and its not being believed."""

    discriminators: Tensor
    features: Tensor
    disbelief: Tensor


class PeriodDiscriminator(nn.Module):
    """Audio (B, 1, N) folded by a period, judged along every column."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period
        widths = (1, 8, 24, 48, 64)
        strides = (3, 3, 3, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, (5, 1), (stride, 1), (2, 0))
            for before, after, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.verdict = nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, audio: Tensor) -> list[Tensor]:
        """Features of every layer, the verdict (B, 1, rows, period) last: 1 is real, 0 is not."""
        whole = audio.shape[-1] // self.period * self.period
        return _features(audio[..., :whole].unflatten(2, (-1, self.period)), self.convs, self.verdict)


class ResolutionDiscriminator(nn.Module):
    """Log magnitudes of audio (B, 1, N) at one resolution, judged in patches of time and frequency."""

    window: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        shapes = ((1, 8, 9, (2, 1)), (8, 24, 5, (2, 1)), (24, 32, 5, (2, 2)), (32, 32, 3, (1, 1)))
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, (height, 3), stride, (height // 2, 1)) for before, after, height, stride in shapes
        )
        self.verdict = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, audio: Tensor) -> list[Tensor]:
        """Features of every layer, the verdict (B, 1, bands, frames) last: 1 is real, 0 is not."""
        image = (spectrum(audio[:, 0], self.window) + STFT_FLOOR).log()[:, None]  # (B, 1, size / 2 + 1, frames)
        return _features(image, self.convs, self.verdict)


class Discriminators(nn.Module):
    """All of them."""

    def __init__(self) -> None:
        super().__init__()
        periods = [PeriodDiscriminator(period) for period in PERIODS]
        self.judges = nn.ModuleList([*periods, *(ResolutionDiscriminator(size) for size in RESOLUTIONS)])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def forward(self, real: Tensor, made: Tensor) -> Contest:
        """Recordings (B, 1, N) and what the vocoder made (B, 1, N), each loss a mean over all discriminators."""
        own, features, disbelief = [], [], []
        for judge in self.judges:
            with torch.autocast(real.device.type, torch.bfloat16):
                layers = judge(torch.cat([real, made]))
            believed, suspected = layers[-1].chunk(2)
            own.append((believed - 1).square().mean() + suspected.square().mean())
            disbelief.append((suspected - 1).square().mean())
            features.append(torch.stack([_distance(*layer.chunk(2)) for layer in layers[:-1]]).mean())
        return Contest(torch.stack(own).mean(), torch.stack(features).mean(), torch.stack(disbelief).mean())


def _features(image: Tensor, convs: nn.ModuleList, verdict: nn.Conv2d) -> list[Tensor]:
    x = image.contiguous(memory_format=torch.channels_last)
    layers = []
    for conv in convs:
        x = F.leaky_relu(conv(x), SLOPE)
        layers.append(x)
    return [*layers, verdict(x).float()]


def _distance(real: Tensor, made: Tensor) -> Tensor:
    """L1, as a share of what the real one's features are: layers of any scale count alike."""
    real = real.detach()
    return F.l1_loss(made, real).float() / (real.abs().mean().float() + 1e-6)
