r"""Lyrics as people type and paste them, to lines of characters that the vocabulary knows.

The published tokenizer reads an invisible, decomposed or typographic character that its vocabulary lacks as [UNK]. Here
such a character becomes what it stands for. A character that the vocabulary knows, such as ’ or …, stays: ordinary
lyrics keep the published ids. The work grows with the length of the lyrics, whatever they hold.
"""

import re
import unicodedata
from collections.abc import Collection

# Also the two characters \n, which a shell sends for curl -F lyrics='[verse]\nla la', and what ends a line in HTML.
_LINE_END = re.compile(
    r"(?i:<br\s{0,9}/?>|</(?:p|div|li|h[1-6])>)[ \t]{0,9}(?:\r\n|[\n\r])?"
    r"|(?i:(?:&#(?:13|x0?d);)?&#(?:10|x0?a);|&#(?:13|x0?d);|&newline;)"
    r"|\r\n|(?:\\r)?\\n|[\n\r\v\f\x85\u2028\u2029]"
)

# Joiners shape letters of these scripts (Arabic, Devanagari), and the published vocabulary has tokens for them.
_JOINED = r"\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\u0900-\u097f"
_JOINERS = "\u200c\u200d"
_STRAY_JOINER = re.compile(rf"(?<![{_JOINED}])[{_JOINERS}]|[{_JOINERS}](?![{_JOINED}])")

# Invisible, but not of the category Cf: the grapheme joiner, variation selectors.
_INVISIBLE_MARK = re.compile("[\u034f\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_BRACKETS_AND_BLANKS = str.maketrans("［］\u2800\u3164\uffa0", "[]   ")  # a blank braille pattern, Hangul fillers

_MARKS_TOGETHER = 30  # as Unicode's Stream-Safe Text Format: composing takes time with the square of a run of marks

_COMPATIBILITY = ("<compat>", "<wide>", "<font>", "<initial>", "<medial>", "<final>", "<isolated>")
_WIDE_OR_SMALL_SIGN = re.compile("[\ufe50-\ufe6b\uff01-\uff5e\uffe0-\uffe6]")

_STAND_INS = {
    **dict.fromkeys("`´‘’‚‛′‹›ʹʻʼʽˈ", "'"),
    **dict.fromkeys("“”„‟″«»〝〞〟❝❞", '"'),
    **dict.fromkeys("\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{MINUS SIGN}\N{HYPHEN BULLET}–—―", "-"),
    **dict.fromkeys("⁄∕", "/"),
    "…": "...",
    "‥": "..",
}


def split_lines(lyrics: str) -> list[str]:
    r"""Return the lines of `lyrics` as they were written.

    LF, CR, CRLF, VT, FF, U+0085, U+2028, U+2029, the two characters `\n`, and HTML's `<br>` and closing tags of
    paragraphs end a line.
    """
    return _LINE_END.split(lyrics)


def compose_line(line: str) -> str:
    """Return `line` composed and without invisible characters, whatever the vocabulary.

    Joiners stay between letters of Arabic or Devanagari.
    """
    return line if line.isascii() else _compose(_drop_invisible(line))


def _drop_invisible(line: str) -> str:
    kept = "".join(c for c in line if c in _JOINERS or unicodedata.category(c) != "Cf")
    return _STRAY_JOINER.sub("", _INVISIBLE_MARK.sub("", kept.translate(_BRACKETS_AND_BLANKS)))


def _compose(line: str) -> str:
    """Compose letters with their marks, and Hangul of its parts.

    Unlike NFC, this takes nothing apart and reorders no marks of what cannot be composed: the vocabulary has Devanagari
    letters that NFC decomposes, and Arabic marks in an order that NFC changes.
    """
    clusters: list[str] = []
    for c in line:
        joins = unicodedata.combining(c) != 0 or "\u1161" <= c <= "\u11ff"  # a mark, a vowel or final of Hangul
        if joins and clusters and len(clusters[-1]) <= _MARKS_TOGETHER:
            clusters[-1] += c
        else:
            clusters.append(c)
    return "".join(min(cluster, unicodedata.normalize("NFC", cluster), key=len) for cluster in clusters)


class Folding(dict[int, str]):
    """A table for `str.translate`: what stands for each character that a vocabulary lacks.

    Ligatures, full-width and other compatibility letters become plain letters, typographic quotes and hyphens become
    ASCII. Characters without a stand-in that the vocabulary knows, such as emoji, stay as they are.
    """

    def __init__(self, known: Collection[str]) -> None:
        """`known` holds the single characters of the vocabulary, letters in lower case."""
        super().__init__()
        self._known = frozenset(known)

    def __missing__(self, code: int) -> str:
        """Find what stands for the character `code`. Raises LookupError if it stays, as `str.translate` wants."""
        c = chr(code)
        folded = c if c.isascii() and c != "`" else self._fold(c)
        if folded == c:
            raise LookupError(c)
        self[code] = folded
        return folded

    def _fold(self, c: str) -> str:
        if self._knows(c):
            return c
        if c in _JOINERS:
            return ""
        if c in _STAND_INS:
            return _STAND_INS[c] if self._knows(_STAND_INS[c]) else c
        plain = unicodedata.normalize("NFKC", c)
        kind, _, rest = unicodedata.decomposition(c).partition(" ")
        if _WIDE_OR_SMALL_SIGN.match(c) or (kind and not rest):  # or the same character at another code point
            return plain
        is_letter = c.isalpha() or c.isdecimal()
        return plain if is_letter and kind in _COMPATIBILITY and plain.isalnum() and self._knows(plain) else c

    def _knows(self, text: str) -> bool:
        return all(c in self._known for c in text.lower())
