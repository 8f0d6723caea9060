"""Train the mel autoencoder: `python -m training.nano.autoencoder --data DIR --out DIR --minutes 40`.

It is diffusers' AutoencoderDC as the engine builds it. It learns to give back the log-mel from latents that have unit
variance in the engine's normalisation, and noise on them: so that diffusion finds them smooth and forgiving. Its
decoder adds the clock that the vocoder goes by (see `phases`).
"""

import argparse
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_dc import DCDownBlock2d, DCUpBlock2d, EfficientViTBlock, ResBlock
from torch import Tensor

from acestep_engine.checkpoint import AUTOENCODER
from acestep_engine.devices import pick_device
from acestep_engine.model.autoencoder import LATENT_SCALE, LATENT_SHIFT, MEL_MAX, MEL_MIN, build_dcae
from acestep_engine.model.json_files import read_config
from acestep_engine.model.loading import load_weights
from training.nano.codec_data import Recordings, held_out_recordings, training_recordings
from training.nano.codec_losses import audible_error, mel_loss
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
from training.nano.phases import clock

# Without shortcuts around the latents their scale is that of two convolutions, and can be set exactly. Without blocks
# at full resolution three quarters of the work are saved at no loss that could be heard.
CONFIG: dict[str, Any] = {
    "in_channels": 2,
    "latent_channels": 8,
    "attention_head_dim": 16,
    "encoder_block_types": ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [16, 48, 96, 128],
    "decoder_block_out_channels": [16, 48, 96, 128],
    "encoder_layers_per_block": [0, 1, 2, 2],
    "decoder_layers_per_block": [0, 2, 2, 2],
    "encoder_qkv_multiscales": [[], [], [], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5]],
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "Conv",
    "encoder_out_shortcut": False,
    "decoder_in_shortcut": False,
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
    "_class_name": "AutoencoderDC",
}
BRANCH_SCALE = 0.2  # of the residual branches, at first


@dataclass(frozen=True)
class Settings:
    """A step's batch is of short or of long segments, in turn: attention must not depend on the length of a song."""

    batches: tuple[tuple[int, int], ...] = ((8, 128), (2, 512))  # (count, mel frames)
    judged: tuple[int, int] = (16, 512)  # (count, mel frames) to be judged by, and to take the latents' scale from
    highest_rate: float = 2e-3
    latent_noise: float = 0.25  # each segment's noise has a standard deviation of zero to this
    unit_weight: float = 2.0  # of the penalty on latents that are not of mean 0 and variance 1
    seed: int = 0


class AutoencoderTrainer:
    """Trains one AutoencoderDC of a config on log-mel."""

    def __init__(
        self, config: dict[str, Any], settings: Settings, recordings: Recordings, held_out: Recordings
    ) -> None:
        self.config, self.settings = config, settings
        self.recordings, self.held_out = recordings, held_out
        self.device = recordings.device
        self.dcae = started_dcae(config, settings.seed).to(self.device)
        self.optimizer = torch.optim.AdamW(self.dcae.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    def step(self, step: int, progress: float) -> dict[str, float]:
        settings = self.settings
        rng = step_generator(settings.seed, step)
        count, frames = settings.batches[step % len(settings.batches)]
        mel = self.recordings.draw(rng, count, frames).mel
        noise_levels = settings.latent_noise * torch.from_numpy(rng.random((count, 1, 1, 1), dtype=np.float32))
        with torch.autocast(self.device.type, torch.bfloat16):
            latents = encode(self.dcae, mel)
            noise = noise_levels * torch.randn(latents.shape, generator=torch_generator(rng))
            found = without_clock(decode(self.dcae, latents + noise.to(self.device)))
        error = mel_loss(found, mel)
        variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
        unit = (mean.square() + (variance.sqrt() - 1).square()).mean()
        set_learning_rate(self.optimizer, learning_rate(settings.highest_rate, step, progress))
        self.optimizer.zero_grad(set_to_none=True)
        (error + settings.unit_weight * unit).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.dcae.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            nepers = audible_error(found, mel)
        return {"loss": error.item(), "nepers": nepers.item(), "unit": unit.item(), "gradient": norm.item()}

    def compile(self) -> None:
        """Fuse what the blocks compute: a third less time for each step, after a minute or two for the first ones."""
        for module in self.dcae.modules():
            if isinstance(module, ResBlock | EfficientViTBlock | DCUpBlock2d | DCDownBlock2d):
                module.compile(dynamic=False)

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """The error on held-out recordings in nepers, as the engine computes it: float32, whole segments, no noise."""
        mel = self.held_out.draw(step_generator(self.settings.seed, 2**40), *self.settings.judged).mel
        latents = encode(self.dcae, mel)
        deviation, mean = torch.std_mean(latents, dim=(0, 2, 3))
        return {
            "held_out_nepers": audible_error(without_clock(decode(self.dcae, latents)), mel).item(),
            "latents_off_mean": mean.abs().amax().item(),
            "latents_off_unit": (deviation - 1).abs().amax().item(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"dcae": self.dcae.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dcae.load_state_dict(state["dcae"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write `music_dcae_f8c8`, its latents scaled to mean 0 and variance 1 per channel over the recordings."""
        mel = self.recordings.draw(step_generator(self.settings.seed, 2**41), *self.settings.judged).mel
        latents = torch.cat([encode(self.dcae, part) for part in mel.split(4)])
        deviation, mean = torch.std_mean(latents, dim=(0, 2, 3))
        dcae = deepcopy(self.dcae)
        standardise(dcae, mean, deviation)
        store(dcae, self.config, folder / AUTOENCODER)


def started_dcae(config: dict[str, Any], seed: int) -> AutoencoderDC:
    """An AutoencoderDC with first weights: quiet branches, latents of unit variance as the engine normalises them."""
    dcae = build_dcae(config)
    start(dcae, seed)
    with torch.no_grad():
        for name, parameter in dcae.named_parameters():
            if name.endswith((".norm.weight", "attn.norm_out.weight")):
                parameter.fill_(BRANCH_SCALE)
        # What the convolutions give and take now is normalised; the latents between them are to be raw.
        unit = torch.ones(dcae.config.latent_channels)
        standardise(dcae, LATENT_SCALE * (0 - LATENT_SHIFT) * unit, LATENT_SCALE * unit)
    return dcae.to(memory_format=torch.channels_last)


def standardise(dcae: AutoencoderDC, mean: Tensor, deviation: Tensor) -> None:
    """Shift and scale latents whose normalised form has this mean and deviation (8,), so that it has 0 and 1.

    The decoder undoes it: what comes out changes only where its first convolution sees beyond the edges.
    """
    taken, given = dcae.encoder.conv_out, dcae.decoder.conv_in
    shift = (mean / LATENT_SCALE + LATENT_SHIFT) - LATENT_SHIFT * deviation  # raw = deviation * new raw + shift
    given.bias += (given.weight.sum((2, 3)) * shift).sum(1)
    given.weight *= deviation[:, None, None]
    taken.bias.copy_((taken.bias - shift) / deviation)
    taken.weight /= deviation[:, None, None, None]


def encode(dcae: AutoencoderDC, mel: Tensor) -> Tensor:
    """Log-mel (B, 2, 128, 8T) to normalised latents (B, 8, 16, T), float32, as the engine's autoencoder does."""
    image = ((mel - MEL_MIN) / (MEL_MAX - MEL_MIN) - 0.5) / 0.5
    raw: Tensor = dcae.encoder(image.contiguous(memory_format=torch.channels_last))
    return (raw.float() - LATENT_SHIFT) * LATENT_SCALE


def decode(dcae: AutoencoderDC, latents: Tensor) -> Tensor:
    """Normalised latents (B, 8, 16, T) to log-mel (B, 2, 128, 8T), float32, as the engine's autoencoder does."""
    raw = latents / LATENT_SCALE + LATENT_SHIFT
    image: Tensor = dcae.decoder(raw.contiguous(memory_format=torch.channels_last))
    return (image.float() * 0.5 + 0.5) * (MEL_MAX - MEL_MIN) + MEL_MIN


def without_clock(mel: Tensor) -> Tensor:
    """What `decode` answers, without the decoder's clock."""
    return mel - clock(mel.shape[-1], mel.device)


def load_dcae(folder: Path) -> AutoencoderDC:
    """The autoencoder of an exported folder, for inference. Raises CheckpointError if it is broken."""
    dcae = build_dcae(read_config(folder / AUTOENCODER))
    load_weights(dcae, folder / AUTOENCODER)
    return dcae.to(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="made by python -m training.nano.codec_data")
    parser.add_argument("--out", type=Path, required=True, help="state, log and, at the end, the weights")
    add_plan(parser)
    options = parser.parse_args()
    device = pick_device(options.device)
    settings = Settings(batches=tuple((options.scale * count, frames) for count, frames in Settings.batches))
    recordings = training_recordings(options.data, device), held_out_recordings(options.data, device)
    trainer = AutoencoderTrainer(CONFIG, settings, *recordings)
    trainer.compile()
    train(trainer, options.out, plan_of(options))


if __name__ == "__main__":
    main()
