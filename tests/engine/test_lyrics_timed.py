"""Times and headers of LRC files and subtitles are not sung."""

from pathlib import Path

import pytest

from acestep_engine.lyrics import LyricTokenizer

TOKENIZER = LyricTokenizer.load(Path(__file__).parents[1] / "golden" / "lyric_vocab.json")


def read(lyrics: str) -> list[tuple[int, str, str]]:
    return [(line.number, line.text, line.language) for line in TOKENIZER.encode(lyrics).lines]


@pytest.mark.parametrize(
    "line",
    [
        "[00:12.34]Ich liebe dich", "[00:12] Ich liebe dich", "[0:12.3][01:12.345] Ich liebe dich",
        "[1:00:12.00]Ich liebe dich", "[00:12:34] Ich liebe dich", "<00:12.34>Ich <00:12.50>liebe <00:13.00>dich",
        "[00:12.34]<00:12.34> Ich <00:12.50> liebe <00:13.00> dich <00:14.00>", "［00:12.34］Ich liebe dich",
        "[00:12.34]Ich [00:12.50]liebe [00:13.00]dich", r"\[00:12.34\] Ich liebe dich", "[de][00:12] Ich liebe dich",
    ],
)  # fmt: skip
def test_the_times_of_a_line_and_its_words_are_not_sung(line: str) -> None:
    tokens = TOKENIZER.encode(line)
    assert tokens.ids == TOKENIZER.encode("Ich liebe dich").ids
    assert [entry.language for entry in tokens.lines] == ["de"]
    assert tokens.lines[0].notes[0].endswith("' is left out")


def test_a_structure_tag_beside_a_time_stays() -> None:
    for line in ("[verse][00:12] Ich liebe dich", "[00:12.00][verse] Ich liebe dich", "[00:12] [verse]Ich liebe dich"):
        assert read(line) == [(1, "[verse]", "en"), (1, "Ich liebe dich", "de")]


@pytest.mark.parametrize("line", ["Meet me at 12:30", "at [12:30] sharp", "[verse 12:30]", "1:0", "<3:2", "[x2]"])
def test_a_time_that_is_sung_stays(line: str) -> None:
    assert [text for _, text, _ in read(line)] == [line]


@pytest.mark.parametrize(
    "header",
    [
        "[ti:Das Lied]", "[ar: Anna [live]]", "[AL:x]", "[by:]", "[offset:+500]", "[length: 03:20]", "[re:Editor]",
        "[#:remark]", "[00:01.00]", "［ti：歌］", "[id: $00000000]",
    ],
)  # fmt: skip
def test_a_header_of_an_lrc_file_is_a_blank_line(header: str) -> None:
    assert TOKENIZER.encode(f"{header}\nIch liebe dich") == TOKENIZER.encode("\nIch liebe dich")
    assert TOKENIZER.encode(header).mask == (0,)


@pytest.mark.parametrize("line", ["[by:me] la la", "[lang:de]", "[chorus: Anna]", "by: me", "[ti] la"])
def test_other_lines_with_a_colon_are_no_headers(line: str) -> None:
    assert len(TOKENIZER.encode(f"la\n{line}\nla").ids) > len(TOKENIZER.encode("la\n\nla").ids) or line == "[lang:de]"


def test_a_subtitle_file_is_read_as_its_words() -> None:
    lyrics = (
        "1\n00:00:12,000 --> 00:00:15,000\n{\\an8}<i>Ich liebe dich</i>\n\n"
        "2\n00:00:15,000 --> 00:00:18,000 X1:40\n1999\nwar es schön\n"
    )
    assert read(lyrics) == [(3, "Ich liebe dich", "de"), (7, "1999", "de"), (8, "war es schön", "de")]


def test_a_webvtt_file_is_read_as_its_words() -> None:
    lyrics = (
        "\ufeffWEBVTT - Das Lied\nKind: captions\nLanguage: de\n\nNOTE by Anna\nall of it\n\n"
        "STYLE\n::cue { color: red }\n\n"
        "first words\n00:12.000 --> 00:15.000 align:start\n<v Anna>Ich <00:13.000><c>liebe</c> dich\n\n"
        "00:01:15.000 --> 00:01:18.000\nLanguage: Liebe\nNOTE\n"
    )
    assert [entry[:2] for entry in read(lyrics)] == [(13, "Ich liebe dich"), (16, "Language: Liebe"), (17, "NOTE")]


@pytest.mark.parametrize("lyrics", ["WEBVTTS rule", "la\nWEBVTT", "NOTE\nto self", "1\n2\n3", "Kind: captions"])
def test_words_that_only_look_like_a_subtitle_file_stay(lyrics: str) -> None:
    assert [text for _, text, _ in read(lyrics)] == lyrics.split("\n")
