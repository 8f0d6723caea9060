"""Markup that language models and editors write is read as the same lyrics typed plainly."""

import time
from pathlib import Path

import pytest

from acestep_engine.lyrics import LyricTokenizer
from acestep_engine.lyrics.plain import plain_lines

TOKENIZER = LyricTokenizer.load(Path(__file__).parents[1] / "golden" / "lyric_vocab.json")


def texts(lyrics: str) -> list[str]:
    return [line.text for line in plain_lines(lyrics)]


@pytest.mark.parametrize(
    ("heading", "tag"),
    [
        ("## Verse", "[verse]"), ("**Chorus**", "[chorus]"), ("**[Verse 1]**", "[verse]"), ("# Outro #", "[outro]"),
        ("**Chorus:**", "[chorus]"), ("**Chorus**:", "[chorus]"), ("***Hook x2***", "[hook]"), ("_Intro_", "[intro]"),
        ("__Pre Chorus__", "[pre-chorus]"), ("`[Bridge]`", "[bridge]"), ("**Chorus** (softly)", "[chorus]"),
        ("### 🎤 Verse II", "[verse]"), ("> ## Solo", "[solo]"), ("## **Final Chorus**", "[chorus]"),
        ("**(Instrumental)**", "[inst]"), ("**Guitar Solo**", "[solo]"), ("## Verse 2: Anna", "[verse]"),
        ("**[Verse 2 - Anna]**", "[verse]"), ("<b>Refrain</b>", "[chorus]"), ("<h2>Verse 1</h2>", "[verse]"),
        ("**Post-Chorus**", "[chorus]"), ("**【Bridge】**", "[bridge]"),
    ],
)  # fmt: skip
def test_a_marked_heading_of_a_known_section_is_its_structure_tag(heading: str, tag: str) -> None:
    end = "" if heading.endswith("</h2>") else "\n"
    tokens = TOKENIZER.encode(f"{heading}{end}Ich liebe dich")
    assert tokens.ids == TOKENIZER.encode(f"{tag}\nIch liebe dich").ids
    assert (tokens.lines[0].text, tokens.lines[0].source) == (tag, "tag")
    assert tokens.lines[0].notes[0].endswith(f"' is read as {tag}")
    assert len(tokens.lines[0].notes) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("**Chorus of angels**", "Chorus of angels"), ("# Midnight Rain", "Midnight Rain"),
        ("**Break, my heart**", "Break, my heart"), ("**Verse 1: Anna**", "Verse 1: Anna"), ("# Break-up", "Break-up"),
        ("*Chorus", "*Chorus"), ("Chorus", "Chorus"), ("(Chorus)", "(Chorus)"), ("[Verse 1]", "[Verse 1]"),
        ("#verses", "#verses"),
    ],
)  # fmt: skip
def test_words_and_headings_without_marks_are_no_tags(line: str, words: str) -> None:
    assert texts(line) == [words]


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        ("**bold**, *it*, _it_ and `it`", "bold, it, it and it"), ("**so *very* bold**", "so very bold"),
        ("***all***", "all"), ("(__oh__)", "(oh)"), ("`a whole line`", "a whole line"), ("我**爱**你", "我爱你"),
        ("> quoted", "quoted"), ("<i>so</i> <span class='x'>much</span>", "so much"), ("**[Solo]** la", "[Solo] la"),
        (r"say \*hi\* \[x\] 1\. go", "say *hi* [x] 1. go"), ("the end\\", "the end"), ("a <!-- b --> c", "a  c"),
    ],
)  # fmt: skip
def test_marks_are_left_out_and_noted(line: str, plain: str) -> None:
    found = plain_lines(line)
    assert [entry.text for entry in found] == [plain]
    assert all(note.endswith("is left out") for note in found[0].notes)
    assert len(found[0].notes) == 1


@pytest.mark.parametrize(
    "line",
    [
        "f**k and s**t", "**** you", "2 * 3 * 4", "a*b*c", "snake_case_word", "Hello* and world*", "*lonely", "__",
        "--", "I <3 you > me", "#1 in my #heart", "a ## b", "1999 was mine", "1. Mai", "- Hello?", "* x", "1, 2, 3",
        "<verse>", "Tom & Jerry; R&B", "AT&T;", "-- wait --", "...", "C# or D#", "^_^ T_T", "don't 'stop'",
        "х**ня и с**а", "1.5 * 2", "you =\u0301= me",
    ],
)  # fmt: skip
def test_signs_that_are_no_markup_stay(line: str) -> None:
    assert texts(line) == [line]
    assert plain_lines(line)[0].notes == ()


def test_an_apostrophe_that_is_typed_as_a_grave_accent_is_no_code() -> None:
    assert TOKENIZER.encode("and `cause I`m goin` home", "en") == TOKENIZER.encode("and 'cause I'm goin' home", "en")


@pytest.mark.parametrize("mark", ["- ", "* ", "+ ", "• ", "  - "])
def test_the_bullets_of_a_list_are_left_out(mark: str) -> None:
    lyrics = f"[verse]\n{mark}la la\n\n{mark}lo lo\n[chorus]\n{mark}lu"
    assert texts(lyrics) == ["[verse]", "la la", "", "lo lo", "[chorus]", f"{mark}lu"]
    assert plain_lines(lyrics)[1].notes == (f"'{mark.strip()}' is left out",)


@pytest.mark.parametrize(
    ("lyrics", "plain"),
    [
        ("1. eins\n2. zwei\n3. drei", "eins\nzwei\ndrei"), ("9) neun\n10) zehn", "neun\nzehn"),
        ("1999 kam\n2000 ging", "1999 kam\n2000 ging"), ("1999. war\n2000. war", "1999. war\n2000. war"),
        ("1. Mai\n1. Mai", "1. Mai\n1. Mai"), ("3. los\n2. los\n1. los", "3. los\n2. los\n1. los"),
        ("1. eins\nund\n2. zwei", "1. eins\nund\n2. zwei"), ("1. eins\n2) zwei", "1. eins\n2) zwei"),
        ("1 eins\n2 zwei", "1 eins\n2 zwei"), ("- la\n* la", "- la\n* la"), ("- la\nla\n- la", "- la\nla\n- la"),
    ],
)  # fmt: skip
def test_numbers_are_left_out_only_where_lines_in_a_row_are_counted(lyrics: str, plain: str) -> None:
    assert "\n".join(texts(lyrics)) == plain


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("Tom &amp; Jerry", "Tom & Jerry"), ("don&#39;t &#x27;n&apos;", "don't 'n'"), ("&quot;hi&quot;", '"hi"'),
        ("&amp;lt;", "&lt;"), ("&notit; &copy", "&notit; &copy"), ("caf&eacute; e&#769;", "café é"),
        ("lo&shy;ve&#8203;", "love"), ("a&#27;&#0;", "a\ufffd"), ("&lbrack;verse&rsqb;", "[verse]"),
    ],
)  # fmt: skip
def test_an_entity_is_decoded_once(written: str, plain: str) -> None:
    assert texts(written) == [plain]
    assert (plain_lines(written)[0].notes == ()) == (written == plain)


def test_a_space_that_does_not_break_is_a_space() -> None:
    assert TOKENIZER.encode("la&nbsp;la").ids == TOKENIZER.encode("la la").ids


@pytest.mark.parametrize(
    "end", ["<br>", "<br/>", "<BR />", "<br>\n", "<br />\r\n", "</p>\n", "</li>", "&#10;", "&#13;&#10;", "&#xA;"]
)
def test_a_line_ends_where_html_says_so(end: str) -> None:
    assert TOKENIZER.encode(f"[verse]{end}la la") == TOKENIZER.encode("[verse]\nla la")


@pytest.mark.parametrize("rule", ["---", "***", "* * *", "___", "=====", "- - -", "———"])
def test_a_horizontal_rule_is_a_blank_line(rule: str) -> None:
    assert TOKENIZER.encode(f"la la\n{rule}\nlo lo", "en") == TOKENIZER.encode("la la\n\nlo lo", "en")


@pytest.mark.parametrize("fence", ["```", "```text", " ````lyrics "])
def test_the_fences_of_a_code_block_are_no_lines_and_the_others_keep_their_numbers(fence: str) -> None:
    fenced = TOKENIZER.encode(f"{fence}\n[verse]\nla la\n```", "en")
    assert fenced.ids == TOKENIZER.encode("[verse]\nla la", "en").ids
    assert [line.number for line in fenced.lines] == [2, 3]
    assert TOKENIZER.encode("```\n```").mask == (0,)


@pytest.mark.parametrize(
    "unit",
    [
        "*", "**a ", "*a*", "_a", "`a ", "`", "<b ", "<!-- ", "{\\a", "&a", "&#1;", "- \n", "1. a\n", "# ", " #", "\\",
        "\\ ", "> ", "[#:", "[ti:[", "[0:00]", "<0:00>", "[", "<", "-- ", "- ", "```\n", "0:00 --> 0:00",
        "\n0\n00:00 --> 0:",
        "WEBVTT\n\n", "verse ", "(verse ", "[verse: ", "instrumental ", "[no vocals", "<br ", "&#13;",
    ],
)  # fmt: skip
def test_a_flood_of_marks_is_read_in_time_that_grows_with_its_length(unit: str) -> None:
    flood = unit * (60_000 // len(unit))
    started = time.process_time()
    assert len("".join(texts(flood))) <= len(flood)
    assert time.process_time() - started < 3
