"""Lyrics to token ids: spelling, languages, vocabulary."""

from acestep_engine.languages import LANGUAGES, Language, parse_language
from acestep_engine.lyrics.lines import check_languages, is_instrumental
from acestep_engine.lyrics.tokenizer import LyricLine, LyricTokenizer, LyricTokens

__all__ = [
    "LANGUAGES",
    "Language",
    "LyricLine",
    "LyricTokenizer",
    "LyricTokens",
    "check_languages",
    "is_instrumental",
    "parse_language",
]
