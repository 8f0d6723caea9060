"""Tempos as tokens: what lies near each other begins near each other.

Each number is a token, whose embedding would begin at random: what is learnt of 118 bpm would say nothing of 119, which
are both played at 118.1 (see `score.timing`) and begin alike.
"""

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from training.nano.score.timing import tempo_number
from training.nano.words import TEMPO_WORDS

RADIANS_PER_TEMPO = 1.0  # the spread: tempos 7 % apart begin with a cosine of about 0.6, 15 % apart with one of 0.1
SEED = 0


@torch.no_grad()
def order_numbers(embedding: nn.Embedding, tokenizer: PreTrainedTokenizerBase) -> None:
    """Random Fourier features (Rahimi and Recht 2007) of the number of a tempo, for those of one token. In place."""
    features = embedding.embedding_dim // 2
    slopes = RADIANS_PER_TEMPO * torch.randn(features, generator=torch.Generator().manual_seed(SEED))
    for bpm in range(TEMPO_WORDS[0][0].start, TEMPO_WORDS[-1][0].stop):
        first, *others = tokenizer(str(bpm)).input_ids
        if others == [tokenizer.eos_token_id]:
            turned = slopes * tempo_number(bpm)
            embedding.weight[first] = 2**0.5 * torch.cat([turned.cos(), turned.sin()])
