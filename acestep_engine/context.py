"""From a prompt's hidden states and lyric tokens to what the frames of one request attend to."""

import hashlib
from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from acestep_engine.caching import LruCache
from acestep_engine.conditioning import Conditioning, HiddenStates
from acestep_engine.model.packing import Context
from acestep_engine.model.transformer import Transformer
from acestep_engine.params import GenerationParams

ERG_LYRIC_QUERY_SCALE = 0.01
KEPT_LYRICS = 64  # a few MB each at full size


class ContextBuilder:
    """Builds contexts, and skips what it has built: lyrics encoded lately, and contexts that a live request holds."""

    def __init__(self, transformer: Transformer, device: torch.device, dtype: torch.dtype) -> None:
        self._transformer = transformer
        self._device = device
        self._dtype = dtype
        self._lyrics: LruCache[tuple[bytes, bytes, float], Tensor] = LruCache(KEPT_LYRICS)
        self._contexts: WeakValueDictionary[bytes, Context] = WeakValueDictionary()

    def build(self, params: GenerationParams, conditioning: Conditioning) -> Context:
        """The rows a request is guided between: conditioned, unconditioned, and text only for double guidance.

        Unconditioned is nothing at all, or with `use_erg_lyric` the same prompt and lyrics weakly attended to.
        """
        key = _key_of(params, conditioning)
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = self._build(params, conditioning)
        return context

    def _build(self, params: GenerationParams, conditioning: Conditioning) -> Context:
        ids, mask = torch.tensor(conditioning.lyric_ids), torch.tensor(conditioning.lyric_mask)  # (N,)
        weak = params.use_erg_lyric
        texts: list[HiddenStates | None] = [conditioning.text]
        lyrics = [(ids, 1.0)]
        if params.guided:
            texts.append(conditioning.text_weakened if weak else None)
            if params.double_guided:
                texts.append(conditioning.text)
            without = (ids, ERG_LYRIC_QUERY_SCALE) if weak else (torch.zeros_like(ids), 1.0)
            lyrics += [without] * (len(texts) - 1)
        model = self._transformer
        hidden = model.join_context(
            torch.stack([self._text(text, conditioning.text) for text in texts]),
            torch.zeros(len(texts), model.config.speaker_embedding_dim, device=self._device, dtype=self._dtype),
            self._encode_lyrics(lyrics, mask),
        )
        real = torch.cat([torch.ones(hidden.shape[1] - len(mask), dtype=torch.bool), mask.bool()])
        return model.prepare_context(hidden, real)

    def _text(self, text: HiddenStates | None, like: HiddenStates) -> Tensor:
        """Hidden states (L, C) of a prompt; zeros for none."""
        states = torch.zeros(like.shape) if text is None else torch.tensor(text)
        return states.to(self._device, self._dtype)

    def _encode_lyrics(self, wanted: Sequence[tuple[Tensor, float]], mask: Tensor) -> Tensor:
        """Hidden states (R, N, dim) of token ids (N,), each with the scale of its attention's queries."""
        keys = [(ids.numpy().tobytes(), mask.numpy().tobytes(), scale) for ids, scale in wanted]
        known = {key: states for key in keys if (states := self._lyrics.get(key)) is not None}
        missing = {key: one for key, one in zip(keys, wanted, strict=True) if key not in known}
        if missing:
            scales = [scale for _, scale in missing.values()]
            encoded = self._transformer.encode_lyrics(
                torch.stack([ids for ids, _ in missing.values()]).to(self._device),
                mask.expand(len(missing), -1),
                None if all(s == 1.0 for s in scales) else torch.tensor(scales, device=self._device, dtype=self._dtype),
            )
            for key, states in zip(missing, encoded, strict=True):
                known[key] = states.clone()  # not a view that keeps its neighbours
                self._lyrics.put(key, known[key])
        return torch.stack([known[key] for key in keys])


def _key_of(params: GenerationParams, conditioning: Conditioning) -> bytes:
    """Equal for requests whose contexts are equal."""
    flags = params.use_erg_lyric, params.guided, params.double_guided, conditioning.text_weakened is None
    digest = hashlib.blake2b(repr((flags, conditioning.text.shape)).encode())
    arrays = (conditioning.text, conditioning.text_weakened, conditioning.lyric_ids, conditioning.lyric_mask)
    for array in arrays:
        if array is not None:
            digest.update(array.tobytes())
    return digest.digest()
