"""The sizes of a transformer, and which of its published tensors generation needs. No torch: checks need only these."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from acestep_engine.checkpoint import TRANSFORMER
from acestep_engine.errors import CheckpointError
from acestep_engine.model.json_files import read_config

TIMESTEP_CHANNELS = 256


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes, as in `ace_step_transformer/config.json`. Published configs leave the lyric encoder's out."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    mlp_ratio: float
    text_embedding_dim: int
    in_channels: int = 8
    out_channels: int = 8
    latent_height: int = 16
    speaker_embedding_dim: int = 512
    rope_theta: float = 1_000_000.0
    lyric_encoder_vocab_size: int = 6693
    lyric_hidden_size: int = 1024
    lyric_encoder_heads: int = 16
    lyric_encoder_ff_dim: int = 4096
    lyric_encoder_layers: int = 6

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def patch_channels(self) -> int:
        """Channels between the two convolutions of the patch embedding."""
        return self.in_channels * 256

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Raises CheckpointError for a missing size or a patch other than one column of latents."""
        if list(config.get("patch_size", [16, 1])) != [config.get("max_height", 16), 1]:
            raise CheckpointError(f"patch_size {config['patch_size']} is not one whole column of latents")
        fields = {k: v for k, v in config.items() if k in cls.__dataclass_fields__}
        fields["latent_height"] = config.get("max_height", 16)
        try:
            return cls(**fields)
        except TypeError as error:
            raise CheckpointError(f"ace_step_transformer/config.json lacks a size: {error}") from None


def read_transformer_config(checkpoint: Path) -> TransformerConfig:
    """Of a checkpoint folder. Raises CheckpointError."""
    return TransformerConfig.from_json(read_config(checkpoint / TRANSFORMER))


def unused_in_generation(name: str) -> bool:
    """Tensors of a published checkpoint that only its training used: a fifth of all parameters."""
    return name.startswith("projectors.") or ".cross_attn.add_" in name or ".cross_attn.to_add_out." in name
