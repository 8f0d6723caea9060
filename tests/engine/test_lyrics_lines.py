"""How a line with tags, named languages and words is taken apart, and what is said about it."""

from pathlib import Path

import pytest

from acestep_engine.errors import ParameterError
from acestep_engine.lyrics import LyricTokenizer, check_languages, is_instrumental

TOKENIZER = LyricTokenizer.load(Path(__file__).parents[1] / "golden" / "lyric_vocab.json")
SPACE_ID = 2


def read(lyrics: str, vocal_language: str | None = None) -> list[tuple[int, str, str, str]]:
    lines = TOKENIZER.encode(lyrics, vocal_language).lines
    return [(line.number, line.text, line.language, line.source) for line in lines]


def notes(lyrics: str) -> list[tuple[str, ...]]:
    return [line.notes for line in TOKENIZER.encode(lyrics, "en").lines]


def test_words_behind_a_tag_are_read_as_a_line_of_their_own_language() -> None:
    one_line = TOKENIZER.encode("[verse] Ich liebe dich")
    assert read("[verse] Ich liebe dich") == [
        (1, "[verse]", "en", "tag"),
        (1, "Ich liebe dich", "de", "detected"),
    ]
    assert one_line.ids == TOKENIZER.encode("[verse]\nIch liebe dich").ids


@pytest.mark.parametrize(
    "line", ["[verse] Neon lights they flicker", "[verse]Neon lights", "[Verse 1] [x]  I love you"]
)
def test_english_words_behind_a_tag_have_the_published_ids_of_one_line(line: str) -> None:
    assert TOKENIZER.encode(line).ids == (261, *TOKENIZER.encode_line(line, "en"), SPACE_ID)
    assert [entry[2:] for entry in read(line)] == [("en", "detected")]


def test_words_behind_a_tag_are_in_the_language_asked_for() -> None:
    assert read("[verse] 3", "ko") == [(1, "[verse]", "en", "tag"), (1, "3", "ko", "given")]
    assert read("[verse]", "ko") == [(1, "[verse]", "en", "tag")]


@pytest.mark.parametrize(
    "line",
    [
        "[verse][lang:de] Hallo", "[lang:de] [verse] Hallo", "[verse] [de]Hallo", "[verse] [ LANG : de-AT ]Hallo",
        "[verse][lang：de]Hallo", "[fr][verse][de] Hallo",
    ],
)  # fmt: skip
def test_a_language_is_taken_beside_tags_and_its_letters_are_not_sung(line: str) -> None:
    assert read(line) == [(1, "[verse]", "en", "tag"), (1, "Hallo", "de", "given")]


@pytest.mark.parametrize("line", ["[ lang:de ] Hallo", "[de] Hallo", "[DE]Hallo", "[de-AT] Hallo", "［lang:de］Hallo"])
def test_a_language_is_taken_however_it_is_written(line: str) -> None:
    assert TOKENIZER.encode(line) == TOKENIZER.encode("[lang:de] Hallo")
    assert read(line) == [(1, "Hallo", "de", "given")]


def test_a_language_named_within_a_line_holds_for_the_words_behind_it() -> None:
    line = "Hello [lang:de] Hallo du [lang:en]"
    assert read(line, "en") == [(1, "Hello", "en", "given"), (1, "Hallo du", "de", "given")]
    assert TOKENIZER.encode(line, "en").ids == TOKENIZER.encode("Hello\n[lang:de]Hallo du", "en").ids


def test_pinyin_has_the_ids_of_its_characters() -> None:
    pinyin, characters = TOKENIZER.encode("[zh]wo3 ai4 ni3, ta1 de5 LÜ4"), TOKENIZER.encode("[zh]我爱你, 他的绿")
    assert pinyin.ids == characters.ids
    assert TOKENIZER.encode("[zh]mp3").lines[0].spelling == "mpsan1"  # no syllable: spelled as published


def test_romanized_korean_keeps_its_letters() -> None:
    assert TOKENIZER.encode("[ko]hamkke").lines[0].spelling == "hamkke"


@pytest.mark.parametrize("line", ["[lang:tlh] nuqneH", "[verse] [lang:tlh] nuqneH", "la [lang:tlh]", "[ lang:tlh ]"])
def test_an_unknown_language_is_an_error_that_names_the_line(line: str) -> None:
    lyrics = f"la\r{line}"
    for reader in (TOKENIZER.encode, check_languages):
        with pytest.raises(ParameterError, match="line 2: 'tlh' is no language") as info:
            reader(lyrics)  # type: ignore[operator]
        assert info.value.field == "lyrics"


@pytest.mark.parametrize(
    ("line", "written", "tag"),
    [
        ("(Chorus)", "(Chorus)", "[chorus]"), ("Verse 1: I go", "Verse 1:", "[verse]"),
        ("Hook", "Hook", "[hook]"), ("[Verse 1] I go", "[Verse 1]", "[verse]"),
        ("Pre Chorus", "Pre Chorus", "[pre-chorus]"), ("(Interlude)", "(Interlude)", "[inst]"),
        ("Outro:", "Outro:", "[outro]"),
    ],
)  # fmt: skip
def test_a_heading_that_is_read_as_words_is_noted_with_its_tag(line: str, written: str, tag: str) -> None:
    assert notes(line) == [(f"'{written}' is read as words: the structure tag is {tag}",)]


def test_brackets_that_are_no_tag_are_noted() -> None:
    assert notes("I go [x2]") == [("'[x2]' is read as words: it is not a structure tag of the model",)]
    assert notes("[Chorus] [soft] and [" + "x" * 50 + "]")[0][1].startswith(f"'[{'x' * 39}…' is read")
    assert len(notes("".join(f"[{i}]" for i in range(100)))[0]) == 5


@pytest.mark.parametrize("line", ["[VERSE]", "[pre-chorus] la", "(break my heart)", "(ooh)", "I took the bridge: away"])
def test_tags_and_ordinary_brackets_have_no_note(line: str) -> None:
    assert all(not noted for noted in notes(line))


@pytest.mark.parametrize(
    "lyrics",
    [
        "\ufeff[inst]", "[Instrumental]\r\n", r"[inst]\n", "[inst]\n[inst]", "\n[inst]\n\n[INST]\u2028", "［inst］",
        "(instrumental)", "instrumental", "Instrumental.", "[Inst.]", "[Instrumental]\n[Intro]", "**Instrumental**",
        "[Instrumental Break]", "Instrumental only", "[no vocals]", "(No lyrics)", "纯音乐", "インストゥルメンタル",
        "[verse]\n(instrumental)", "[00:00.00] Instrumental", "[lang:de] Instrumental", "♪ instrumental ♪",
    ],
)  # fmt: skip
def test_lyrics_of_nothing_but_words_for_instrumental_and_tags_are_instrumental(lyrics: str) -> None:
    assert is_instrumental(lyrics)
    assert TOKENIZER.encode(lyrics).mask[0] == 1  # the words are tokenized all the same


@pytest.mark.parametrize("lyrics", ["[intro]\n[verse]", "[Verse 1]\n\n[Guitar Solo]", "[start]\n[end]", "♪♪", "[de]"])
def test_lyrics_without_a_word_are_instrumental(lyrics: str) -> None:
    assert is_instrumental(lyrics)


@pytest.mark.parametrize(
    "lyrics",
    [
        "[inst] la", "[inst]\n[verse]\nla", "instrumental love", "my instrumental", "[whisper]", "[inst] [x2]", "(ooh)",
        "instrumental\nla la", "no words for you", "1, 2", "[instrumental",
    ],
)  # fmt: skip
def test_lyrics_with_anything_else_are_not_instrumental(lyrics: str) -> None:
    assert not is_instrumental(lyrics)


@pytest.mark.parametrize(
    "line", ["[inst]", "[Instrumental]", "(instrumental)", "instrumental", "[Inst.]", "[Verse 1]", "[intro]"]
)
def test_words_for_instrumental_and_tags_keep_their_published_ids(line: str) -> None:
    assert TOKENIZER.encode(line, "en").ids == (261, *TOKENIZER.encode_line(line, "en"), SPACE_ID)
