"""Train the diffusion transformer, its lyric encoder and the text encoder, by flow matching (arXiv 2210.02747).

Latents x and noise e meet at x_s = (1 - s) x + s e, at timestep 1000 s; the model learns the velocity e - x. The prompt
is dropped from some rows, as zeros, which is what guidance takes for unconditioned.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from acestep_engine.checkpoint import NANO_PATH, TEXT_ENCODER
from acestep_engine.checkpoint import TRANSFORMER as TRANSFORMER_FOLDER
from acestep_engine.lyrics import LyricTokenizer
from acestep_engine.model.config import TransformerConfig
from acestep_engine.model.packing import Context, pack
from acestep_engine.model.transformer import Transformer
from acestep_engine.text_encoder import build_umt5
from training.nano.latents import LatentClips
from training.nano.loop import Plan, learning_rate, set_learning_rate, step_generator, torch_generator, train
from training.nano.lyrics import random_lyrics
from training.nano.tokenizer import save_tokenizer, train_tokenizer
from training.nano.trainable import initialise, make_trainable, published_weights

TRANSFORMER = TransformerConfig(
    num_layers=8,
    num_attention_heads=8,
    attention_head_dim=32,
    mlp_ratio=2.5,
    text_embedding_dim=64,
    speaker_embedding_dim=64,
    lyric_encoder_vocab_size=317,
    lyric_hidden_size=64,
    lyric_encoder_heads=4,
    lyric_encoder_ff_dim=128,
)
UMT5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 12,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "use_cache": False,
}

TOKENS_PER_STEP = 3456  # latent frames
CROPS = (64, 108, 162, 215)  # frames: 6 to 20 s
FROM_THE_START = 0.5  # of the crops: songs begin on a downbeat
UNCONDITIONED = 0.12  # of the rows
WITH_LYRICS = 0.1  # lyrics say nothing about what is heard: they must be accepted, and change little
SIGMA_MEAN, SIGMA_STD = 0.4, 1.0  # of the logit; more noise than evenly, because sampling with shift 3 dwells there
AVERAGING = 0.9995  # of the weights that are kept, a step
RATE, WARMUP_STEPS, MAX_GRADIENT = 1e-3, 500, 1.0
JUDGED_STEPS = 8
SEED = 1
LYRICS = NANO_PATH / "lyric_vocab.json"


class Model(nn.Module):
    """All that is trained here: `transformer` with its lyric encoder, and `text`."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text: UMT5EncoderModel = build_umt5(UMT5Config(vocab_size=vocabulary, **UMT5))
        self.transformer = Transformer(TRANSFORMER)
        initialise(self.transformer)
        make_trainable(self.transformer)


@dataclass(frozen=True, eq=False)
class Rows:
    """What one step learns from: songs of one length with what is said of them."""

    latents: Tensor  # (R, 8, 16, T)
    captions: tuple[str | None, ...]  # None: unconditioned
    lyrics: tuple[str, ...]


def draw_rows(clips: LatentClips, draw: np.random.Generator) -> Rows:
    """What one step learns from."""
    frames = int(draw.choice(CROPS))
    latents, captions, lyrics = [], [], []
    for index in draw.integers(len(clips), size=max(1, TOKENS_PER_STEP // frames)).tolist():
        latents.append(clips.crop(index, frames, 0 if draw.random() < FROM_THE_START else None, draw))
        captions.append(None if draw.random() < UNCONDITIONED else clips.caption(index, draw))
        lyrics.append(random_lyrics(draw) if draw.random() < WITH_LYRICS else "")
    return Rows(torch.from_numpy(np.stack(latents)).float(), tuple(captions), tuple(lyrics))


class Objective:
    """The loss of rows, through the engine's packed forward."""

    def __init__(self, model: Model, tokenizer: PreTrainedTokenizerBase, lyric_tokenizer: LyricTokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._lyrics = lyric_tokenizer

    def loss(self, rows: Rows, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocity, a scalar."""
        latents = rows.latents
        count, frames = latents.shape[0], latents.shape[-1]
        logit = torch.randn(count, generator=generator) * SIGMA_STD + SIGMA_MEAN
        sigma = logit.sigmoid()  # (R,)
        noise = torch.randn(latents.shape, generator=generator)
        share = sigma[:, None, None, None]
        order, shapes = self._contexts(rows, frames)
        noisy = ((1 - share) * latents + share * noise)[order]
        transformer = self._model.transformer
        modulations = [transformer.modulate(one) for one in (1000.0 * sigma[order]).unbind()]
        scales = [[1.0] * context.key_values[0][0].shape[0] for _, context in shapes]
        packing = pack(shapes, scales, transformer.rotation_table(frames + 1, latents.device), torch.float32)
        velocities = torch.stack(transformer(list(noisy), modulations, packing))  # (R, 8, 16, T)
        return F.mse_loss(velocities.float(), (noise - latents)[order])

    def _contexts(self, rows: Rows, frames: int) -> tuple[list[int], list[tuple[int, Context]]]:
        """Rows whose prompts are as long share a context: an order of the rows, and its contexts."""
        texts = self._texts([caption or "" for caption in rows.captions])
        tokens = [self._lyrics.encode(lyrics, "en") for lyrics in rows.lyrics]
        keys = [(len(texts[row]), row if rows.lyrics[row] else -1) for row in range(len(texts))]
        order = sorted(range(len(texts)), key=lambda row: keys[row])
        shapes = []
        for _, group in groupby(order, key=lambda row: keys[row]):
            alike = list(group)
            hidden = torch.stack([texts[row] * (rows.captions[row] is not None) for row in alike])
            known = [rows.captions[row] is not None for row in alike]
            shapes.append((frames, self._context(hidden, tokens[alike[0]].ids, tokens[alike[0]].mask, known[0])))
        return order, shapes

    def _context(self, text: Tensor, ids: Sequence[int], mask: Sequence[int], known: bool) -> Context:
        """Of rows with texts (R, L, C) and the same lyrics, which the unconditioned have as zeros."""
        transformer = self._model.transformer
        tokens, real = torch.tensor(ids) * int(known), torch.tensor(mask)
        if real.any():
            lyrics = transformer.encode_lyrics(tokens[None], real[None])
        else:
            lyrics = text.new_zeros(1, len(ids), transformer.config.dim)
        speaker = text.new_zeros(len(text), transformer.config.speaker_embedding_dim)
        hidden = transformer.join_context(text, speaker, lyrics.expand(len(text), -1, -1))
        context_mask = torch.cat([torch.ones(hidden.shape[1] - len(ids), dtype=torch.bool), real.bool()])
        return transformer.prepare_context(hidden, context_mask)

    def _texts(self, prompts: Sequence[str]) -> list[Tensor]:
        """Hidden states (L, C) of each."""
        tokens = self._tokenizer(list(prompts), return_tensors="pt", padding=True)
        hidden = self._model.text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        lengths = tokens.attention_mask.sum(dim=1).tolist()
        return [row[:length] for row, length in zip(hidden, lengths, strict=True)]


class Average:
    """An exponential average of a model's weights, which sounds better than any of them."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        keep = min(AVERAGING, (1 + step) / (10 + step))  # early weights are forgotten sooner
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value, 1 - keep)


class TransformerTrainer:
    """See `loop.Trainer`."""

    def __init__(self, clips: LatentClips, held_out: LatentClips, tokenizer: PreTrainedTokenizerBase) -> None:
        self._clips, self._held_out, self._tokenizer = clips, held_out, tokenizer
        torch.manual_seed(SEED)
        self._model = Model(len(tokenizer))
        self._average = Average(self._model)
        self._objective = Objective(self._model, tokenizer, LyricTokenizer.load(LYRICS))
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)

    def step(self, step: int, progress: float) -> Mapping[str, float]:
        set_learning_rate(self._optimizer, learning_rate(RATE, step, progress, WARMUP_STEPS))
        draw = step_generator(SEED, step)
        rows = draw_rows(self._clips, draw)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self._objective.loss(rows, torch_generator(draw))
        self._optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT)
        self._optimizer.step()
        self._average.update(self._model, step)
        return {"loss": loss.item(), "gradient": norm.item()}

    @torch.no_grad()
    def judge(self) -> Mapping[str, float]:
        """The averaged weights' loss on pieces that are not learnt from, always the same rows and noise."""
        trained = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.load_state_dict(self._average.weights)
        losses = []
        for index in range(JUDGED_STEPS):
            draw = step_generator(SEED + 1, index)
            with torch.autocast("cpu", torch.bfloat16):
                losses.append(self._objective.loss(draw_rows(self._held_out, draw), torch_generator(draw)).item())
        self._model.load_state_dict(trained)
        return {"held_out_loss": float(np.mean(losses))}

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self._model.state_dict(),
            "average": self._average.weights,
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        self._average.weights = state["average"]
        self._optimizer.load_state_dict(state["optimizer"])

    def export(self, folder: Path) -> None:
        """The averaged weights in float16, with their configs: `ace_step_transformer` and `umt5-base`."""
        weights = {name: value.half().contiguous() for name, value in self._average.weights.items()}
        parts = {
            part: {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(part)}
            for part in ("transformer", "text")
        }
        transformer = published_weights(parts["transformer"], self._model.transformer)
        _write(folder / TRANSFORMER_FOLDER, "diffusion_pytorch_model", transformer, transformer_config(TRANSFORMER))
        text = {name: value for name, value in parts["text"].items() if name != "encoder.embed_tokens.weight"}
        config = {"architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": len(self._tokenizer)}
        _write(folder / TEXT_ENCODER, "model", text, config | UMT5)


def transformer_config(sizes: TransformerConfig) -> dict[str, Any]:
    """As a checkpoint's config.json has it."""
    fields = asdict(sizes)
    height = fields.pop("latent_height")
    return {"_class_name": "ACEStepTransformer2DModel", "max_height": height, "patch_size": [height, 1]} | fields


def _write(folder: Path, name: str, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.contiguous() for key, value in weights.items()}, folder / f"{name}.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="latents, in the folders train and held-out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=Plan.minutes)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    options = parser.parse_args()
    clips = LatentClips(options.data / "train")
    folder = options.out / TEXT_ENCODER
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(train_tokenizer(clips.all_captions()), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = TransformerTrainer(clips, LatentClips(options.data / "held-out"), tokenizer)
    train(trainer, options.out, Plan(steps=options.steps, minutes=options.minutes))


if __name__ == "__main__":
    main()
