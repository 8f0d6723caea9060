"""How far a mel or a sound is from the one that was asked for. Log-mel in nepers, audio (B, 1, N) at 44.1 kHz."""

import math

import torch
from torch import Tensor, nn

AUDIBLE_RANGE_NEPERS = 60 / 20 * math.log(10)  # 60 dB
QUIET_WEIGHT = 0.2  # of what lies below that, which must only stay quiet
STFT_SIZES = (512, 1024, 2048, 4096)
STFT_FLOOR = 3e-4  # of a spectrum that white noise of unit variance fills with ones: about -70 dBFS


def audible(mel: Tensor) -> Tensor:
    """Where a log-mel (B, 2, 128, T) is louder than 60 dB below the loudest of its song."""
    return mel > mel.amax(dim=(-3, -2, -1), keepdim=True) - AUDIBLE_RANGE_NEPERS


def audible_error(found: Tensor, expected: Tensor) -> Tensor:
    """The mean absolute difference of log-mels (B, 2, 128, T) where the expected one is audible, in nepers."""
    return (found - expected).abs()[audible(expected)].mean()


def mel_loss(found: Tensor, expected: Tensor) -> Tensor:
    """L1, some L2 and the L1 of the slopes in time and pitch, for log-mels (B, 2, 128, T)."""
    weight = torch.where(audible(expected), 1.0, QUIET_WEIGHT)
    difference = found - expected
    over_time = difference.diff(dim=-1).abs() * weight[..., 1:]
    over_pitch = difference.diff(dim=-2).abs() * weight[..., 1:, :]
    slopes = over_time.mean() + over_pitch.mean()
    level = difference.abs() + 0.1 * difference.square()
    return ((level * weight).mean() + 0.25 * slopes) / weight.mean()


class SpectralLoss(nn.Module):
    """Spectral convergence and L1 of log magnitudes at several resolutions (Yamamoto et al. 2020), averaged.

    Long windows ask for steady tones, short ones for sharp strokes.
    """

    def __init__(self) -> None:
        super().__init__()
        for size in STFT_SIZES:
            self.register_buffer(f"window{size}", torch.hann_window(size), persistent=False)

    def forward(self, found: Tensor, expected: Tensor) -> Tensor:
        """Audio (B, 1, N) against audio of the same shape."""
        total = found.new_zeros(())
        for size in STFT_SIZES:
            window = self.get_buffer(f"window{size}")
            with torch.no_grad():
                wanted = spectrum(expected[:, 0], window)
            given = spectrum(found[:, 0], window)
            distance = (given - wanted).square().sum((-2, -1)).add(1e-8).sqrt()
            convergence = (distance / wanted.square().sum((-2, -1)).add(1e-3).sqrt()).mean()
            levels = ((given + STFT_FLOOR).log() - (wanted + STFT_FLOOR).log()).abs().mean()
            total = total + convergence + levels
        return total / len(STFT_SIZES)


def spectrum(audio: Tensor, window: Tensor) -> Tensor:
    """Magnitudes (B, size / 2 + 1, frames) of audio (B, N), about 1 for white noise of unit variance."""
    size = window.shape[0]
    scaled = window / window.square().sum().sqrt()
    values = torch.stft(audio, size, size // 4, window=scaled, center=True, return_complex=True)
    return (torch.view_as_real(values).square().sum(-1) + 1e-12).sqrt()
