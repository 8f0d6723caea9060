"""From a prompt's hidden states and lyric tokens to what the frames of one request attend to."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy.typing as npt
import torch
from torch import Tensor

from acestep_engine.caching import LruCache
from acestep_engine.conditioning import Conditioning, HiddenStates
from acestep_engine.errors import ParameterError
from acestep_engine.model.low_rank import AdapterKey, WeightedAdapter, key_of
from acestep_engine.model.packing import Context
from acestep_engine.model.transformer import Transformer
from acestep_engine.params import GenerationParams
from acestep_engine.requests import Inputs

ERG_LYRIC_QUERY_SCALE = 0.01
KEPT_LYRICS = 64  # a few MB each at full size, up to 42 MB
KEPT_LYRIC_BYTES = 2**28


class ContextBuilder:
    """Builds contexts, and skips what it has built: lyrics encoded lately, and contexts that a live request holds."""

    def __init__(self, transformer: Transformer, device: torch.device, dtype: torch.dtype) -> None:
        self._transformer = transformer
        self._device = device
        self._dtype = dtype
        self._lyrics: LruCache[tuple[bytes, bytes, float, AdapterKey], Tensor] = LruCache(
            KEPT_LYRICS, KEPT_LYRIC_BYTES, lambda states: states.nbytes
        )
        self._contexts: WeakValueDictionary[bytes, Context] = WeakValueDictionary()

    def free(self) -> None:
        """Let go of the encoded lyrics: the memory is needed. Contexts are held by their requests only."""
        self._lyrics.clear()

    def of_request(self, params: GenerationParams, inputs: Inputs, adapter: WeightedAdapter | None) -> list[Context]:
        """Those that the queries of the request's task count. Raises ParameterError."""
        if params.task != "edit":
            return [self.build(params, inputs.conditioning, adapter)]
        if inputs.target is None:
            raise ParameterError("edit_target_prompt", "is missing")
        kinds = (True, False) if params.guided else (True,)
        wanted = itertools.product(kinds, (inputs.conditioning, inputs.target))
        return [self.build_apart(one, adapter, conditioned=conditioned) for conditioned, one in wanted]

    def build(
        self, params: GenerationParams, conditioning: Conditioning, adapter: WeightedAdapter | None = None
    ) -> Context:
        """The rows a request is guided between: conditioned, unconditioned, and text only for double guidance.

        Unconditioned is nothing at all, or with `use_erg_lyric` the same prompt and lyrics weakly attended to.
        """
        key = _key_of(params, conditioning, adapter)
        return self._known(key, lambda: self._build(params, conditioning, adapter))

    def build_apart(
        self, conditioning: Conditioning, adapter: WeightedAdapter | None = None, *, conditioned: bool
    ) -> Context:
        """One row, for edit: of prompt and lyrics, or of nothing: zeros as long as the prompt, and no lyrics."""
        key = _key_of_one(conditioning, adapter, conditioned=conditioned)
        return self._known(key, lambda: self._build_apart(conditioning, adapter, conditioned=conditioned))

    def _known(self, key: bytes, build: Callable[[], Context]) -> Context:
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = build()
        return context

    def _build_apart(
        self, conditioning: Conditioning, adapter: WeightedAdapter | None, *, conditioned: bool
    ) -> Context:
        ids, mask = torch.tensor(conditioning.lyric_ids), torch.tensor(conditioning.lyric_mask)
        if not conditioned:  # all of the lyrics is left out; one masked token has the shape of none
            ids, mask = torch.zeros_like(ids[:1]), torch.zeros_like(mask[:1])
        text = self._text(conditioning.text if conditioned else None, conditioning.text)
        return self._prepare(text[None], [(ids, 1.0)], mask, adapter)

    def _build(self, params: GenerationParams, conditioning: Conditioning, adapter: WeightedAdapter | None) -> Context:
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
        states = torch.stack([self._text(text, conditioning.text) for text in texts])
        return self._prepare(states, lyrics, mask, adapter)

    def _prepare(
        self, texts: Tensor, lyrics: Sequence[tuple[Tensor, float]], mask: Tensor, adapter: WeightedAdapter | None
    ) -> Context:
        """The context of rows with texts (R, L, C) and lyrics as `_encode_lyrics` takes them, real where `mask` is."""
        model = self._transformer
        speaker = torch.zeros(len(texts), model.config.speaker_embedding_dim, device=self._device, dtype=self._dtype)
        hidden = model.join_context(texts, speaker, self._encode_lyrics(lyrics, mask, adapter), adapter)
        real = torch.cat([torch.ones(hidden.shape[1] - len(mask), dtype=torch.bool), mask.bool()])
        return model.prepare_context(hidden, real, adapter)

    def _text(self, text: HiddenStates | None, like: HiddenStates) -> Tensor:
        """Hidden states (L, C) of a prompt; zeros for none."""
        states = torch.zeros(like.shape) if text is None else torch.tensor(text)
        return states.to(self._device, self._dtype)

    def _encode_lyrics(
        self, wanted: Sequence[tuple[Tensor, float]], mask: Tensor, adapter: WeightedAdapter | None
    ) -> Tensor:
        """Hidden states (R, N, dim) of token ids (N,), each with the scale of its attention's queries.

        Raises IndexError for a token that the model does not have.
        """
        vocabulary = self._transformer.config.lyric_encoder_vocab_size
        for ids, _ in wanted:  # on a GPU a wrong index costs the whole process its device
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
                raise IndexError(f"the lyrics have token {int(ids.max())}, the model knows {vocabulary}")
        masked, under = mask.numpy().tobytes(), key_of(adapter)
        keys = [(ids.numpy().tobytes(), masked, scale, under) for ids, scale in wanted]
        known = {key: states for key in keys if (states := self._lyrics.get(key)) is not None}
        for key, (ids, scale) in zip(keys, wanted, strict=True):
            if key not in known:  # row by row: what is kept does not depend on what was encoded beside it
                scales = None if scale == 1.0 else torch.tensor([scale], device=self._device, dtype=self._dtype)
                (states,) = self._transformer.encode_lyrics(ids[None].to(self._device), mask[None], scales, adapter)
                known[key] = states
                self._lyrics.put(key, states)
        return torch.stack([known[key] for key in keys])


def _key_of(params: GenerationParams, conditioning: Conditioning, adapter: WeightedAdapter | None) -> bytes:
    """Equal for requests whose contexts are equal."""
    flags = params.use_erg_lyric, params.guided, params.double_guided, conditioning.text_weakened is None
    arrays = (conditioning.text, conditioning.text_weakened, conditioning.lyric_ids, conditioning.lyric_mask)
    return _digest((flags, conditioning.text.shape, key_of(adapter)), arrays)


def _key_of_one(conditioning: Conditioning, adapter: WeightedAdapter | None, *, conditioned: bool) -> bytes:
    """Equal for rows that are equal; never that of a request's context."""
    what = conditioning.text.shape, key_of(adapter)
    if not conditioned:
        return _digest(("nothing", *what), ())
    return _digest(("apart", *what), (conditioning.text, conditioning.lyric_ids, conditioning.lyric_mask))


def _digest(what: object, arrays: Sequence[npt.NDArray[Any] | None]) -> bytes:
    digest = hashlib.blake2b(repr(what).encode())
    for array in arrays:
        if array is not None:
            digest.update(array.tobytes())
    return digest.digest()
