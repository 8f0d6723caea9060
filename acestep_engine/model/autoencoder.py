"""Stereo audio to latents and back: resampling, log-mel, the DC autoencoder, the vocoder.

Audio (2, N) at any rate -> 44.1 kHz -> log-mel (2, 128, 8T) -> latents (8, 16, T), one latent frame per 4096 samples.
The two stereo channels are the two image channels of the autoencoder, and a batch of two for the vocoder.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderDC
from torch import Tensor

from acestep_engine.errors import AudioError, CheckpointError
from acestep_engine.model.convolving import Convolving
from acestep_engine.model.json_files import read_config
from acestep_engine.model.latent_decoder import LatentDecoder
from acestep_engine.model.latent_encoder import LatentEncoder
from acestep_engine.model.linear import use_products
from acestep_engine.model.loading import load_weights
from acestep_engine.model.mel import LogMel, MelConfig
from acestep_engine.model.resampling import ResampledStream, Resampler
from acestep_engine.model.vocoder import Vocoder, VocoderConfig
from acestep_engine.model.windows import with_halo
from acestep_engine.params import (
    MEL_FRAMES_PER_LATENT,
    MEL_HOP_SAMPLES,
    MODEL_SAMPLE_RATE_HZ,
    SAMPLES_PER_LATENT,
    encoded_frames,
)

LATENT_CHANNELS, LATENT_HEIGHT = 8, 16

# The published normalisation: log-mel in [-11, 3] becomes [-1, 1], latents get unit variance.
MEL_MIN, MEL_MAX = -11.0, 3.0
LATENT_SHIFT, LATENT_SCALE = -1.9091, 0.1786

SAMPLES_AT_ONCE = 2**18  # of a source that is resampled


class MusicAutoencoder:
    """The autoencoder and the vocoder of one checkpoint on one device, for inference."""

    def __init__(
        self, dcae: AutoencoderDC, vocoder: Vocoder, mel: LogMel, device: torch.device, dtype: torch.dtype
    ) -> None:
        use_products(dcae)
        self.dcae = dcae.to(memory_format=torch.channels_last)  # up to three times faster on a CPU
        self.encoder = LatentEncoder(dcae.encoder)
        self.decoder = LatentDecoder(dcae.decoder)
        self.vocoder = vocoder
        self.mel = mel.to(device)
        self.device = device
        self.dtype = dtype
        self.resample = Resampler(device)
        self.convolving = Convolving()

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> "MusicAutoencoder":
        """Load `music_dcae_f8c8` and `music_vocoder` of a checkpoint folder.

        Raises CheckpointError if a file is missing, broken, or not of a model for 44.1 kHz stereo.
        """
        vocoder_config = read_config(folder / "music_vocoder")
        dcae = build_dcae(read_config(folder / "music_dcae_f8c8"))
        vocoder = build_vocoder(vocoder_config)
        mel_config = MelConfig.from_dict(vocoder_config)
        if mel_config.sampling_rate != MODEL_SAMPLE_RATE_HZ or mel_config.hop_length != MEL_HOP_SAMPLES:
            raise CheckpointError(
                f"music_vocoder works at {mel_config.sampling_rate} Hz with a hop of {mel_config.hop_length}, "
                f"expected {MODEL_SAMPLE_RATE_HZ} Hz and {MEL_HOP_SAMPLES}"
            )
        load_weights(dcae, folder / "music_dcae_f8c8", device=device, dtype=dtype)
        load_weights(vocoder, folder / "music_vocoder", unused=Vocoder.unused, device=device, dtype=dtype)
        return cls(dcae, vocoder, LogMel(mel_config), device, dtype)

    def to(self, device: torch.device) -> Self:
        """Move everything to `device`, in place."""
        for module in (self.dcae, self.vocoder, self.mel):
            module.to(device)
        if device != self.device:
            self.resample = Resampler(device)
        self.device = device
        return self

    def free(self) -> None:
        """Let go of all that is kept for later songs: the memory is needed."""
        self.resample.free()

    @torch.inference_mode()
    def encode(self, audio: Tensor, sample_rate_hz: int) -> Tensor:
        """Encode stereo audio (2, N) to latents (8, 16, `encoded_frames` of N), float32.

        Silence is appended up to a whole latent frame. Raises AudioError if the audio is empty or not stereo.
        """
        if audio.ndim != 2 or audio.shape[0] != 2 or audio.shape[1] == 0:
            raise AudioError(f"audio of shape {tuple(audio.shape)} cannot be encoded, expected (2, N) with N >= 1")
        signal = self._resampled(audio, sample_rate_hz)
        mel = (self.mel(signal) - MEL_MIN) / (MEL_MAX - MEL_MIN)  # (2, 128, 8T), mostly in [0, 1]
        image = ((mel - 0.5) / 0.5).to(self.dtype)
        encode = partial(self.encoder, image[None])
        latents = self.convolving(encode, self.device)[0].float()  # (8, 16, T)
        return (latents - LATENT_SHIFT) * LATENT_SCALE

    def _resampled(self, audio: Tensor, sample_rate_hz: int) -> Tensor:
        """The audio (2, N) on the device at 44.1 kHz, with silence up to a whole latent frame. In bounded pieces."""
        length = encoded_frames(audio.shape[1], sample_rate_hz) * SAMPLES_PER_LATENT
        signal = torch.zeros(2, length, device=self.device)
        stream = ResampledStream(self.resample, sample_rate_hz, MODEL_SAMPLE_RATE_HZ)
        heard = -(-audio.shape[1] * MODEL_SAMPLE_RATE_HZ // sample_rate_hz)  # then the filter rings on
        written = 0
        *firsts, last = audio.split(SAMPLES_AT_ONCE, dim=-1)
        for piece, is_last in [*((piece, False) for piece in firsts), (last, True)]:
            resampled = stream.push(piece, last=is_last)[:, : heard - written]
            signal[:, written : written + resampled.shape[-1]] = resampled
            written += resampled.shape[-1]
        return signal

    @torch.inference_mode()
    def latents_to_image(self, latents: Tensor) -> Tensor:
        """Latents (8, 16, T) to what the decoder's first step takes (1, 8, 16, T)."""
        image = latents.to(self.device, torch.float32) / LATENT_SCALE + LATENT_SHIFT
        return _channels_last(image[None].to(self.dtype))

    @torch.inference_mode()
    def attended_to_mel(self, attended: Tensor, start: int, stop: int) -> Tensor:
        """The log-mel (2, 128, 8 * (stop - start)), float32, of latent frames [start, stop) of a song.

        `attended` is the song's image after the decoder's attending steps. Windows together give the mel of the whole.
        """
        mel = self.decoder.convolve(attended, start, stop)[0].float() * 0.5 + 0.5
        return mel * (MEL_MAX - MEL_MIN) + MEL_MIN

    @torch.inference_mode()
    def mel_to_audio(self, mel: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Stereo audio (2, N) in [-1, 1] at 44.1 kHz, float32, of frames [start, stop) of a song's log-mel (2, 128, T).

        A frame becomes 512 samples. Windows together give the audio of the whole: the vocoder only convolves.
        """
        return self.vocoder(mel.to(self.device, self.dtype), start, stop).squeeze(1).float()

    def heard_up_to(self, start: int, stop: int, frames: int) -> int:
        """The latent frame up to which `mel_to_audio` hears the mel, for [start, stop) of a song of so many."""
        window = start * MEL_FRAMES_PER_LATENT, stop * MEL_FRAMES_PER_LATENT
        _, last = with_halo(*window, self.vocoder.halo, frames * MEL_FRAMES_PER_LATENT)
        return -(-last // MEL_FRAMES_PER_LATENT)


def build_dcae(config: Mapping[str, Any]) -> AutoencoderDC:
    """The autoencoder of a config, without weights (on the meta device)."""
    sizes = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        with torch.device("meta"):
            dcae = AutoencoderDC(**sizes)
    except (TypeError, ValueError, LookupError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"music_dcae_f8c8/config.json describes no AutoencoderDC: {error}") from error
    found = (dcae.config.in_channels, dcae.config.latent_channels, dcae.spatial_compression_ratio)
    if found != (2, LATENT_CHANNELS, MEL_FRAMES_PER_LATENT):
        raise CheckpointError(
            f"music_dcae_f8c8 has {found[0]} channels in, {found[1]} latent channels and compression {found[2]}, "
            f"expected 2, {LATENT_CHANNELS} and {MEL_FRAMES_PER_LATENT}"
        )
    return dcae


def build_vocoder(config: Mapping[str, Any]) -> Vocoder:
    """The vocoder of a config, without weights (on the meta device)."""
    sizes = VocoderConfig.from_dict(config)
    try:
        with torch.device("meta"):
            return Vocoder(sizes)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"music_vocoder/config.json describes no vocoder: {error}") from error


def _channels_last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)
