"""Lyrics that are certainly too long are known without a vocabulary, and no others."""

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_engine.checkpoint import LYRIC_VOCABULARY, NANO_PATH
from acestep_engine.errors import ParameterError
from acestep_engine.lyrics import LANGUAGES, MAX_LYRIC_TOKENS, Language, LyricTokenizer, check_length
from acestep_engine.lyrics.limits import fewest_tokens

TOKENIZERS = [
    LyricTokenizer.load(Path(__file__).parents[1] / "golden" / "lyric_vocab.json"),
    LyricTokenizer.load(NANO_PATH / LYRIC_VOCABULARY),
]
PIECES = st.sampled_from(
    [
        "la", "I", "a", "mr.", "wo3", "3", "$5", "[verse]", "[lang:de]", "[ja]", "夜", "ッヽ", "사랑", "'", '"', "(",
        "*b*", "é", "&amp;", "\u200b", "x2", "II", "二", "OK", "-", "%", "[0:12]", "१", "\n", "\t", "\u3000", "\u3097",
    ]
)  # fmt: skip
WRITTEN = st.lists(PIECES | st.text(alphabet=st.characters(), max_size=5), max_size=40)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces=WRITTEN, between=st.sampled_from(["", " ", "\n"]), language=st.sampled_from([*LANGUAGES, None]))
def test_no_lyrics_have_fewer_tokens_than_the_bound(pieces: list[str], between: str, language: Language | None) -> None:
    lyrics = between.join(pieces)
    try:
        fewest = fewest_tokens(lyrics)
    except ParameterError:  # an unknown [lang:xx]
        return
    for tokenizer in TOKENIZERS:
        assert fewest <= len(tokenizer.encode(lyrics, language).ids)


@pytest.mark.parametrize(
    "lyrics", ["a " * 5000, "la\n" * 3333, "夜\n" * 5000, "la" + "\n" * 9998, "[verse]la\n" * 1000]
)
def test_ten_thousand_characters_of_short_lines_or_words_are_refused_where_they_are_too_many(lyrics: str) -> None:
    tokens = len(TOKENIZERS[0].encode(lyrics).ids)
    if tokens <= MAX_LYRIC_TOKENS:
        check_length(lyrics)
        return
    with pytest.raises(ParameterError, match="tokens or more, the limit is 8192") as info:
        check_length(lyrics)
    assert info.value.field == "lyrics"


@pytest.mark.parametrize(
    "lyrics",
    [
        "",
        "\n" * 10_000,
        "I walk along the empty street and hear the rain\n" * 200,
        "月亮代表我的心\n" * 1000,
        "la la\n" * 1000,
    ],
)
def test_lyrics_that_may_be_short_enough_are_not_refused(lyrics: str) -> None:
    check_length(lyrics)


@pytest.mark.parametrize(
    "unit", ["a ", "la\n", "*a* ", "[verse]", "[0:00.0]a", "&amp;", "- a\n", "[lang:de]a", "é\n", "\n"]
)
def test_the_bound_on_all_that_a_request_may_hold_is_found_in_a_fraction_of_a_second(unit: str) -> None:
    lyrics = unit * (10_000 // len(unit))
    started = time.process_time()
    fewest_tokens(lyrics)
    assert time.process_time() - started < 0.5
