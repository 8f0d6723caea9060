import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import UMT5Config

from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.conditioning import EncodeRequest
from acestep_engine.errors import CheckpointError, ParameterError
from acestep_engine.model.loading import check_names
from acestep_engine.params import ModelSpec
from acestep_engine.text_encoder import LruCache, TextEncoder, build_umt5


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.load(ModelSpec("nano", str(NANO_PATH)), device="cpu")


def forwards(encoder: TextEncoder) -> list[int]:
    """The batch sizes of the forwards of UMT5 from now on."""
    seen: list[int] = []
    encoder.model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return seen


def test_prompts_of_different_lengths_are_encoded_as_if_alone(encoder: TextEncoder) -> None:
    prompts = ["jazz", "slow jazz piano with brushes and bass", "x"]
    together = encoder.encode([EncodeRequest(p, "", weaken=True) for p in prompts])
    for prompt, found in zip(prompts, together, strict=True):
        alone = TextEncoder(encoder.model, encoder.tokenizer, encoder.lyric_tokenizer, cache_entries=0)
        expected = alone.encode([EncodeRequest(prompt, "", weaken=True)])[0]
        for ours, theirs in ((found.text, expected.text), (found.text_weakened, expected.text_weakened)):
            assert ours is not None
            assert theirs is not None
            assert ours.shape == theirs.shape
            assert np.array_equal(ours, theirs)  # to the bit, on a CPU


def test_prompts_that_share_a_forward_are_encoded_as_if_alone(encoder: TextEncoder) -> None:
    """As on a GPU, to rounding."""
    prompts = [("jazz", False), ("slow jazz piano with brushes and bass", True), ("x", False)]
    batches = forwards(encoder)
    together = encoder._encode_together(prompts)
    assert batches == [3]
    for found, expected in zip(together, encoder._encode_prompts(prompts), strict=True):
        assert found.shape == expected.shape
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5


def test_a_prompt_is_encoded_once(encoder: TextEncoder) -> None:
    batches = forwards(encoder)
    encoder.encode(
        [EncodeRequest("once only", "la"), EncodeRequest("once only", "lo"), EncodeRequest("and another", "")]
    )
    encoder.encode([EncodeRequest("once only", "la")])
    assert batches == [1, 1]


def test_a_weakened_prompt_differs(encoder: TextEncoder) -> None:
    found = encoder.encode([EncodeRequest("weak and strong", "", weaken=True)])[0]
    assert found.text_weakened is not None
    assert not np.allclose(found.text, found.text_weakened)


def test_a_long_prompt_is_cut_at_256_tokens(encoder: TextEncoder) -> None:
    assert len(encoder.encode([EncodeRequest("drums " * 400, "")])[0].text) == 256


def test_an_empty_prompt_has_at_least_its_end_token(encoder: TextEncoder) -> None:
    assert len(encoder.encode([EncodeRequest("", "")])[0].text) >= 1


def test_a_tokenizer_that_does_not_fit_the_model_is_refused_before_the_device_is_asked(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU would not answer again."""
    monkeypatch.setattr(encoder.model.config, "vocab_size", 7)
    with pytest.raises(CheckpointError, match="its model knows 7"):
        encoder.encode([EncodeRequest("words that were not asked for yet", "")])


def test_lyrics_of_endless_numbers_are_refused_with_both_counts(encoder: TextEncoder) -> None:
    with pytest.raises(ParameterError, match=r"lyrics: they are [0-9]+ tokens .* the limit is 8192"):
        encoder.encode([EncodeRequest("x", "777777777 " * 1000)])


def test_no_lyrics_are_one_masked_token(encoder: TextEncoder) -> None:
    found = encoder.encode([EncodeRequest("x", "")])[0]
    assert found.lyric_ids.tolist() == [0]
    assert found.lyric_mask.tolist() == [0]


def test_the_least_recently_used_entry_leaves_the_cache() -> None:
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


def test_the_published_checkpoint_fits_strictly(golden: Path) -> None:
    spec = json.loads((golden / "manifest-v1-3.5b.json").read_text())["umt5-base"]
    with torch.device("meta"):
        model = build_umt5(UMT5Config.from_dict(spec["config"]))
    check_names(model, spec["tensors"])
