"""Lyrics to token ids: spelling, languages, vocabulary."""

from acestep_engine.languages import LANGUAGES, Language, parse_language
from acestep_engine.lyrics.limits import MAX_LYRIC_TOKENS, check_length
from acestep_engine.lyrics.lines import check_languages, is_instrumental
from acestep_engine.lyrics.tokenizer import LyricLine, LyricTokenizer, LyricTokens

__all__ = [
    "LANGUAGES",
    "MAX_LYRIC_TOKENS",
    "Language",
    "LyricLine",
    "LyricTokenizer",
    "LyricTokens",
    "check_languages",
    "check_length",
    "is_instrumental",
    "parse_language",
]
