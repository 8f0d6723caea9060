"""Lines of lyrics as they are written: structure tags, named languages, words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from acestep_engine.languages import LANGUAGES, Language, parse_language
from acestep_engine.lyrics.normalize import split_lines

_LEADING_TAG = re.compile(r"\[[^\]]*\]\s*")
_LANGUAGE_TAG = re.compile(r"\[\s*lang\s*[:：]([^\[\]]*)\]\s*", re.IGNORECASE)
_CODE_TAG = re.compile(rf"\[\s*((?:{'|'.join(LANGUAGES)})(?:[-_][a-z]{{2,4}})?)\s*\]\s*", re.IGNORECASE)  # ComfyUI's


@dataclass(frozen=True)
class Phrase:
    """Words of one language; `named` is the language that a tag before them names."""

    text: str  # stripped, not empty
    named: Language | None


@dataclass(frozen=True)
class WrittenLine:
    """One line. `tags` are the structure tags that it begins with, and the spaces after them; "" if there are none."""

    tags: str
    phrases: tuple[Phrase, ...]


def read_lines(lines: Iterable[str]) -> list[WrittenLine]:
    """Tell tags and words of normalised lines apart.

    `[lang:de]` names the language of the words behind it in the line. At the start of a line, also behind structure
    tags, `[de]` does the same.

    Raises ParameterError, which names the line, for a language that is not one of `LANGUAGES`.
    """
    return [_read_line(line.strip(), number) for number, line in enumerate(lines, start=1)]


def check_languages(lyrics: str) -> None:
    """Raise ParameterError, which names the line, if `lyrics` name a language that is not one of `LANGUAGES`."""
    read_lines(split_lines(lyrics))


def is_instrumental(lyrics: str) -> bool:
    """Return whether nothing is sung: no line of `lyrics` holds more than `[inst]` or `[instrumental]`."""
    return all(line.strip().lower() in ("", "[inst]", "[instrumental]") for line in split_lines(lyrics))


def _read_line(line: str, number: int) -> WrittenLine:
    tags, named, position = "", None, 0
    while tag := _LEADING_TAG.match(line, position):
        language = _LANGUAGE_TAG.match(line, position) or _CODE_TAG.match(line, position)
        if language:
            named = _parse(language[1], number)
            tags = tags and tags.rstrip() + " "
        else:
            tags += tag[0]
        position = tag.end()
    first, *others = _LANGUAGE_TAG.split(line[position:])
    phrases = [(first, named)]
    phrases += [(words, _parse(name, number)) for name, words in zip(others[::2], others[1::2], strict=True)]
    return WrittenLine(tags, tuple(Phrase(words.strip(), name) for words, name in phrases if words.strip()))


def _parse(name: str, number: int) -> Language:
    return parse_language(name.strip(), field="lyrics", where=f"line {number}: ")
