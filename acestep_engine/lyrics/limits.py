"""The limit on the tokens of lyrics, and a lower bound of what they have that needs no vocabulary."""

from acestep_engine.errors import ParameterError
from acestep_engine.lyrics.lines import WrittenLine, read_lines
from acestep_engine.lyrics.plain import plain_lines

MAX_LYRIC_TOKENS = 8192  # most songs of 10,000 characters have fewer; attention takes time with the square of it


def fewest_tokens(lyrics: str) -> int:
    """Return a number of tokens that `lyrics` have at least, in any language and with any vocabulary.

    Each part of a line has a token for its language and one for its end. Words of plain letters have a token each, and
    one for the space between two. Other words count as nothing: their tokens depend on the vocabulary.
    """
    lines = plain_lines(lyrics)
    if not any(map(_has_letters, (line.text for line in lines))):
        return 1
    return 1 + sum(map(_fewest_of_line, read_lines(lines)))


def check_length(lyrics: str) -> None:
    """Raise ParameterError if `lyrics` are certainly over MAX_LYRIC_TOKENS."""
    fewest = fewest_tokens(lyrics)
    if fewest > MAX_LYRIC_TOKENS:
        raise ParameterError("lyrics", f"they are {fewest} tokens or more, the limit is {MAX_LYRIC_TOKENS}")


def _fewest_of_line(line: WrittenLine) -> int:
    spoken = [phrase.text for phrase in line.phrases if _has_letters(phrase.text)]
    if not spoken:
        return 2 if _has_letters(line.tags) else 1  # the end, and the language of tags
    return sum(2 + max(0, 2 * sum(map(_is_plain, text.split())) - 1) for text in spoken)


def _has_letters(text: str) -> bool:
    return any(c.isalnum() for c in text)


def _is_plain(word: str) -> bool:
    return word.isascii() and word.isalpha()
