"""What the tests of the transformer's training are told of pieces, and a tokenizer of it."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training.nano.tokenizer import save_tokenizer, train_tokenizer


def tokenizer_of(captions: Sequence[Sequence[str]], folder: Path) -> PreTrainedTokenizerBase:
    """Kept in `folder`; every word of the captions is common enough to be one token."""
    save_tokenizer(train_tokenizer(text for texts in captions for text in 9 * list(texts)), folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer
