"""Remarks on brackets and headings that the model reads as words."""

import re
from collections.abc import Collection

from acestep_engine.lyrics.sections import SECTION, tag_of_name

_BRACKETS = re.compile(r"\[[^\[\]]*\]")
_HEADINGS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"[(<{{*#【（]+\s*{SECTION}\s*[0-9]{{0,2}}\s*(?:[:：x×–-][^)>}}*】）]{{0,40}})?[)>}}*】）]+",  # (Chorus x2)
        rf"[#\s]*{SECTION}\s*[0-9]{{0,2}}\s*[:：]",  # Verse 1:
        rf"[#\s]*{SECTION}\s*[0-9]{{0,2}}\s*$",  # a line that says Chorus and no more
    )
)

_SHOWN = 40  # characters of a bracket
_NOTES = 5  # of one line


def notes_on(text: str, tags: Collection[str]) -> tuple[str, ...]:
    """Return a sentence for each bracket or heading of a line that is read as words, at most five.

    `tags` are the structure tags that the vocabulary has a token for.
    """
    notes = []
    for bracket in dict.fromkeys(_BRACKETS.findall(text)):
        if bracket.lower() not in tags:
            section = re.match(rf"\[\s*{SECTION}\b", bracket, re.IGNORECASE)
            notes.append(_sentence(bracket, _tag_of(section, tags)))
    for pattern in _HEADINGS:
        if heading := pattern.match(text):
            notes.append(_sentence(heading[0].strip(), _tag_of(heading, tags)))
            break
    return tuple(notes[:_NOTES])


def _tag_of(found: re.Match[str] | None, tags: Collection[str]) -> str | None:
    if found is None:
        return None
    tag = tag_of_name(found["section"])
    return tag if tag in tags else None


def _sentence(written: str, tag: str | None) -> str:
    reason = "it is not a structure tag of the model" if tag is None else f"the structure tag is {tag}"
    return f"{shown(written)} is read as words: {reason}"


def shown(written: str) -> str:
    """Return the beginning of what was written, in quotes."""
    return f"'{written}'" if len(written) <= _SHOWN else f"'{written[:_SHOWN]}…'"
