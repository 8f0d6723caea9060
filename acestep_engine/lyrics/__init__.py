"""Lyrics to token ids: spelling, languages, vocabulary."""

from acestep_engine.languages import LANGUAGES, Language, parse_language
from acestep_engine.lyrics.tokenizer import LyricLine, LyricTokenizer, LyricTokens, is_instrumental

__all__ = [
    "LANGUAGES",
    "Language",
    "LyricLine",
    "LyricTokenizer",
    "LyricTokens",
    "is_instrumental",
    "parse_language",
]
