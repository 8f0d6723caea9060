"""Prompt and lyrics to what the transformer is conditioned on: UMT5 hidden states and lyric tokens."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from acestep_engine.caching import LruCache
from acestep_engine.checkpoint import LYRIC_VOCABULARY, TEXT_ENCODER, check_folder
from acestep_engine.conditioning import Conditioning, EncodeRequest, HiddenStates, TokenIds
from acestep_engine.devices import pick_device, pick_dtype
from acestep_engine.errors import CheckpointError, ParameterError
from acestep_engine.lyrics import MAX_LYRIC_TOKENS, LyricTokenizer
from acestep_engine.model.json_files import read_config
from acestep_engine.model.loading import load_weights
from acestep_engine.params import ModelSpec

KEPT_BYTES = 2**28  # of prompts that were encoded lately, and of lyrics
MAX_PROMPT_TOKENS = 256

# Entropy-rectifying guidance weakens the queries of these layers, as published.
ERG_LAYERS = range(8, 10)
ERG_QUERY_SCALE = 0.01

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ScaledLinear(nn.Linear):
    """A linear layer whose output is scaled row by row of the batch; `row_scale` (B,) or None."""

    row_scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.row_scale is None else out * self.row_scale[:, None, None]


def build_umt5(config: UMT5Config) -> UMT5EncoderModel:
    """UMT5 without weights, whose attention can be weakened row by row in the layers of `ERG_LAYERS`."""
    model = UMT5EncoderModel(config)
    for i in range(ERG_LAYERS.start, min(ERG_LAYERS.stop, config.num_layers)):
        attention = model.encoder.block[i].layer[0].SelfAttention
        attention.q = ScaledLinear(attention.q.in_features, attention.q.out_features, bias=False)
    return model


class TextEncoder:
    """UMT5 with its tokenizer, and the lyric tokenizer. Use it from one thread at a time."""

    def __init__(
        self,
        model: UMT5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        lyric_tokenizer: LyricTokenizer,
        cache_entries: int = 512,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.lyric_tokenizer = lyric_tokenizer
        self._prompts: LruCache[tuple[str, bool], HiddenStates] = LruCache(
            2 * cache_entries, KEPT_BYTES, lambda states: states.nbytes
        )
        self._lyrics: LruCache[tuple[str, str | None], tuple[TokenIds, TokenIds]] = LruCache(
            cache_entries, KEPT_BYTES, lambda tokens: tokens[0].nbytes + tokens[1].nbytes
        )

    @classmethod
    def load(cls, spec: ModelSpec, device: str | None = None, cache_entries: int = 512) -> Self:
        """From a checkpoint folder. Raises CheckpointError naming the file or tensor that does not fit."""
        root = Path(spec.path)
        check_folder(root)
        folder = root / TEXT_ENCODER
        target = pick_device(device)
        config = UMT5Config.from_dict(read_config(folder))
        with torch.device("meta"):
            model = build_umt5(config)
        load_weights(model, folder, device=target, dtype=pick_dtype(spec.precision, target))
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{TEXT_ENCODER} has no usable tokenizer: {error}") from None
        return cls(model, tokenizer, LyricTokenizer.load(root / LYRIC_VOCABULARY), cache_entries)

    def encode(self, requests: Sequence[EncodeRequest]) -> list[Conditioning]:
        """One conditioning per request, in order. Prompts not seen lately share one forward of UMT5.

        Raises ParameterError if a line of the lyrics asks for an unknown language, or they are over MAX_LYRIC_TOKENS.
        """
        wanted = [(r.prompt, False) for r in requests] + [(r.prompt, True) for r in requests if r.weaken]
        hidden = self._cached(self._prompts, list(dict.fromkeys(wanted)), self._encode_prompts)
        conditionings = []
        for r in requests:
            lyric_ids, lyric_mask = self._encode_lyrics(r.lyrics, r.vocal_language)
            weakened = hidden[r.prompt, True] if r.weaken else None
            conditionings.append(Conditioning(hidden[r.prompt, False], weakened, lyric_ids, lyric_mask))
        return conditionings

    @staticmethod
    def _cached(cache: LruCache[K, V], keys: Sequence[K], compute: Callable[[Sequence[K]], Sequence[V]]) -> dict[K, V]:
        found = {key: value for key in keys if (value := cache.get(key)) is not None}
        missing = [key for key in keys if key not in found]
        for key, value in zip(missing, compute(missing) if missing else (), strict=True):
            cache.put(key, value)
            found[key] = value
        return found

    @torch.inference_mode()
    def _encode_prompts(self, prompts: Sequence[tuple[str, bool]]) -> list[HiddenStates]:
        """Hidden states (L, C) of each (prompt, weakened)."""
        if self.model.device.type == "cpu":  # one by one: what a prompt's batch holds would change its last bits
            return [states for prompt in prompts for states in self._encode_together([prompt])]
        return self._encode_together(prompts)

    def _encode_together(self, prompts: Sequence[tuple[str, bool]]) -> list[HiddenStates]:
        tokens = self.tokenizer(
            [prompt for prompt, _ in prompts],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=MAX_PROMPT_TOKENS,
        )
        known, largest = self.model.config.vocab_size, int(tokens.input_ids.max())
        if largest >= known:  # on a GPU a wrong index costs the whole process its device
            raise CheckpointError(f"{TEXT_ENCODER}'s tokenizer has token {largest}, its model knows {known}")
        tokens = tokens.to(self.model.device)
        scale = torch.tensor([ERG_QUERY_SCALE if weak else 1.0 for _, weak in prompts], dtype=self.model.dtype)
        weakenable = [m for m in self.model.modules() if isinstance(m, ScaledLinear)]
        for layer in weakenable:
            layer.row_scale = scale.to(self.model.device)
        states = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        lengths = tokens.attention_mask.sum(dim=1).tolist()
        return [row[:length].float().cpu().numpy() for row, length in zip(states, lengths, strict=True)]

    def _encode_lyrics(self, lyrics: str, language: str | None) -> tuple[TokenIds, TokenIds]:
        key = (lyrics, language)
        found = self._lyrics.get(key)
        if found is None:
            tokens = self.lyric_tokenizer.encode(lyrics, language)
            if len(tokens.ids) > MAX_LYRIC_TOKENS:
                problem = (
                    f"they are {len(tokens.ids)} tokens once numbers are spelled out, the limit is {MAX_LYRIC_TOKENS}"
                )
                raise ParameterError("lyrics", problem)
            found = np.array(tokens.ids, dtype=np.int64), np.array(tokens.mask, dtype=np.int64)
            self._lyrics.put(key, found)
        return found
