"""Lyrics as people paste them are read as the same lyrics typed plainly; plain lyrics keep the published ids."""

import re
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from acestep_engine.checkpoint import LYRIC_VOCABULARY, NANO_PATH
from acestep_engine.lyrics import LANGUAGES, Language, LyricTokenizer
from acestep_engine.lyrics.normalize import Folding, compose_line, split_lines

PUBLISHED = Path(__file__).parents[1] / "golden" / "lyric_vocab.json"
TOKENIZER = LyricTokenizer.load(PUBLISHED)
NANO = LyricTokenizer.load(NANO_PATH / LYRIC_VOCABULARY)

TOKENS = Tokenizer.from_file(str(PUBLISHED)).get_vocab()
FORMATS = {c for c in TOKENS if len(c) == 1 and unicodedata.category(c) == "Cf"}
# What ordinary lyrics are made of: the vocabulary's characters and some that it lacks, but none that are normalised,
# and no pair or row of signs that is markup.
MARKUP = re.compile(r"[*_].*[*_]|&.*;|\s*#{1,6}\s.*|([-–—=])(\s*\1){2,}", re.DOTALL)
ORDINARY = st.text(
    alphabet=sorted(
        {c for token in TOKENS for c in token if unicodedata.combining(c) == 0 and c not in FORMATS and c not in "[]"}
        | set("ÄÖÜÉÑŻŠİЙЁ我爱你走了八千里君の名は希望カラオケ너를사랑해😀✨~€£@#\t ")
    ),
    min_size=1,
    max_size=60,
).filter(lambda text: text.strip() and not MARKUP.search(text))


def normalized(text: str) -> str:
    folding = Folding({token for token in TOKENS if len(token) == 1})
    return "\n".join(compose_line(line).translate(folding) for line in split_lines(text))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=ORDINARY, language=st.sampled_from(LANGUAGES))
def test_ordinary_text_keeps_the_published_ids(text: str, language: Language) -> None:
    assert TOKENIZER.encode(text, language).lines[0].ids == tuple(TOKENIZER.encode_line(text.strip(), language))


def test_no_token_of_the_published_vocabulary_is_normalized_away() -> None:
    changed = {token for token in TOKENS if normalized(token) != token}
    assert changed == FORMATS | {"e\u0301"}  # the latter is a token that no text reaches: U+0301 alone is none


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("fr", "été à la plage"), ("de", "über grün"), ("es", "mañana"), ("cs", "ťuká děšť"), ("pl", "żółć"),
        ("ru", "мой ёжик"), ("ko", "너를 사랑해 값"), ("ja", "がらす ぱん"), ("tr", "çığ"), ("ar", "آه أحبك إلى ؤ"),
    ],
)  # fmt: skip
def test_decomposed_text_is_read_as_composed_text(language: Language, text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    composed = TOKENIZER.encode(text, language)
    assert TOKENIZER.encode(decomposed, language) == composed
    assert list(composed.lines[0].ids) == TOKENIZER.encode_line(text, language)


def test_arabic_marks_keep_the_order_that_the_vocabulary_has() -> None:
    word = "الل\u0651\u064eه"  # shadda, fatha: NFC exchanges them
    assert unicodedata.normalize("NFC", word) != word
    assert list(TOKENIZER.encode(word, "ar").lines[0].ids) == TOKENIZER.encode_line(word, "ar")


@pytest.mark.parametrize(
    "invisible",
    [
        "\u00ad", "\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\u2060", "\ufeff", "\u202a", "\u202e", "\u2066",
        "\ufe0f", "\U000e0100", "\u034f", "\u061c",
    ],
    ids=ascii,
)  # fmt: skip
def test_invisible_characters_are_left_out(invisible: str) -> None:
    plain = TOKENIZER.encode("[verse]\nlove me")
    assert TOKENIZER.encode(f"{invisible}[verse]\nlo{invisible}ve{invisible} me{invisible}") == plain
    assert NANO.encode(f"{invisible}[verse]\nlo{invisible}ve me") == NANO.encode("[verse]\nlove me")


@pytest.mark.parametrize(("language", "word"), [("hi", "क्\u200dष"), ("hi", "क्\u200cष"), ("ar", "می\u200cخواهم")])
def test_a_joiner_between_letters_that_it_shapes_keeps_its_published_token(language: Language, word: str) -> None:
    assert list(TOKENIZER.encode(word, language).lines[0].ids) == TOKENIZER.encode_line(word, language)
    assert NANO.encode(word, language) == NANO.encode(word.replace("\u200d", "").replace("\u200c", ""), language)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029", r"\n", r"\r\n"], ids=ascii)
def test_a_line_ends_at_every_line_end(end: str) -> None:
    assert TOKENIZER.encode(f"[verse]{end}la la{end}{end}lo") == TOKENIZER.encode("[verse]\nla la\n\nlo")


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("ﬁnd the ﬂame", "find the flame"), ("ＬＯＶＥ", "LOVE"), ("［verse］", "[verse]"),
        ("１２ nights", "12 nights"), ("don`t", "don't"), ("ʼtis", "'tis"), ("slow‐ly", "slow-ly"), ("𝓛𝓸𝓿𝓮", "Love"),
        ("ĳs", "ijs"), ("5％", "5%"), ("\u2800", ""), ("\u2126", "Ω"), ("ﻣﺮﺣﺒﺎ", "مرحبا"), ("\uf900有", "豈有"),
    ],
)  # fmt: skip
def test_a_character_that_the_vocabulary_lacks_becomes_what_it_stands_for(written: str, plain: str) -> None:
    assert TOKENIZER.encode(f"hey\n{written}") == TOKENIZER.encode(f"hey\n{plain}")


def test_typographic_signs_that_a_vocabulary_knows_stay_and_others_become_plain() -> None:
    line = "“don’t” – ‘stop’… non\u2011stop"
    assert list(TOKENIZER.encode(line, "en").lines[0].ids) == TOKENIZER.encode_line(line, "en")
    assert NANO.encode(line, "en").lines[0].text == '"don’t" – \'stop’… non-stop'


@pytest.mark.parametrize("line", ["😀✨ 1ª 2º ½ ² ™", "ㅋㅋㅋ", "สวัสดี", "♥ ☭"])
def test_other_characters_stay(line: str) -> None:
    assert TOKENIZER.encode(line, "en").lines[0].text == line


@pytest.mark.parametrize("lyrics", ["\ufeff", "\u200b\n\u2028", r"\n", "\u2800"], ids=ascii)
def test_lyrics_without_a_visible_character_are_blank(lyrics: str) -> None:
    assert TOKENIZER.encode(lyrics).mask == (0,)


@pytest.mark.parametrize("unit", ["\u0327\u0301", "\u1161", "\u200d", "\\", "\ufdfa", "\u0651\u064e"], ids=ascii)
def test_a_flood_is_normalized_in_time_that_grows_with_its_length(unit: str) -> None:
    flood = "a" + unit * (200_000 // len(unit))  # NFC takes a minute for marks out of order
    started = time.monotonic()
    assert len(normalized(flood)) <= len(flood)
    assert time.monotonic() - started < 10
