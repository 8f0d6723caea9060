"""Train the diffusion transformer, its lyric encoder and the text encoder, by flow matching (arXiv 2210.02747).

Latents x and noise e meet at x_s = (1 - s) x + s e, at timestep 1000 s; the model learns the velocity e - x. The prompt
is dropped from some rows, as zeros, which is what guidance takes for unconditioned.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from acestep_engine.checkpoint import NANO_PATH, TEXT_ENCODER
from acestep_engine.checkpoint import TRANSFORMER as TRANSFORMER_FOLDER
from acestep_engine.devices import pick_device
from acestep_engine.lyrics import LyricTokenizer
from acestep_engine.model.config import TransformerConfig
from acestep_engine.model.packing import Context, pack
from acestep_engine.model.transformer import Transformer
from acestep_engine.text_encoder import build_umt5
from training.nano.latents import LatentClips, stay_with
from training.nano.loop import (
    ALONE,
    add_plan,
    learning_rate,
    plan_of,
    set_learning_rate,
    step_generator,
    torch_generator,
    train,
)
from training.nano.numbers import order_numbers
from training.nano.optimizers import BlockOptimizer
from training.nano.readings import READ_BLOCK, Readings
from training.nano.rows import TOKENS_PER_STEP, Rows, RowSource
from training.nano.score.timing import TEMPOS_PER_OCTAVE
from training.nano.team import Team, join_team
from training.nano.tokenizer import save_tokenizer, train_tokenizer
from training.nano.trainable import compile_parts, initialise, make_trainable, published_weights

HEADS, HEAD_DIM = 4, 64
# Of the frequencies of the rotary positions each is 2^(1 / 10) times the next: in a bar of any tempo one turns once,
# others twice and four times (see `score.timing`). The published base of 1,000,000 is for four minutes.
ROPE_THETA = 2.0 ** (HEAD_DIM / 2 / TEMPOS_PER_OCTAVE)
TRANSFORMER = TransformerConfig(
    num_layers=8,
    num_attention_heads=HEADS,
    attention_head_dim=HEAD_DIM,
    mlp_ratio=2.25,
    rope_theta=ROPE_THETA,
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

# Of the logit. More noise than evenly: sampling with shift 3 dwells there, and a wrong tempo costs most there.
SIGMA_MEAN, SIGMA_STD = 1.4, 1.2
AVERAGING = 0.9995  # of the weights that are kept, a step
RATE, WARMUP_STEPS, MAX_GRADIENT = 1e-3, 500, 1.0
LOSS_WEIGHTS = {"velocity": 1.0, "place": 2.0, "chord": 2.0}
JUDGED_STEPS = 8
SEED = 1
LYRICS = NANO_PATH / "lyric_vocab.json"


class Model(nn.Module):
    """All that is trained here: `transformer` with its lyric encoder, `text`, and `readings`."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text: UMT5EncoderModel = build_umt5(UMT5Config(vocab_size=vocabulary, **UMT5))
        self.transformer = Transformer(TRANSFORMER)
        initialise(self.transformer)
        make_trainable(self.transformer)
        self.readings = Readings(self.transformer.transformer_blocks[READ_BLOCK - 1], TRANSFORMER.dim)


class Objective:
    """The loss of rows, through the engine's packed forward."""

    def __init__(self, model: Model, lyric_tokenizer: LyricTokenizer) -> None:
        self._model = model
        self._lyrics = lyric_tokenizer

    def losses(self, rows: Rows, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars, by the names of `LOSS_WEIGHTS`: the velocity's mean squared error, and those of `Readings`."""
        latents, transformer = rows.latents, self._model.transformer
        count, frames = latents.shape[0], latents.shape[-1]
        logit = torch.randn(count, generator=generator) * SIGMA_STD + SIGMA_MEAN
        sigma = logit.sigmoid().to(latents.device)  # (R,)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        share = sigma[:, None, None, None]
        noisy = (1 - share) * latents + share * noise
        table = transformer.rotation_table(frames + 1, latents.device)
        packing = pack([(frames, self._context(rows))], [[1.0] * count], table, torch.float32)
        velocities = torch.stack(transformer(noisy.unbind(), transformer.modulate_each(1000.0 * sigma), packing))
        velocity = F.mse_loss(velocities.float(), noise - latents)
        place, chord = self._model.readings.errors(rows.bars, rows.chords)
        return {"velocity": velocity, "place": place, "chord": chord}

    def _context(self, rows: Rows) -> Context:
        """What all rows attend to; the unconditioned have prompts and lyrics as zeros."""
        transformer, known = self._model.transformer, rows.conditioned
        text = self._model.text(input_ids=rows.prompts).last_hidden_state * known[:, None, None]  # (R, L, C)
        tokens = self._lyrics.encode(rows.lyrics, "en")
        ids, real = torch.tensor(tokens.ids, device=text.device), torch.tensor(tokens.mask, device=text.device)
        if real.any():
            unknown_and_known = torch.stack([torch.zeros_like(ids), ids])
            lyrics = transformer.encode_lyrics(unknown_and_known, real.expand(2, -1))[known.long()]
        else:
            lyrics = text.new_zeros(len(text), len(ids), transformer.config.dim)
        speaker = text.new_zeros(len(text), transformer.config.speaker_embedding_dim)
        hidden = transformer.join_context(text, speaker, lyrics)
        mask = torch.cat([real.new_ones(hidden.shape[1] - len(ids)), real]).bool()
        return transformer.prepare_context(hidden, mask)


class Average:
    """An exponential average of a model's weights."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        keep = min(AVERAGING, (1 + step) / (10 + step))  # early weights are forgotten sooner
        for name, value in model.state_dict().items():
            self.weights[name].lerp_(value, 1 - keep)


class TransformerTrainer:
    """See `loop.Trainer`."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rows: RowSource, held_out: RowSource, team: Team = ALONE
    ) -> None:
        self._rows, self._held_out, self._team = rows, held_out, team
        self._tokens = len(tokenizer)
        torch.manual_seed(SEED)
        self._model = Model(len(tokenizer)).to(rows.device)
        order_numbers(self._model.text.shared, tokenizer)
        self._average = Average(self._model)
        self._objective = Objective(self._model, LyricTokenizer.load(LYRICS))
        self._optimizer = BlockOptimizer(self._model, RATE)

    def step(self, step: int, progress: float) -> Mapping[str, float]:
        set_learning_rate(self._optimizer, learning_rate(RATE, step, progress, WARMUP_STEPS))
        draw = step_generator(SEED, self._team.share(step))
        rows = self._rows.draw(draw)
        with torch.autocast(self._rows.device.type, torch.bfloat16):
            losses = self._objective.losses(rows, torch_generator(draw))
        self._optimizer.zero_grad()
        torch.stack([weight * losses[name] for name, weight in LOSS_WEIGHTS.items()]).sum().backward()
        self._team.average_gradients(self._model.parameters())
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT)
        self._optimizer.step()
        self._average.update(self._model, step)
        return {name: value.item() for name, value in losses.items()} | {"gradient": norm.item()}

    def compile(self) -> None:
        """Fuse what lies between the attentions: less time for each step, after a minute or two for the first ones."""
        compile_parts(self._model.transformer)

    @torch.no_grad()
    def judge(self) -> Mapping[str, float]:
        """The averaged weights' losses on pieces that are not learnt from, always the same rows and noise."""
        trained = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.load_state_dict(self._average.weights)
        losses = []
        for index in range(JUDGED_STEPS):
            draw = step_generator(SEED + 1, index)
            with torch.autocast(self._rows.device.type, torch.bfloat16):
                losses.append(self._objective.losses(self._held_out.draw(draw), torch_generator(draw)))
        self._model.load_state_dict(trained)
        return {f"held_out_{name}": fmean(float(one[name]) for one in losses) for name in LOSS_WEIGHTS}

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self._model.state_dict(),
            "average": self._average.weights,
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        for name, value in state["average"].items():
            self._average.weights[name].copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])

    def export(self, folder: Path) -> None:
        """The averaged weights in float16, with their configs: `ace_step_transformer` and `umt5-base`."""
        weights = {name: value.half().cpu().contiguous() for name, value in self._average.weights.items()}
        parts = {
            part: {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(part)}
            for part in ("transformer", "text")
        }
        transformer = published_weights(parts["transformer"], self._model.transformer)
        _write(folder / TRANSFORMER_FOLDER, "diffusion_pytorch_model", transformer, transformer_config(TRANSFORMER))
        text = {name: value for name, value in parts["text"].items() if name != "encoder.embed_tokens.weight"}
        config = {"architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": self._tokens}
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
    add_plan(parser)
    options = parser.parse_args()
    clips, held_out = LatentClips(options.data / "train"), LatentClips(options.data / "held-out")
    team = join_team()
    folder = options.out / TEXT_ENCODER
    if team.rank == 0:
        stay_with(clips.autoencoder, options.out)
        if not (folder / "tokenizer.json").exists():
            save_tokenizer(train_tokenizer(clips.all_captions()), folder)
    team.follow_first(0.0)  # until the tokenizer is there
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = pick_device(options.device)
    rows = RowSource(clips, tokenizer, device, options.scale * TOKENS_PER_STEP)
    trainer = TransformerTrainer(tokenizer, rows, RowSource(held_out, tokenizer, device), team)
    trainer.compile()
    train(trainer, options.out, plan_of(options), team)


if __name__ == "__main__":
    main()
