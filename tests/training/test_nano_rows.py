"""What a step of the transformer's training draws, and that its loss learns from all of it."""

import json

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from acestep_engine.lyrics import LyricTokenizer
from tests.training.captions import tokenizer_of
from training.nano.latents import LatentClips
from training.nano.loop import step_generator
from training.nano.rows import CROPS, TOKENS_PER_STEP, Rows, RowSource
from training.nano.score.harmony import PITCH_CLASSES
from training.nano.score.timing import bar_frames
from training.nano.transformer import LYRICS, Model, Objective

CAPTIONS = [["piano, 90 bpm", "piano"], ["drums, 120 bpm", "a funk piece for guitar"]]
BPM = (90, 120)
C_MAJOR, A_MINOR = (0, 4, 7), (9, 0, 4)
PIECE_FRAMES = 216


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return tokenizer_of(CAPTIONS, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> RowSource:
    folder = tmp_path_factory.mktemp("latents")
    pieces = np.arange(2)[:, None, None, None] + np.arange(PIECE_FRAMES) / 1024
    np.save(folder / "0.npy", np.broadcast_to(pieces, (2, 8, 16, PIECE_FRAMES)).astype(np.float16))
    notes = [
        {"bpm": bpm, "chords": 6 * [C_MAJOR, A_MINOR], "captions": texts}
        for bpm, texts in zip(BPM, CAPTIONS, strict=True)
    ]
    (folder / "0.json").write_text(json.dumps(notes))
    return RowSource(LatentClips(folder), tokenizer)


def test_rows_of_a_step_are_as_long_as_each_other_and_so_are_their_prompts(
    source: RowSource, tokenizer: PreTrainedTokenizerBase
) -> None:
    told = {text: piece for piece, texts in enumerate(CAPTIONS) for text in texts}
    for step in range(12):
        rows = source.draw(step_generator(0, step))
        count, _, _, frames = rows.latents.shape
        assert frames in CROPS
        assert count == TOKENS_PER_STEP // frames
        for song, prompt in zip(rows.latents, rows.prompts, strict=True):
            text = tokenizer.decode(prompt, skip_special_tokens=True)
            assert int(song[0, 0, 0]) == told[text]


def test_every_frame_is_told_its_bar_and_its_chord(source: RowSource) -> None:
    firsts = set()
    for step in range(60):
        rows = source.draw(step_generator(0, step))
        for song, bars, chords in zip(rows.latents[:, 0, 0], rows.bars, rows.chords, strict=True):
            first, per_frame = int(song[0] % 1 * 1024), 1 / bar_frames(BPM[int(song[0])])
            firsts.add(first)
            torch.testing.assert_close(bars, (first + torch.arange(len(bars))) * per_frame)
            for bar, chord in zip(bars, chords, strict=True):
                tones = A_MINOR if int(bar) % 2 else C_MAJOR
                assert chord.nonzero().flatten().tolist() == sorted(tones)
    assert 0 in firsts
    assert len(firsts) > 1


def test_a_step_is_drawn_again_alike(source: RowSource) -> None:
    one, two = (source.draw(step_generator(0, 5)) for _ in range(2))
    assert torch.equal(one.latents, two.latents)
    assert torch.equal(one.conditioned, two.conditioned)


@pytest.mark.parametrize("lyrics", ["", "[verse]\nla mo ri"])
def test_what_is_unconditioned_teaches_nothing_about_prompts_or_lyrics(
    lyrics: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = Model(len(tokenizer))
    with torch.no_grad():  # they begin as nothing, through which no gradient would come
        for block in model.transformer.transformer_blocks:
            torch.nn.init.normal_(block.cross_attn.to_out[0].weight)
        torch.nn.init.normal_(model.transformer.final_layer.linear.weight)
    prompts = torch.tensor(tokenizer(["piano", "piano"]).input_ids)
    place = torch.zeros(2, 12), torch.zeros(2, 12, PITCH_CLASSES)
    objective = Objective(model, LyricTokenizer.load(LYRICS))
    for known in (False, True):
        model.zero_grad()
        rows = Rows(torch.randn(2, 8, 16, 12), *place, prompts, torch.tensor([known, known]), lyrics)
        losses = objective.losses(rows, torch.Generator().manual_seed(0))
        torch.stack(list(losses.values())).sum().backward()
        learnt = model.text.get_input_embeddings().weight.grad
        assert learnt is not None
        assert bool(learnt.any()) == known
        letters = model.transformer.lyric_embs.weight.grad
        assert (letters is not None and bool(letters[1:].any())) == (known and bool(lyrics))
