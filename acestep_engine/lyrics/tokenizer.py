"""Lyrics to token ids, exactly as the published ACE-Step v1 tokenizer, with a language for each line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from acestep_engine.errors import CheckpointError, CheckpointNotFoundError
from acestep_engine.languages import LANGUAGES, Language, language_token, parse_language
from acestep_engine.lyrics.clean import Cleaner
from acestep_engine.lyrics.detect import LanguageDetector

START = "[START]"
SPACE = "[SPACE]"
INSTRUMENTAL_ID = 0  # the published pipeline's id for a song without lyrics, masked out

_STRUCTURE_TAG = re.compile(r"\[.*?\]")
_LANGUAGE_PREFIX = re.compile(r"\[lang:([^\]]*)\]\s*", re.IGNORECASE)

LanguageSource = Literal["tag", "given", "detected"]


@dataclass(frozen=True)
class LyricLine:
    """One line with text. `source` says why it has its language: a structure tag, asked for, or detected."""

    number: int  # from 1
    text: str  # stripped, without its `[lang:xx]`
    language: Language
    source: LanguageSource
    spelling: str  # the text as it was cleaned
    ids: tuple[int, ...]  # without the space that ends the line


@dataclass(frozen=True)
class LyricTokens:
    """`ids` and `mask` are (N,), N >= 1. `lines` holds the lines with text, in order."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    lines: tuple[LyricLine, ...] = ()


def is_instrumental(lyrics: str) -> bool:
    """Whether nothing is sung: `lyrics` is blank, `[inst]` or `[instrumental]`."""
    return lyrics.strip().lower() in ("", "[inst]", "[instrumental]")


class LyricTokenizer:
    """Turns lyrics into token ids of one checkpoint's vocabulary; safe to call from many threads."""

    def __init__(self, vocabulary: Tokenizer) -> None:
        self._vocabulary = vocabulary
        self._start_id = self._special_id(START)
        self._space_id = self._special_id(SPACE)
        for language in LANGUAGES:
            self._special_id(language_token(language))
        self._cleaner = Cleaner()
        self._detector = LanguageDetector()

    @classmethod
    def load(cls, vocab_path: Path) -> "LyricTokenizer":
        """Reads a file in the format of Hugging Face's `tokenizers`.

        Raises CheckpointNotFoundError if there is none, CheckpointError if it cannot be read or lacks a special token.
        """
        if not vocab_path.is_file():
            raise CheckpointNotFoundError(f"there is no lyric vocabulary at {vocab_path}")
        try:
            vocabulary = Tokenizer.from_file(str(vocab_path))
        except Exception as error:  # tokenizers raises nothing more precise
            raise CheckpointError(f"{vocab_path} is not a vocabulary of the tokenizers library: {error}") from error
        try:
            return cls(vocabulary)
        except CheckpointError as error:
            raise CheckpointError(f"{vocab_path}: {error}") from error

    def encode_line(self, line: str, language: Language) -> list[int]:
        """The ids of one line in `language`, its language token first, without the space that ends a line."""
        return self._encode_spelling(self._cleaner.clean(line, language), language)

    def _encode_spelling(self, spelling: str, language: Language) -> list[int]:
        text = language_token(language) + spelling
        ids: list[int] = self._vocabulary.encode(text.replace(" ", SPACE)).ids
        return ids

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """What each id stands for; a token that is no id of the vocabulary is empty."""
        return [self._vocabulary.id_to_token(token_id) or "" for token_id in ids]

    def encode(self, lyrics: str, vocal_language: str | None = None) -> LyricTokens:
        """The ids of a song: a start token, then each line with a space after it; an empty line is one space.

        A line's language is, first that applies: the one that it begins with, as in `[lang:de] Ich liebe dich`; English
        if it begins with a structure tag such as `[verse]`; `vocal_language`; the detected one. Blank lyrics are the
        published pipeline's instrumental: one id 0 with mask 0. `[inst]` is tokenized, as the model has learnt it.

        Raises ParameterError for a language that is not one of `LANGUAGES`.
        """
        given = parse_language(vocal_language) if vocal_language is not None else None
        if not lyrics.strip():
            return LyricTokens(ids=(INSTRUMENTAL_ID,), mask=(0,))
        ids = [self._start_id]
        lines = []
        for number, (text, language, source) in enumerate(self._with_languages(lyrics, given), start=1):
            if text:
                spelling = self._cleaner.clean(text, language)
                line_ids = tuple(self._encode_spelling(spelling, language))
                lines.append(LyricLine(number, text, language, source, spelling, line_ids))
                ids.extend(line_ids)
            ids.append(self._space_id)
        return LyricTokens(tuple(ids), (1,) * len(ids), tuple(lines))

    def _with_languages(self, lyrics: str, given: Language | None) -> list[tuple[str, Language, LanguageSource]]:
        """Each line stripped, with its language and why."""
        lines: list[tuple[str, Language | None, LanguageSource]] = []
        for number, line in enumerate(lyrics.split("\n"), start=1):
            text = line.strip()
            if prefix := _LANGUAGE_PREFIX.match(text):
                language = parse_language(prefix[1], field="lyrics", where=f"line {number}: ")
                lines.append((text[prefix.end() :], language, "given"))
            elif _STRUCTURE_TAG.match(text):
                lines.append((text, "en", "tag"))
            else:
                lines.append((text, given, "given" if given else "detected"))
        detected = iter(self._detector.detect([text for text, known, _ in lines if known is None]))
        return [(text, next(detected) if known is None else known, source) for text, known, source in lines]

    def _special_id(self, token: str) -> int:
        token_id: int | None = self._vocabulary.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"the lyric vocabulary has no token {token}")
        if self._vocabulary.encode(token).ids != [token_id]:
            raise CheckpointError(f"the lyric vocabulary does not read {token} as one special token")
        return token_id
