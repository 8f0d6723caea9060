"""Lyrics to token ids, exactly as the published ACE-Step v1 tokenizer, with a language for each line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from acestep_engine.errors import CheckpointError, CheckpointNotFoundError
from acestep_engine.languages import LANGUAGES, Language, language_token, parse_language
from acestep_engine.lyrics.clean import Cleaner
from acestep_engine.lyrics.detect import LanguageDetector
from acestep_engine.lyrics.lines import WrittenLine, read_lines
from acestep_engine.lyrics.normalize import Folding
from acestep_engine.lyrics.notes import notes_on
from acestep_engine.lyrics.plain import plain_lines

START = "[START]"
SPACE = "[SPACE]"
INSTRUMENTAL_ID = 0  # the published pipeline's id for a song without lyrics, masked out

LanguageSource = Literal["tag", "given", "detected"]


@dataclass(frozen=True)
class LyricLine:
    """One line with text, or a part of it that has a language of its own; its parts follow each other.

    `source` says why it has its language: it is a structure tag, the language was asked for, or it was detected.
    """

    number: int  # from 1, in the lyrics as written; the parts of a line have the same number
    text: str  # plain and stripped, without its `[lang:xx]`
    language: Language
    source: LanguageSource
    spelling: str  # the text as it was cleaned
    ids: tuple[int, ...]  # without the space that ends it
    notes: tuple[str, ...]  # sentences on what was left out or taken for something else, and on brackets read as words


@dataclass(frozen=True)
class LyricTokens:
    """`ids` and `mask` are (N,), N >= 1. `lines` holds the lines with text, in order."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    lines: tuple[LyricLine, ...] = ()


class LyricTokenizer:
    """Turns lyrics into token ids of one checkpoint's vocabulary; safe to call from many threads."""

    def __init__(self, vocabulary: Tokenizer) -> None:
        self._vocabulary = vocabulary
        self._start_id = self._special_id(START)
        self._space_id = self._special_id(SPACE)
        for language in LANGUAGES:
            self._special_id(language_token(language))
        self._tags = _structure_tags(vocabulary)
        self._folding = Folding({token for token in vocabulary.get_vocab() if len(token) == 1})
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
        """Return the published ids of one line in `language`: its language token first, no space at the end.

        The line is taken as it is: it is not normalised, and no language tag is looked for.
        """
        return self._encode_spelling(self._cleaner.clean(line, language), language)

    def _encode_spelling(self, spelling: str, language: Language) -> list[int]:
        text = language_token(language) + spelling
        ids: list[int] = self._vocabulary.encode(text.replace(" ", SPACE)).ids
        return ids

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """What each id stands for; a token that is no id of the vocabulary is empty."""
        return [self._vocabulary.id_to_token(token_id) or "" for token_id in ids]

    def encode(self, lyrics: str, vocal_language: str | None = None) -> LyricTokens:
        """Return the ids of a song: a start token, then each line with a space after it; an empty line is one space.

        Markup, times and headers of files are left out first. Structure tags that begin a line, such as `[verse]`, are
        English. The language of words is, first that applies: the one named before them, as in `[lang:de] Ich liebe
        dich`; `vocal_language`; the detected one. English words stay one line with the tags before them, as published.
        Words of another language are read as a line of their own: `[verse] Ich liebe dich` has the ids of two lines.

        Blank lyrics are the published pipeline's instrumental: one id 0 with mask 0. `[inst]` is tokenized, as the
        model has learnt it.

        Raises ParameterError for a language that is not one of `LANGUAGES`.
        """
        given = parse_language(vocal_language) if vocal_language is not None else None
        normal = [replace(line, text=line.text.translate(self._folding)) for line in plain_lines(lyrics)]
        if not any(line.text.strip() for line in normal):
            return LyricTokens(ids=(INSTRUMENTAL_ID,), mask=(0,))
        written = read_lines(normal)
        languages = iter(self._languages(written, given))
        ids = [self._start_id]
        lines: list[LyricLine] = []
        for line in written:
            parts = list(_parts(line, given, languages))
            for i, (text, language, source) in enumerate(parts):
                spelling = self._cleaner.clean(text, language)
                part_ids = tuple(self._encode_spelling(spelling, language))
                notes = (*(line.notes if i == 0 else ()), *notes_on(text, self._tags))
                lines.append(LyricLine(line.number, text, language, source, spelling, part_ids, notes))
                ids.extend((*part_ids, self._space_id))
            if not parts:
                ids.append(self._space_id)
        return LyricTokens(tuple(ids), (1,) * len(ids), tuple(lines))

    def _languages(self, written: Sequence[WrittenLine], given: Language | None) -> list[Language]:
        """The language of each phrase of a song, in order."""
        phrases = [phrase for line in written for phrase in line.phrases]
        return self._detector.detect([phrase.text for phrase in phrases], [phrase.named or given for phrase in phrases])

    def _special_id(self, token: str) -> int:
        token_id: int | None = self._vocabulary.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"the lyric vocabulary has no token {token}")
        if self._vocabulary.encode(token).ids != [token_id]:
            raise CheckpointError(f"the lyric vocabulary does not read {token} as one special token")
        return token_id


def _parts(
    line: WrittenLine, given: Language | None, languages: Iterator[Language]
) -> Iterator[tuple[str, Language, LanguageSource]]:
    """The parts of a line that are encoded together, with their language and why.

    `languages` are those of the phrases to come.
    """
    tags = line.tags
    for phrase in line.phrases:
        language = next(languages)
        source: LanguageSource = "given" if phrase.named or given else "detected"
        if tags and language != "en":
            yield tags.strip(), "en", "tag"
            tags = ""
        yield tags + phrase.text, language, source
        tags = ""
    if tags:
        yield tags.strip(), "en", "tag"


def _structure_tags(vocabulary: Tokenizer) -> frozenset[str]:
    """The special tokens that lyrics may hold as tags; they are in lower case."""
    tokens = {token.content for token in vocabulary.get_added_tokens_decoder().values()}
    return frozenset(token for token in tokens if token.islower()) - {language_token(code) for code in LANGUAGES}
