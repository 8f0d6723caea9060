"""Lyrics as people and programs write them, to the lines that are sung.

What is not sung is taken out, whatever the vocabulary: markup, times, headers of files. The work grows with the length
of the lyrics, whatever they hold.
"""

import re
from dataclasses import dataclass

from acestep_engine.lyrics import markup, timed
from acestep_engine.lyrics.normalize import compose_line, split_lines
from acestep_engine.lyrics.notes import shown

# What every mark, time and header has one of. Most lines have none, and are not looked at further: a request has up to
# 10,000 lines, and is read in the event loop too.
_SIGNS = re.compile(r"[#*_`<>\\{\[=–—-]")


@dataclass(frozen=True)
class PlainLine:
    """One line; it may be blank."""

    number: int  # in the lyrics as they were written, from 1
    text: str
    notes: tuple[str, ...]  # sentences on what was left out, and on what a heading was read as


def plain_lines(lyrics: str) -> list[PlainLine]:
    """Return the lines of `lyrics`, composed, without invisible characters, markup and times.

    Headers of LRC and subtitle files, and horizontal rules, are blank lines. The fences of a code block are no lines at
    all. A line that is marked as a heading and names a section becomes its structure tag.
    """
    written = split_lines(lyrics)
    entities: list[str | None] = []
    times: list[str | None] = []
    texts: list[str] = []
    for line in written:
        text, entity = markup.decode_entities(line) if "&" in line else (line, None)
        texts.append(compose_line(text))
        entities.append(entity)
    skipped = timed.subtitle_lines(texts)
    for i, text in enumerate(texts):
        time = None
        if i in skipped:
            texts[i] = ""
        elif _SIGNS.search(text):
            texts[i], time = _without_times(markup.unescape_brackets(text))
        times.append(time)
    fences = {i for i, text in enumerate(texts) if "```" in text and markup.is_fence(text)}
    marks = markup.list_marks(["" if i in fences else text for i, text in enumerate(texts)])
    return [
        _plain_line(i + 1, text, marks.get(i, 0), entities[i], times[i])
        for i, text in enumerate(texts)
        if i not in fences
    ]


def _without_times(line: str) -> tuple[str, str | None]:
    return ("", None) if markup.is_rule(line) or timed.is_header(line) else timed.without_times(line)


def _plain_line(number: int, line: str, list_mark: int, entity: str | None, time: str | None) -> PlainLine:
    text, item, mark = line[list_mark:], line[:list_mark].strip(), None
    if _SIGNS.search(text):
        if tag := markup.heading_tag(text):
            return PlainLine(number, tag, (f"{shown(line.strip())} is read as {tag}",))
        text, mark = markup.without_marks(text)
    notes = [f"{shown(found)} is left out" for found in (time, item, mark) if found]
    if entity:
        notes.append(f"{shown(entity)} is read as the character that it stands for")
    return PlainLine(number, text, tuple(notes))
