"""No text makes the lyric tokenizer raise, hang or answer ids outside its vocabulary."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_engine.lyrics import LANGUAGES, Language, LyricTokenizer
from acestep_engine.lyrics.plain import plain_lines

VOCABULARY = Path(__file__).parents[1] / "golden" / "lyric_vocab.json"
VOCABULARY_SIZE = 6693
TOKENIZER = LyricTokenizer.load(VOCABULARY)

NUMERIC = st.text(alphabet="0123456789.,$£€%°/-:+ ^年月日个元块点aeioustndrdthº", max_size=60)
KANA = st.text(alphabet=st.characters(min_codepoint=0x3040, max_codepoint=0x30FF), max_size=20)
ANY_TEXT = st.text(alphabet=st.characters(), max_size=60)  # with lone surrogates and control characters


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=NUMERIC | KANA | ANY_TEXT)
@pytest.mark.parametrize("language", LANGUAGES)
def test_any_text_in_any_language_has_ids(language: Language, text: str) -> None:
    ids = TOKENIZER.encode_line(text, language)
    assert ids
    assert all(0 <= token_id < VOCABULARY_SIZE for token_id in ids)
    assert ids == TOKENIZER.encode_line(text, language)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lyrics=st.lists(NUMERIC | KANA | ANY_TEXT, max_size=8).map("\n".join).filter(lambda text: "[lang:" not in text))
def test_any_lyrics_have_ids_and_a_mask_as_long(lyrics: str) -> None:
    tokens = TOKENIZER.encode(lyrics)
    assert len(tokens.ids) == len(tokens.mask) >= 1
    if tokens.mask[0]:
        further_parts = len(tokens.lines) - len({line.number for line in tokens.lines})
        ends = len(plain_lines(lyrics)) + further_parts
        assert sum(len(line.ids) for line in tokens.lines) + 1 + ends == len(tokens.ids)


# 10,000 characters that make a backtracking pattern try again from each of them, a recursion go deep or int() refuse.
HOSTILE = {
    "commas": "1," * 5000, "points": "1." * 5000, "dollars": "$" * 10_000, "digits": "9" * 10_000,
    "digits then a letter": "9" * 9_999 + "x", "thousands": "111x" * 2500, "fractions": "1/" * 5000,
    "percents": "1%" * 5000,
    "counts": "1个" * 5000, "long count": "9" * 9_999 + "个", "dates": "2024年" * 2000, "letters": "a" * 9_999 + "二",
    "hum": "m" * 9_999 + "x", "brackets": "[" * 10_000, "spaces": "a" + " " * 9_998 + "b", "nul": "\0" * 10_000,
    "small tsu": "っ" * 10_000, "dash": "ー" * 10_000, "unreadable kana": "ッヽ" * 5000,
    "tags": "[verse]" * 1400, "languages": "[lang:de]" * 1100, "open languages": "[lang:" * 1600,
    "codes": "[de]" * 2500,
    "spaced brackets": "[ " * 5000, "backslashes": "\\" * 10_000, "line ends": "\\n" * 5000, "(": "(" * 10_000,
    "headings": "(chorus" * 1400, "pinyin": "wo3 " * 2500, "toneless": "zhuang" * 1600, "jamo": "ᄀ" + "ᅡ" * 9_999,
    "marks": "a" + "\u0327\u0301" * 4999, "joiners": "क\u200d" * 5000, "ligatures": "ﬃ" * 10_000,
    "wide": "［" * 10_000,
    "stars": "*a" * 5000, "emphasis": "*a* " * 2500, "entities": "&amp;" * 2000, "times": "[0:00]" * 1600,
    "items": "- a\n" * 2500, "cues": "0:00 --> 0:00\n" * 700, "html": "<b " * 3300,
    "bold headings": "**verse**\n" * 1000,
    "combining": "a\u0301" * 5000, "emoji": "😀" * 10_000,
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_ten_thousand_hostile_characters_are_encoded_in_every_language(text: str) -> None:
    for language in LANGUAGES:
        assert TOKENIZER.encode_line(text, language)
    assert TOKENIZER.encode(text).ids


@pytest.mark.parametrize("line", ["1", "la la", "東京", "[verse]", "Hello 3 times", "我有3个梦"])
def test_four_thousand_lines_are_encoded(line: str) -> None:
    tokens = TOKENIZER.encode("\n".join([line] * 4000))
    assert len(tokens.lines) == 4000
