"""The languages a lyric line can be sung in."""

from collections.abc import Mapping
from typing import Literal, get_args

from acestep_engine.errors import ParameterError

Language = Literal[
    "en", "de", "fr", "es", "it", "pt", "pl", "tr", "ru", "cs", "nl", "ar", "zh", "ja", "hu", "ko", "hi"
]  # fmt: skip
LANGUAGES: tuple[Language, ...] = get_args(Language)


# Other ways to write a language. Some are codes of countries, which people take for those of their languages.
LANGUAGE_NAMES: Mapping[str, Language] = {
    "english": "en",
    "german": "de",
    "deutsch": "de",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "portuguese": "pt",
    "polish": "pl",
    "turkish": "tr",
    "russian": "ru",
    "czech": "cs",
    "cz": "cs",
    "dutch": "nl",
    "arabic": "ar",
    "chinese": "zh",
    "mandarin": "zh",
    "cn": "zh",
    "japanese": "ja",
    "jp": "ja",
    "hungarian": "hu",
    "korean": "ko",
    "kr": "ko",
    "hindi": "hi",
}


def parse_language(name: str, field: str = "vocal_language", where: str = "") -> Language:
    """`name` as one of `LANGUAGES`; case and a region ("zh-CN", "pt_BR") do not matter. English names are read, too.

    Raises ParameterError for `field`, its problem starting with `where`, if there is no such language.
    """
    language = name.strip().lower().replace("_", "-").partition("-")[0]
    language = LANGUAGE_NAMES.get(language, language)
    if language not in LANGUAGES:
        raise ParameterError(field, f"{where}{name[:40]!r} is no language of lyrics; they are {', '.join(LANGUAGES)}")
    return language


def language_token(language: Language) -> str:
    """The name in the vocabulary of the token that opens a line in `language`."""
    return "[zh-cn]" if language == "zh" else f"[{language}]"
