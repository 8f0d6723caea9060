"""Which family of instruments leads: a small convolutional net over the log-mel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.nano.evaluate.spectra import Audio, log_mel
from training.nano.words import FAMILIES

MEL_BANDS = 128
RANGE_NEPERS = 8.0  # below the clip's loudest: about 70 dB
CHANNELS = (16, 32, 64, 96)
COARSE_BANDS = MEL_BANDS // 2 ** len(CHANNELS)


def mel_picture(audio: Audio) -> Tensor:
    """What the net sees, (128, N / 1024): the mean log-mel of channels and pairs of frames, from 0, loudest, to -1."""
    mel = F.avg_pool1d(log_mel(audio).mean(dim=0), 2)  # (128, N / 1024)
    return ((mel - mel.max()) / RANGE_NEPERS).clamp(min=-1)


class FamilyNet(nn.Module):
    """Pictures (B, 128, T), T at least 16, to logits (B, families)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for number, channels in enumerate(CHANNELS):
            size = 3 if number else 5
            layers += [
                nn.Conv2d(before, channels, size, stride=2, padding=size // 2, bias=False),
                nn.BatchNorm2d(channels),
                nn.GELU(),
            ]
            before = channels
        self.see = nn.Sequential(*layers)
        self.see.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half the time on a CPU
        self.judge = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * before * COARSE_BANDS, len(FAMILIES)))

    def forward(self, pictures: Tensor) -> Tensor:
        seen = self.see(pictures[:, None])  # (B, C, 8, T / 16)
        logits: Tensor = self.judge(torch.cat([seen.mean(dim=3), seen.amax(dim=3)], dim=1).flatten(1))
        return logits


@torch.inference_mode()
def family_shares(net: FamilyNet, audio: Audio) -> dict[str, float]:
    """How likely each family leads; they sum to 1. Audio of half a second or more."""
    shares = net(mel_picture(audio)[None])[0].softmax(dim=0).tolist()
    return dict(zip(FAMILIES, shares, strict=True))
