"""Token ids of the lyrics, against the figures of the published tokenizer."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace

from acestep_engine.errors import CheckpointError, CheckpointNotFoundError, ParameterError
from acestep_engine.lyrics import LANGUAGES, LyricTokenizer, LyricTokens, is_instrumental

GOLDEN = Path(__file__).parents[1] / "golden"
CASES: dict[str, Any] = json.loads((GOLDEN / "cases" / "lyric_tokens.json").read_text(encoding="utf-8"))
SPACE_ID = 2


@pytest.fixture(scope="module")
def tokenizer() -> LyricTokenizer:
    return LyricTokenizer.load(GOLDEN / "lyric_vocab.json")


def small_vocabulary(path: Path, without: str = "") -> Path:
    """A vocabulary of the letters a to z, whose special tokens have other ids than the published one's."""
    languages = ["[zh-cn]" if language == "zh" else f"[{language}]" for language in LANGUAGES]
    special = [token for token in ("[UNK]", *languages, "[SPACE]", "[START]") if token != without]
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = Tokenizer(BPE({token: i for i, token in enumerate([*letters, *special])}, [], unk_token="[UNK]"))
    vocabulary.pre_tokenizer = Whitespace()
    vocabulary.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    vocabulary.save(str(path))
    return path


@pytest.mark.parametrize("case", CASES["lines"], ids=lambda case: case["line"])
def test_a_line_in_its_language_has_the_published_ids(tokenizer: LyricTokenizer, case: dict[str, Any]) -> None:
    assert tokenizer.encode_line(case["line"], case["language"]) == case["ids"]


def test_a_song_in_three_languages_has_the_published_ids(tokenizer: LyricTokenizer) -> None:
    tokens = tokenizer.encode(CASES["song"]["lyrics"])
    assert list(tokens.ids) == CASES["song"]["ids"]
    assert tokens.mask == (1,) * len(tokens.ids)
    assert [(line.language, line.source) for line in tokens.lines] == [
        ("en", "tag"), ("en", "detected"), ("zh", "detected"), ("en", "tag"), ("es", "detected"),
    ]  # fmt: skip


@pytest.mark.parametrize("lyrics", ["", " ", "\n", " \r\n\t\n"])
def test_blank_lyrics_are_one_masked_id(tokenizer: LyricTokenizer, lyrics: str) -> None:
    assert tokenizer.encode(lyrics) == LyricTokens(ids=(0,), mask=(0,))
    assert is_instrumental(lyrics)


def test_the_instrumental_tag_is_tokenized_and_instrumental(tokenizer: LyricTokenizer) -> None:
    assert tokenizer.encode("[inst]").ids == (261, 259, 6688, SPACE_ID)
    assert is_instrumental(" [Inst]\n")
    assert not is_instrumental("[inst]\nla la")


def test_an_empty_line_is_one_space(tokenizer: LyricTokenizer) -> None:
    hello, world = (tokenizer.encode_line(word, "en") for word in ("hello", "world"))
    assert list(tokenizer.encode("hello\r\n\r\nworld", "en").ids) == [261, *hello, SPACE_ID, SPACE_ID, *world, SPACE_ID]


def test_a_line_can_name_its_language(tokenizer: LyricTokenizer) -> None:
    tokens = tokenizer.encode("[lang:de] Die 3 Rosen\n[LANG:zh-CN]一\nrosa", vocal_language="it")
    assert [(line.text, line.language, line.source) for line in tokens.lines] == [
        ("Die 3 Rosen", "de", "given"), ("一", "zh", "given"), ("rosa", "it", "given"),
    ]  # fmt: skip
    assert tokens.lines[0].ids == tuple(tokenizer.encode_line("Die 3 Rosen", "de"))


def test_a_language_without_a_line_is_an_empty_line(tokenizer: LyricTokenizer) -> None:
    assert tokenizer.encode("[lang:de]\n ").ids == (261, SPACE_ID, SPACE_ID)


def test_a_structure_tag_is_english_whatever_the_song_is_sung_in(tokenizer: LyricTokenizer) -> None:
    tokens = tokenizer.encode("[verse]\n3\n[lang:ko] [rap] 3", vocal_language="ko")
    assert [(line.number, line.text, line.language, line.source) for line in tokens.lines] == [
        (1, "[verse]", "en", "tag"), (2, "3", "ko", "given"), (3, "[rap]", "en", "tag"), (3, "3", "ko", "given"),
    ]  # fmt: skip


def test_the_same_number_is_read_in_the_language_of_the_song(tokenizer: LyricTokenizer) -> None:
    assert tokenizer.encode("3", "en").lines[0].ids != tokenizer.encode("3", "hu").lines[0].ids[:1]
    assert tokenizer.encode("3", "fr").lines[0].ids[1:] == tuple(tokenizer.encode_line("trois", "fr"))[1:]


@pytest.mark.parametrize("name", ["xx", "", "klingon", "[en]"])
def test_an_unknown_vocal_language_is_refused_with_the_known_ones(tokenizer: LyricTokenizer, name: str) -> None:
    with pytest.raises(
        ParameterError, match="en, de, fr, es, it, pt, pl, tr, ru, cs, nl, ar, zh, ja, hu, ko, hi"
    ) as info:
        tokenizer.encode("hello", vocal_language=name)
    assert info.value.field == "vocal_language"


def test_an_unknown_language_of_a_line_is_refused_with_its_number(tokenizer: LyricTokenizer) -> None:
    with pytest.raises(ParameterError, match="line 2: 'klingon' is no language") as info:
        tokenizer.encode("hello\n[lang:klingon] nuqneH")
    assert info.value.field == "lyrics"


def test_special_ids_come_from_the_vocabulary_by_name(tmp_path: Path) -> None:
    path = small_vocabulary(tmp_path / "lyric_vocab.json")
    ids = Tokenizer.from_file(str(path)).get_vocab()
    expected = [ids["[START]"], ids["[en]"], ids["h"], ids["i"], ids["[SPACE]"], ids["u"], ids["[SPACE]"]]
    assert list(LyricTokenizer.load(path).encode("Hi u", "en").ids) == expected


@pytest.mark.parametrize("token", ["[START]", "[SPACE]", "[en]", "[zh-cn]", "[hi]"])
def test_a_vocabulary_without_a_special_token_is_refused_by_its_name(tmp_path: Path, token: str) -> None:
    path = small_vocabulary(tmp_path / "lyric_vocab.json", without=token)
    with pytest.raises(CheckpointError) as info:
        LyricTokenizer.load(path)
    assert token in str(info.value)
    assert str(path) in str(info.value)


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"lyric_vocab\.json"):
        LyricTokenizer.load(tmp_path / "lyric_vocab.json")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 1}'])
def test_a_broken_vocabulary_is_a_checkpoint_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lyric_vocab.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"lyric_vocab\.json"):
        LyricTokenizer.load(path)


def test_threads_get_the_same_ids_as_one_thread_alone() -> None:
    lyrics = "\n".join(case["line"] for case in CASES["lines"])
    alone = LyricTokenizer.load(GOLDEN / "lyric_vocab.json").encode(lyrics)
    common = LyricTokenizer.load(GOLDEN / "lyric_vocab.json")
    together = threading.Barrier(4)

    def encode(_: int) -> LyricTokens:
        together.wait()  # so that the libraries are loaded by four threads at once
        return common.encode(lyrics)

    with ThreadPoolExecutor(4) as pool:
        assert all(tokens == alone for tokens in pool.map(encode, range(4)))
