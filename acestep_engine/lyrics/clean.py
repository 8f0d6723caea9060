"""A lyric line to the plain spelling that the lyric vocabulary is made of.

Numbers, abbreviations and symbols become words; Chinese, Japanese and Korean become Latin letters. Order and effects
are those of the published ACE-Step v1 lyric tokenizer, whose spelling a checkpoint was trained on.
"""

import re
import threading
from collections.abc import Callable
from functools import cached_property

from acestep_engine.languages import Language
from acestep_engine.lyrics import chinese_numbers
from acestep_engine.lyrics.numbers import NumberReader
from acestep_engine.lyrics.spelling import SPELLED_LANGUAGES, expand_abbreviations, expand_symbols

_SPACES = re.compile(r"\s+")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
# Words that are Mandarin already, as ComfyUI's lyrics have them: wo3 ai4 ni3. A syllable ends with its tone.
_PINYIN_SYLLABLE = r"(?:[zcs]h|[bpmfdtnlgkhjqxrzcsyw])?(?:[aeiouvü]{1,3}(?:ng?|r)?|ng?|m)[1-5]"
_PINYIN = re.compile(rf"[^\w]*+(?:{_PINYIN_SYLLABLE}[^\w]*+)++", re.IGNORECASE)
_SPACE_BETWEEN_SYLLABLES = re.compile(r"(?<=[1-5])\s+(?=\w)")
_TURKISH_CAPITALS = str.maketrans("İÖÜ", "iöü")  # str.lower would make two characters of İ


class Cleaner:
    """Cleans lines of any language; safe to call from many threads. Libraries are loaded for the first line that
    needs them: pypinyin for Chinese, cutlet with its 250 MB dictionary on disk for Japanese.
    """

    def __init__(self) -> None:
        self._numbers = NumberReader()
        self._japanese_lock = threading.Lock()  # words of the analyser point into its buffer until the next call

    def clean(self, line: str, language: Language) -> str:
        """`line` in lower case, spelled out and in the letters that `language` has in the vocabulary.

        A Chinese line that is written in pinyin with tones stays, spaced as that of characters is.

        Never raises. Where the published tokenizer raises, and so drops the line, a lone surrogate is read as U+FFFD
        and kana that have no reading are left out.
        """
        line = _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", line)
        if language == "ja":
            with self._japanese_lock:
                return self._romanize_japanese(line).lower()
        if language not in SPELLED_LANGUAGES:
            return _SPACES.sub(" ", line.lower())
        if language == "zh" and _PINYIN.fullmatch(line):
            return _SPACES.sub(" ", _SPACE_BETWEEN_SYLLABLES.sub("", line.strip().lower().replace("ü", "v")))
        line = line.replace('"', "")
        if language == "tr":
            line = line.translate(_TURKISH_CAPITALS)
        line = line.lower()
        line = chinese_numbers.normalize(line) if language == "zh" else self._numbers.expand(line, language)
        line = expand_symbols(expand_abbreviations(line, language), language)
        line = _SPACES.sub(" ", line.strip())
        if language == "zh":
            return _romanize_chinese(line)
        return self._romanize_korean(line) if language == "ko" else line

    def _romanize_japanese(self, line: str) -> str:
        """Romaji. cutlet has no reading for some sequences of kana (ッヽ, unassigned code points): a line with one is
        read in halves, down to the character, which is left out."""
        try:
            return self._katsu(line)
        except LookupError:
            middle = len(line) // 2
            halves = (line[:middle], line[middle:]) if middle else ()
            return " ".join(filter(None, map(self._romanize_japanese, halves)))

    @cached_property
    def _katsu(self) -> Callable[[str], str]:
        from cutlet import Cutlet

        katsu: Callable[[str], str] = Cutlet().romaji
        return katsu

    @cached_property
    def _romanize_korean(self) -> Callable[[str], str]:
        from hangul_romanize import Transliter
        from hangul_romanize.rule import academic

        romanize: Callable[[str], str] = Transliter(academic).translit
        return romanize


def _romanize_chinese(line: str) -> str:
    """Pinyin with the tone as a digit after each syllable, 5 where it is neutral; other characters stay."""
    from pypinyin import Style, pinyin

    return "".join(reading[0] for reading in pinyin(line, style=Style.TONE3, neutral_tone_with_five=True))
