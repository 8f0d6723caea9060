r"""Markdown and HTML in lyrics, which language models and editors write.

Only what is certain to be markup is taken: a mark within a Latin word (`f**k`), a lone one, a lone list item, `#love`,
`<3` and a year at the start of a line stay as they are.
"""

import html
import re
from collections.abc import Sequence
from html.entities import html5

from acestep_engine.lyrics.sections import tag_of_heading

_ENTITY = re.compile(r"&(?:#(?:[0-9]{1,7}|[xX][0-9a-fA-F]{1,6})|[a-zA-Z][a-zA-Z0-9]{1,31});")

_RULE = re.compile(r"\s*([-–—*_=])(?:\s*\1){2,}\s*")
_FENCE = re.compile(r"\s*```+[\w+-]*\s*")

_HTML = re.compile(
    r"<!--.{0,200}?-->|</?(?:b|i|u|s|em|strong|small|big|sub|sup|mark|code|pre|del|ins|font|span|center|blockquote|p|div|ul|"
    r"ol|li|h[1-6]|c|v)(?:[\s.][^<>]{0,200})?/?>|\{\\[^{}]{1,80}\}",  # the last: {\an8} of subtitles
    re.IGNORECASE,
)
_BULLET = re.compile(r"\s*([-*+•])[ \t]+(?=\S)")
_ITEM_NUMBER = re.compile(r"\s*([0-9]{1,3})([.)])[ \t]+(?=\S)")
_LINE_MARK = re.compile(r"\s*(?:#{1,6}\s+|(?:>\s*)+(?:\s|$))")  # of a heading, of a quotation
_CLOSING_HASHES = re.compile(r"\s#{1,6}\s*$")
_HARD_BREAK = re.compile(r"(?<!\\)\\\s*$")
_NO_NAME = re.compile(r"^[^\w\[(（【{<]+")  # some put an emoji before the name of a section

# A mark within a word is none, but Chinese and Japanese have no spaces around words.
_NOT_IN_WORD = r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]"
_EMPHASIS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?<!{_NOT_IN_WORD})(?<![*\\])(?P<mark>\*{{1,3}})(?![\s*])(?P<words>[^*]++)(?<![\s\\])(?P=mark)(?![*])"
        rf"(?!{_NOT_IN_WORD})",
        r"(?<![\w\\])(?P<mark>_{1,3})(?![\s_])(?P<words>[^_]++)(?<![\s\\])(?P=mark)(?!\w)",
        # A grave accent is an apostrophe too, as in `cause I`m goin`: a pair holds one word, or the line.
        r"(?<![\w`\\])(?P<mark>`{1,3})(?P<words>[^\s`]++)(?P=mark)(?![\w`])",
        r"^\s*(?P<mark>`{1,3})(?P<words>[^`]++)(?P=mark)\s*$",
    )
)
_NESTED = 3  # emphasis within emphasis, at most
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
_ESCAPED_BRACKET = re.compile(r"\\([\[\]])")


def decode_entities(text: str) -> tuple[str, str | None]:
    """Return `text` with its HTML entities decoded once, and the first of them. One without its semicolon stays."""
    found = next((match[0] for match in _ENTITY.finditer(text) if _decode(match) != match[0]), None)
    return (text if found is None else _ENTITY.sub(_decode, text)), found


def _decode(entity: re.Match[str]) -> str:
    # html.unescape would also read &notit; as ¬it;
    return html.unescape(entity[0]) if entity[0][1] == "#" else html5.get(entity[0][1:], entity[0])


def is_rule(line: str) -> bool:
    """Return whether a line is a horizontal rule: `---`, `***`, `* * *`, `===`."""
    return _RULE.fullmatch(line) is not None


def is_fence(line: str) -> bool:
    """Return whether a line opens or closes a code block."""
    return _FENCE.fullmatch(line) is not None


def unescape_brackets(line: str) -> str:
    r"""Return `line` with `\[` and `\]` as the brackets that they stand for."""
    return _ESCAPED_BRACKET.sub(r"\1", line)


def list_marks(lines: Sequence[str]) -> dict[int, int]:
    """Return the length of the list mark that each line of a list begins with, by the index of the line.

    A list is two lines or more, apart from blank ones, with the same bullet or with numbers that count up by one.
    """
    found: dict[int, int] = {}
    before: tuple[int, re.Match[str], str | int] | None = None
    for i, line in enumerate(lines):
        if not line or line.isspace():
            continue
        mark = _BULLET.match(line)
        number = _ITEM_NUMBER.match(line)
        if mark:
            kind: str | int = mark[1]
            continues = before is not None and before[2] == kind
        elif number:
            mark, kind = number, int(number[1])
            continues = before is not None and before[2] == kind - 1 and before[1][2] == number[2]
        else:
            before = None
            continue
        if before is not None and continues:
            found[before[0]], found[i] = before[1].end(), mark.end()
        before = i, mark, kind
    return found


def heading_tag(line: str) -> str | None:
    """Return the structure tag of a line that is marked as a heading and names a section, such as `## Verse 1`."""
    text, marks = _without_emphasis(_HTML.sub("", line))
    text = text.strip("> \t")
    hashed = text.startswith("#")
    if not (hashed or marks or _HTML.search(line)):
        return None
    text = _NO_NAME.sub("", text.strip("#> \t"))
    return tag_of_heading(text, remark=hashed)


def without_marks(line: str) -> tuple[str, str | None]:
    """Return `line` without its marks of Markdown and HTML, and the first of them."""
    found = _HTML.findall(line)[:1]
    text = _HTML.sub("", line)
    if mark := _LINE_MARK.match(text):
        found.append(mark[0].strip())
        text = text[mark.end() :]
        if "#" in mark[0]:
            text = _CLOSING_HASHES.sub("", text)
    if mark := _HARD_BREAK.search(text):
        found.append("\\")
        text = text[: mark.start()]
    text, marks = _without_emphasis(text)
    plain = _ESCAPED.sub(r"\1", text)
    if plain != text:
        marks.append("\\")
    found += marks
    return (plain.strip(), found[0]) if found else (line, None)


def _without_emphasis(text: str) -> tuple[str, list[str]]:
    found = []
    for pattern in _EMPHASIS:
        for _ in range(_NESTED):
            if (mark := pattern.search(text)) is None:
                break
            found.append(mark["mark"])
            text = pattern.sub(r"\g<words>", text)
    return text, found
