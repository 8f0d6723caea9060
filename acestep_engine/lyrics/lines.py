"""Lines of lyrics as they are written: structure tags, named languages, words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from acestep_engine.languages import LANGUAGES, Language, parse_language
from acestep_engine.lyrics.plain import PlainLine, plain_lines
from acestep_engine.lyrics.sections import tag_of_heading

_LEADING_TAG = re.compile(r"\[[^\]]*\]\s*")
_LANGUAGE_TAG = re.compile(r"\[\s*lang\s*[:：]([^\[\]]*)\]\s*", re.IGNORECASE)
_CODE_TAG = re.compile(rf"\[\s*((?:{'|'.join(LANGUAGES)})(?:[-_][a-z]{{2,4}})?)\s*\]\s*", re.IGNORECASE)  # ComfyUI's

_BRACKETS = re.compile(r"\[[^\[\]]*\]")
_NO_WORDS = re.compile(r"[\W_]+")
_INST = (
    r"(?:instrumental[es]?|inst|strumentale|instrumentaal|enstrümantal|инструментал|インスト(?:ゥルメンタル|ルメンタル)?|"
    r"纯音乐|純音樂|純音楽|伴奏|연주곡|반주)"
)
_INSTRUMENTAL = re.compile(  # without punctuation
    rf"(?:{_INST}(?: (?:only|version|track|music|song|break|section|part|intro|outro|solo|bridge|interlude))?"
    r"|(?:no|without) (?:vocals?|lyrics|words|singing))(?: [0-9]{1,3})?",
    re.IGNORECASE,
)
_SILENT_TAG = re.compile(rf"start|end|{_INSTRUMENTAL.pattern}", re.IGNORECASE)


@dataclass(frozen=True)
class Phrase:
    """Words of one language; `named` is the language that a tag before them names."""

    text: str  # stripped, not empty
    named: Language | None


@dataclass(frozen=True)
class WrittenLine:
    """One line. `tags` are the structure tags that it begins with, and the spaces after them; "" if there are none."""

    number: int
    notes: tuple[str, ...]
    tags: str
    phrases: tuple[Phrase, ...]


def read_lines(lines: Iterable[PlainLine]) -> list[WrittenLine]:
    """Tell tags and words of plain lines apart.

    `[lang:de]` names the language of the words behind it in the line. At the start of a line, also behind structure
    tags, `[de]` does the same.

    Raises ParameterError, which names the line, for a language that is not one of `LANGUAGES`.
    """
    return [_read_line(line) for line in lines]


def check_languages(lyrics: str) -> None:
    """Raise ParameterError, which names the line, if `lyrics` name a language that is not one of `LANGUAGES`."""
    read_lines(plain_lines(lyrics))


def is_instrumental(lyrics: str) -> bool:
    """Return whether nothing is sung: `lyrics` hold no words but `instrumental` and its like, and names of sections.

    The model is given the same tokens all the same: it has learnt `[inst]`, and reads a plain `instrumental` as a word.
    """
    return all(_is_silent(line.text) for line in plain_lines(lyrics))


def _is_silent(line: str) -> bool:
    rest = _BRACKETS.sub(lambda bracket: " " if _is_silent_bracket(bracket[0]) else bracket[0], line)
    words = _NO_WORDS.sub(" ", rest).strip()
    return not words or ("[" not in rest and _INSTRUMENTAL.fullmatch(words) is not None)


def _is_silent_bracket(bracket: str) -> bool:
    if _LANGUAGE_TAG.fullmatch(bracket) or _CODE_TAG.fullmatch(bracket) or tag_of_heading(bracket):
        return True
    return _SILENT_TAG.fullmatch(_NO_WORDS.sub(" ", bracket).strip()) is not None


def _read_line(line: PlainLine) -> WrittenLine:
    number, text = line.number, line.text.strip()
    tags, named, position = "", None, 0
    while tag := _LEADING_TAG.match(text, position):
        language = _LANGUAGE_TAG.match(text, position) or _CODE_TAG.match(text, position)
        if language:
            named = _parse(language[1], number)
            tags = tags and tags.rstrip() + " "
        else:
            tags += tag[0]
        position = tag.end()
    first, *others = _LANGUAGE_TAG.split(text[position:])
    phrases = [(first, named)]
    phrases += [(words, _parse(name, number)) for name, words in zip(others[::2], others[1::2], strict=True)]
    spoken = tuple(Phrase(words.strip(), name) for words, name in phrases if words.strip())
    return WrittenLine(number, line.notes, tags, spoken)


def _parse(name: str, number: int) -> Language:
    return parse_language(name.strip(), field="lyrics", where=f"line {number}: ")
