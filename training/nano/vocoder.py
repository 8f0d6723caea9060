"""Train the vocoder: `python -m training.nano.vocoder --data DIR --out DIR --minutes 120 [--through DIR]`.

It is the engine's Vocoder. At first its backbone alone learns the phases of steady tones (see `phases`), which is a
fraction of the work; then all of it learns those and spectra. With `--through` it hears mels that the autoencoder
exported in that folder gave back, as it will in use.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn

from acestep_engine.checkpoint import VOCODER
from acestep_engine.devices import pick_device
from acestep_engine.model.autoencoder import build_vocoder
from acestep_engine.model.mel import LogMel, MelConfig
from acestep_engine.model.vocoder import ConvNeXtBlock, ResBlock, Vocoder
from acestep_engine.params import MEL_FRAMES_PER_LATENT, MEL_HOP_SAMPLES
from training.nano.autoencoder import decode, encode, load_dcae
from training.nano.codec_data import Recordings, Segments, held_out_recordings, training_recordings
from training.nano.codec_losses import SpectralLoss, audible_error, mel_loss
from training.nano.loop import (
    add_plan,
    learning_rate,
    plan_of,
    set_learning_rate,
    step_generator,
    torch_generator,
    train,
)
from training.nano.modules import start, store
from training.nano.phases import Phases, clock

# Window, lowest and highest Hz of what phases are taught in, and how much it matters there what is beside tones. A
# short window parts no two tones of a bass, 55 Hz apart; through a long one short notes are not steady. Above 4 kHz a
# mel band is too wide to tell a tone's frequency. What is between the tones of a bass is noise; higher it may be drums.
BANDS = ((2048, 400.0, 4000.0, 0.0), (8192, 40.0, 400.0, 1.0))

# The backbone, which is next to no work, tells notes from each other: its kernel of 15 hears half a second on either
# side, and its last blocks are wide.
CONFIG: dict[str, Any] = {
    "input_channels": 128,
    "depths": [1, 1, 2, 2],
    "dims": [96, 128, 192, 256],
    "drop_path_rate": 0.0,
    "kernel_sizes": [15],
    "upsample_rates": [8, 8, 4, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4],
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
    "num_mels": 256,
    "upsample_initial_channel": 192,
    "use_template": False,
    "pre_conv_kernel_size": 3,
    "post_conv_kernel_size": 7,
    "sampling_rate": 44100,
    "n_fft": 2048,
    "win_length": 2048,
    "hop_length": 512,
    "f_min": 40,
    "f_max": 16000,
    "n_mels": 128,
    "_class_name": "ADaMoSHiFiGANV1",
}


@dataclass(frozen=True)
class Settings:
    """A step hears `segments` stereo segments, which are twice as many sounds, of `frames` mel frames each."""

    segments: int = 4
    frames: int = 32
    backbone: tuple[int, int] = (8, 128)  # (segments, mel frames) of a step of the backbone alone
    judged: tuple[int, int] = (16, 64)  # (segments, mel frames)
    highest_rate: float = 1e-3
    backbone_rate: float = 3e-3
    backbone_share: float = 0.3  # of the plan: after it all of the vocoder learns
    mel_noise: float = 0.05  # nepers, while the backbone learns from true mels
    phase_weight: float = 12.0
    mel_weight: float = 3.0
    spectral_weight: float = 1.0
    latent_noise: float = 0.15  # as in the autoencoder's training, with --through
    seed: int = 0


class VocoderTrainer:
    """Trains one Vocoder of a config, on true mels or on those of an autoencoder."""

    def __init__(
        self,
        config: dict[str, Any],
        settings: Settings,
        recordings: Recordings,
        held_out: Recordings,
        through: AutoencoderDC | None = None,
    ) -> None:
        self.config, self.settings, self.through = config, settings, through
        self.recordings, self.held_out = recordings, held_out
        self.device = recordings.device
        self.vocoder = started_vocoder(config, settings.seed).to(self.device)
        self.log_mel, self.spectral_loss = LogMel(MelConfig()).to(self.device), SpectralLoss().to(self.device)
        self.bands = [Phases(*band).to(self.device) for band in BANDS]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            read = 2 * sum(band.bins for band in self.bands)
            self.reading = nn.Linear(config["dims"][-1], read).to(self.device)  # of the backbone
        self.optimizer = torch.optim.AdamW(
            [*self.vocoder.parameters(), *self.reading.parameters()], betas=(0.8, 0.99), weight_decay=0.01, fused=True
        )
        self.context = _context(self.vocoder, settings.frames)

    def step(self, step: int, progress: float) -> dict[str, float]:
        settings = self.settings
        rng = step_generator(settings.seed, step)
        if progress < settings.backbone_share:
            return self._step_of_backbone(rng, step, progress / settings.backbone_share)
        segments = self.recordings.draw(rng, settings.segments, settings.frames, self.context)
        real = segments.audio.flatten(0, 1)[:, None]  # (2B, 1, N)
        with torch.autocast(self.device.type, torch.bfloat16):
            made = self._make(self._mel(segments, rng)).float()
        losses = self._spectral(made, segments, real) | {"phases": self._phase_error(made, real, self.context)}
        weights = {"mel": settings.mel_weight, "spectral": settings.spectral_weight, "phases": settings.phase_weight}
        set_learning_rate(self.optimizer, learning_rate(settings.highest_rate, step, progress))
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack([weight * losses[name] for name, weight in weights.items()]).sum().backward()
        losses["gradient"] = torch.nn.utils.clip_grad_norm_(self.vocoder.parameters(), 10.0)
        self.optimizer.step()
        return {name: value.item() for name, value in losses.items()}

    def compile(self) -> None:
        """Fuse what the blocks compute: a fifth less time for each step, after a minute or two for the first ones."""
        for module in self.vocoder.modules():
            if isinstance(module, ResBlock | ConvNeXtBlock):
                module.compile(dynamic=False)

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """The error of the log-mel of what is made of held-out recordings, in nepers, and the spectral loss."""
        count, frames = self.settings.judged
        context = _context(self.vocoder, frames)
        segments = self.held_out.draw(step_generator(self.settings.seed, 2**40), count, frames, context)
        mel = (
            _with_clock(segments.mel)
            if self.through is None
            else decode(self.through, encode(self.through, segments.mel))
        )
        made = self.vocoder(mel.flatten(0, 1), context, context + frames)
        expected, found = (self.log_mel(audio) for audio in (segments.audio, made.view_as(segments.audio)))
        return {
            "held_out_nepers": audible_error(found, expected).item(),
            "held_out_spectral": self.spectral_loss(made, segments.audio.flatten(0, 1)[:, None]).item(),
            "held_out_phases": self._phase_error(made, segments.audio.flatten(0, 1)[:, None], context).item(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in _LEARNING}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _LEARNING:
            getattr(self, name).load_state_dict(state[name])

    def export(self, folder: Path) -> None:
        """Write `music_vocoder`."""
        store(self.vocoder, self.config, folder / VOCODER)

    def _step_of_backbone(self, rng: np.random.Generator, step: int, progress: float) -> dict[str, float]:
        """Read the compressed spectra of steady tones off the features of every mel frame."""
        settings = self.settings
        segments = self.recordings.draw(rng, *settings.backbone)
        wanted = [band.of_mel_frames(segments.audio.flatten(0, 1)) for band in self.bands]
        noise = torch.randn(segments.mel.shape, generator=torch_generator(rng)).to(self.device)
        mel = _with_clock(segments.mel + settings.mel_noise * noise).flatten(0, 1)
        with torch.autocast(self.device.type, torch.bfloat16):
            read = self.reading(self.vocoder.backbone(mel).mT).float()  # (2B, T, 2 * bins)
        spectra = torch.view_as_complex(read.unflatten(-1, (-1, 2))).mT.split([band.bins for band in self.bands], 1)
        loss = torch.stack([one.distance(found) for one, found in zip(wanted, spectra, strict=True)]).mean()
        set_learning_rate(self.optimizer, learning_rate(settings.backbone_rate, step, progress))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.vocoder.parameters(), 1.0)
        self.optimizer.step()
        return {"phases": loss.item(), "gradient": norm.item()}

    def _phase_error(self, made: Tensor, real: Tensor, context: int) -> Tensor:
        """Of audio (2B, 1, N) that begins behind so many frames of context."""
        first_sample = context * MEL_HOP_SAMPLES
        errors = [band.wanted(real[:, 0], first_sample).distance(band(made[:, 0])) for band in self.bands]
        return torch.stack(errors).mean()

    def _mel(self, segments: Segments, rng: np.random.Generator) -> Tensor:
        """What the vocoder is to hear of the segments, (B, 2, 128, T)."""
        if self.through is None:
            return _with_clock(segments.mel)
        with torch.no_grad():
            latents = encode(self.through, segments.mel)
            level = self.settings.latent_noise * float(rng.random())
            noise = torch.randn(latents.shape, generator=torch_generator(rng))
            return decode(self.through, latents + level * noise.to(self.device))

    def _make(self, mel: Tensor) -> Tensor:
        """Audio (2B, 1, N) of log-mel with context (B, 2, 128, T)."""
        made: Tensor = self.vocoder(mel.flatten(0, 1), self.context, self.context + self.settings.frames)
        return made

    def _spectral(self, made: Tensor, segments: Segments, real: Tensor) -> dict[str, Tensor]:
        found, expected = (self.log_mel(audio) for audio in (made.view_as(segments.audio), segments.audio))
        return {"mel": mel_loss(found, expected), "spectral": self.spectral_loss(made, real)}


_LEARNING = ("vocoder", "reading", "optimizer")


def _context(vocoder: Vocoder, frames: int) -> int:
    """Frames on either side of so many: at least all that it hears, and in all a whole number of latent frames."""
    return vocoder.halo + -(frames + 2 * vocoder.halo) % MEL_FRAMES_PER_LATENT // 2


def _with_clock(mel: Tensor) -> Tensor:
    """As the autoencoder's decoder gives it."""
    return mel + clock(mel.shape[-1], mel.device)


def started_vocoder(config: dict[str, Any], seed: int) -> Vocoder:
    """A Vocoder with first weights; the backbone's blocks start as small additions."""
    vocoder = build_vocoder(config)
    start(vocoder, seed)
    with torch.no_grad():
        for name, parameter in vocoder.named_parameters():
            if name.endswith(".gamma"):
                parameter.fill_(1 / sum(vocoder.config.depths))
    return vocoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="made by python -m training.nano.codec_data")
    parser.add_argument("--out", type=Path, required=True, help="state, log and, at the end, the weights")
    add_plan(parser)
    parser.add_argument("--through", type=Path, help="a folder that python -m training.nano.autoencoder has written")
    options = parser.parse_args()
    device = pick_device(options.device)
    through = None if options.through is None else load_dcae(options.through).to(device)
    recordings = training_recordings(options.data, device), held_out_recordings(options.data, device)
    (segments, frames), scale = Settings.backbone, options.scale
    settings = Settings(segments=scale * Settings.segments, backbone=(scale * segments, frames))
    trainer = VocoderTrainer(CONFIG, settings, *recordings, through)
    trainer.compile()
    train(trainer, options.out, plan_of(options))


if __name__ == "__main__":
    main()
