"""Which language each line of a song is in.

The script decides where it can: kana is Japanese, Hangul Korean, Han Chinese, Devanagari Hindi, Arabic letters Arabic,
Cyrillic Russian. Between the eleven languages in Latin letters py3langid decides. A line that does not say enough on
its own is read in the light of the clear lines of the same song:

- Latin letters with no language at `_CLEAR` or more: the likeliest of the song's clear languages in Latin letters,
  unless another one is three times as likely; the likeliest of all if there is no clear line.
- Han characters that Japanese has, all of them, and no kana: as the nearest line that is certainly Japanese (it has
  kana) or certainly Chinese (it has a character such as 你 or 爱, which Japanese lacks). Chinese if there is none.
- No letters, too few to tell, or only "la la", "oh", "hey" and the like: the language of most of the song's other
  lines, else English. Of several that are as frequent, the nearest line's, the one before first. So is a line in
  another script, which the lyric vocabulary does not have.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Protocol

from acestep_engine.languages import LANGUAGES, Language

_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa\u31f0-\u31ff\uff66-\uff6f\uff71-\uff9d]")
_HAN = re.compile(r"[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_SCRIPTS: dict[Language, re.Pattern[str]] = {
    "ja": _KANA,
    "ko": re.compile(r"[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]"),
    "hi": re.compile(r"[\u0900-\u0963\u0971-\u097f]"),
    "ar": re.compile(r"[\u0620-\u064a\u066e-\u06d3\u0750-\u077f\u08a0-\u08c9\ufb50-\ufdfb\ufe70-\ufefc]"),
    "ru": re.compile(r"[\u0400-\u0481\u048a-\u052f]"),
}
_NOT_LATIN = frozenset((*_SCRIPTS, "zh"))
_LATIN_LANGUAGES: tuple[Language, ...] = tuple(language for language in LANGUAGES if language not in _NOT_LATIN)
_LATIN = re.compile(r"[a-zA-Z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]")
_LATIN_WORD = re.compile(rf"(?:{_LATIN.pattern}|')+")
_VOCALISE = re.compile(  # possessive: "mmmmmx" is refused at once
    r"[aeiouh']++|y(?:e?a+h?|o+|e+)|he+y+|(?:la|na|da|ba|du?m|doo|sha|wo++a?h*+|hm++|m++|u++h|sh)++"
)

# Windows' code page has JIS X 0208 and the variants of names, such as 髙. It lacks four characters of schools.
_JAPANESE_CODE_PAGE = "cp932"
_JAPANESE_BESIDE_CODE_PAGE = "剝塡頰𠮟"
_CLEAR = 0.6  # of 374 lines of lyrics tried, py3langid got all above it right and 14 below it wrong
_FAINT = 0.12  # below it there is next to no evidence; eleven equally likely languages have 0.09
_FAR_LIKELIER = 3.0


class _Classifier(Protocol):
    def rank(self, instance: str) -> list[tuple[Language, float]]: ...


class LanguageDetector:
    """Detects languages; deterministic, safe to call from many threads. The first line in Latin letters loads
    py3langid: half a second, 75 MB.
    """

    def __init__(self) -> None:
        self._lock = Lock()

    def detect(self, lines: Sequence[str], known: Sequence[Language | None] | None = None) -> list[Language]:
        """Return one language for each line of a song; `lines` are in order and hold no structure tags.

        `known` holds the languages that were asked for, one for each line; they stay, and the other lines are read in
        their light too.
        """
        known = known or [None] * len(lines)
        found = [language or _by_script(line) for language, line in zip(known, lines, strict=True)]
        votes = {i: self._rank(line) for i, line in enumerate(lines) if found[i] is None and _says_something(line)}
        clear = {language for language, probability in map(_likeliest, votes.values()) if probability >= _CLEAR}
        clear |= {language for language in known if language in _LATIN_LANGUAGES}
        for i, vote in votes.items():
            if _likeliest(vote)[1] >= _FAINT:
                found[i] = _in_song(vote, clear)
        _place_han(lines, found, known)
        return [language or near or "en" for language, near in zip(found, _nearest(_majority(found)), strict=True)]

    def _rank(self, line: str) -> Mapping[Language, float]:
        with self._lock:
            classifier = self._classifier
        return dict(classifier.rank(line))

    @cached_property
    def _classifier(self) -> _Classifier:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        classifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        classifier.set_languages(_LATIN_LANGUAGES)
        checked: _Classifier = classifier
        return checked


def _by_script(line: str) -> Language | None:
    """The language of a line in a script that only one of our languages uses; None for Latin and no letters."""
    counts = {language: len(script.findall(line)) for language, script in _SCRIPTS.items()}
    language = max(counts, key=lambda language: counts[language])
    if _HAN.search(line) and not (counts["ja"] or counts["ko"]):
        return "zh"
    return language if counts[language] else None


def _says_something(line: str) -> bool:
    words = _LATIN_WORD.findall(line.lower())
    return any(len(word) > 1 and not _VOCALISE.fullmatch(word) for word in words)


def _likeliest(vote: Mapping[Language, float]) -> tuple[Language, float]:
    return max(vote.items(), key=lambda item: item[1])


def _in_song(vote: Mapping[Language, float], clear: set[Language]) -> Language:
    language, probability = _likeliest(vote)
    if probability >= _CLEAR or not clear:
        return language
    candidate, likelihood = _likeliest({language: vote[language] for language in sorted(clear)})
    return candidate if likelihood * _FAR_LIKELIER >= probability else language


def _majority(found: Sequence[Language | None]) -> list[Language | None]:
    """Keep the languages that most lines are in: one, or several that are as frequent."""
    counts = Counter(language for language in found if language is not None)
    most = max(counts.values(), default=0)
    return [language if language is not None and counts[language] == most else None for language in found]


def _place_han(lines: Sequence[str], found: list[Language | None], known: Sequence[Language | None]) -> None:
    """Give the lines that may be Chinese or Japanese the language of the song's nearest line that is certainly one."""
    unsure = {i for i, line in enumerate(lines) if known[i] is None and found[i] == "zh" and _may_be_japanese(line)}
    if unsure:
        sure = [language if language in ("ja", "zh") and i not in unsure else None for i, language in enumerate(found)]
        near = _nearest(sure)
        for i in unsure:
            found[i] = near[i] or "zh"


def _may_be_japanese(line: str) -> bool:
    """Return whether Japanese has all Han characters of a line: simplified Chinese has others."""
    han = {c for c in _HAN.findall(line) if c not in _JAPANESE_BESIDE_CODE_PAGE}
    try:
        "".join(han).encode(_JAPANESE_CODE_PAGE)
    except UnicodeEncodeError:
        return False
    return True


def _nearest(found: Sequence[Language | None]) -> list[Language | None]:
    """For each line its own language, or that of the closest line that has one; of two as close, the one before."""
    near: list[Language | None] = []
    before, after = _steps_to_last(found), _steps_to_last(found[::-1])[::-1]
    for i, (back, ahead) in enumerate(zip(before, after, strict=True)):
        if back is None or (ahead is not None and ahead < back):
            near.append(None if ahead is None else found[i + ahead])
        else:
            near.append(found[i - back])
    return near


def _steps_to_last(found: Sequence[Language | None]) -> list[int | None]:
    steps: list[int | None] = []
    for language in found:
        last = steps[-1] if steps else None
        steps.append(0 if language is not None else None if last is None else last + 1)
    return steps
