"""Audio to the log-mel spectrogram that the autoencoder compresses and the vocoder turns back into audio."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from acestep_engine.errors import AudioError, CheckpointError

POWER_FLOOR = 1e-6  # added under the square root of the spectrum
MEL_FLOOR = 1e-5  # below this a mel band counts as silent, before the logarithm


@dataclass(frozen=True)
class MelConfig:
    """The analysis that the vocoder was trained with, as its `config.json` states it. Rates and bounds in Hz."""

    sampling_rate: int = 44_100
    n_fft: int = 2048
    win_length: int = 2048
    hop_length: int = 512
    f_min: float = 40.0
    f_max: float = 16_000.0
    n_mels: int = 128

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "MelConfig":
        """The mel fields of a vocoder's config; raises CheckpointError if one is missing or no number."""
        values = {name: config.get(name) for name in cls.__dataclass_fields__}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise CheckpointError(f"the vocoder's config has {name} = {value!r}, expected a positive number")
        return cls(**values)  # type: ignore[arg-type]  # checked just above


FRAMES_AT_ONCE = 1024  # a long song's spectrum would take twenty times the memory of its audio


class LogMel(nn.Module):
    """Natural logarithm of a Slaney mel spectrogram, always computed in float32.

    Frames are centred as in HiFi-GAN: the signal is mirrored by (win_length - hop_length) / 2 at both ends, so that
    N samples give N / hop_length frames. Window and filter bank are constants, no weights.
    """

    window: Tensor
    filter_bank: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        bank = melscale_fbanks(
            config.n_fft // 2 + 1,
            float(config.f_min),
            float(config.f_max),
            config.n_mels,
            config.sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("window", torch.hann_window(config.win_length), persistent=False)
        self.register_buffer("filter_bank", bank, persistent=False)  # (n_fft / 2 + 1, n_mels)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio (..., N) at the config's sampling rate to log-mel (..., n_mels, N / hop_length), float32.

        Raises AudioError if N is too short to be mirrored at its ends.
        """
        config = self.config
        margin = config.win_length - config.hop_length
        left, right = margin // 2, (margin + 1) // 2
        if audio.shape[-1] <= right:
            raise AudioError(f"{audio.shape[-1]} samples are too few for a spectrum; at least {right + 1} are needed")
        signal = F.pad(audio.float().reshape(-1, 1, audio.shape[-1]), (left, right), mode="reflect").squeeze(1)
        frames = (signal.shape[-1] - config.n_fft) // config.hop_length + 1
        mel = signal.new_empty(len(signal), config.n_mels, frames)
        for start in range(0, frames, FRAMES_AT_ONCE):
            stop = min(start + FRAMES_AT_ONCE, frames)
            part = signal[:, start * config.hop_length : (stop - 1) * config.hop_length + config.n_fft]
            mel[..., start:stop] = self._log_mel(part)
        return mel.reshape(*audio.shape[:-1], config.n_mels, frames)

    def _log_mel(self, signal: Tensor) -> Tensor:
        """Signal (B, N) to (B, n_mels, T), without mirrored ends."""
        config = self.config
        spectrum = torch.stft(
            signal,
            config.n_fft,
            hop_length=config.hop_length,
            win_length=config.win_length,
            window=self.window,
            center=False,
            return_complex=True,
        )  # (B, n_fft / 2 + 1, T)
        magnitude = (torch.view_as_real(spectrum).square().sum(-1) + POWER_FLOOR).sqrt()
        mel: Tensor = magnitude.mT @ self.filter_bank  # (B, T, n_mels)
        return mel.clamp(min=MEL_FLOOR).log().mT
