"""Numbers to words, for the languages whose numbers num2words reads: every one that is spelled out but Chinese.

The order is the published tokenizer's: separators of thousands, currencies, decimals, ordinals, plain numbers. Its
patterns try a number again from each of its digits, which takes minutes for a number of some thousand digits; ours
find the same matches in one pass, with a lookbehind to the first character and possessive repetition.
"""

import decimal
import re
import threading
from collections.abc import Callable
from functools import partial

from acestep_engine.languages import Language
from acestep_engine.lyrics.spelling import CENTS_JOINER, ORDINALS

_COMMA_THOUSANDS = re.compile(r"\b\d{1,3}(?:,\d{3})*(?:\.\d+)?\b")
_DOT_THOUSANDS = re.compile(r"\b\d{1,3}(?:.\d{3})*(?:,\d+)?\b")  # any character may stand between the groups
_DECIMAL = re.compile(r"(?<![0-9])[0-9]++[.,][0-9]++")
_NUMBER = re.compile(r"[0-9]++")
_CURRENCIES = {
    code: re.compile(rf"{symbol}[0-9.,]*[0-9]|(?<![0-9.,])[0-9.,]*+(?<=[0-9]){symbol}")
    for code, symbol in (("GBP", "£"), ("USD", r"\$"), ("EUR", "€"))
}

# What num2words raises for a number that is too long, or a currency or a form that a language does not have.
# RuntimeError is RecursionError (Hungarian) and NotImplementedError (Czech).
_NUM2WORDS_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class NumberReader:
    """Reads the numbers of a line aloud. num2words' converters keep state between calls, hence the lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def expand(self, text: str, language: Language) -> str:
        """`text` with its numbers as words. As published, all of them stay as they are if one cannot be read."""
        # num2words raises the thread's decimal precision for a long Arabic number, which would change later results
        with self._lock, decimal.localcontext(decimal.Context()):
            try:
                return _expand(text, language)
            except _NUM2WORDS_ERRORS:
                return text


def _expand(text: str, language: Language) -> str:
    from num2words import num2words  # loads a class for each of 50 languages

    code = "cz" if language == "cs" else language  # as published; num2words now says "cs" and reads no Czech number

    def words(value: float, **options: object) -> str:
        return str(num2words(value, lang=code, **options))

    if language in ("en", "ru"):
        text = _COMMA_THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    else:
        text = _DOT_THOUSANDS.sub(lambda match: match[0].replace(".", ""), text)
    text = _expand_currencies(text, language, words)
    if language != "tr":
        text = _DECIMAL.sub(lambda match: words(float(match[0].replace(",", "."))), text)
    text = ORDINALS[language].sub(lambda match: words(int(match[1]), ordinal=True), text)
    return _NUMBER.sub(lambda match: words(int(match[0])), text)


def _expand_currencies(text: str, language: Language, words: Callable[..., str]) -> str:
    """$20 or 20$ to words, for £, $ and € in this order. One that cannot be read leaves itself and those after it."""

    def amount(match: re.Match[str], code: str) -> str:
        value = float(match[0].strip("£$€").replace(",", "."))
        spoken = words(value, to="currency", currency=code)
        without_cents, joiner, _ = spoken.rpartition(CENTS_JOINER[language])
        return without_cents if joiner and value.is_integer() else spoken

    try:
        for code, pattern in _CURRENCIES.items():
            text = pattern.sub(partial(amount, code=code), text)
    except _NUM2WORDS_ERRORS:
        return text
    return text
