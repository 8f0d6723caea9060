"""The languages a lyric line can be sung in."""

from typing import Literal, get_args

from acestep_engine.errors import ParameterError

Language = Literal[
    "en", "de", "fr", "es", "it", "pt", "pl", "tr", "ru", "cs", "nl", "ar", "zh", "ja", "hu", "ko", "hi"
]  # fmt: skip
LANGUAGES: tuple[Language, ...] = get_args(Language)


def parse_language(name: str, field: str = "vocal_language", where: str = "") -> Language:
    """`name` as one of `LANGUAGES`; case and a region ("zh-CN", "pt_BR") do not matter.

    Raises ParameterError for `field`, its problem starting with `where`, if there is no such language.
    """
    language = name.strip().lower().replace("_", "-").partition("-")[0]
    if language not in LANGUAGES:
        raise ParameterError(field, f"{where}{name[:40]!r} is no language of lyrics; they are {', '.join(LANGUAGES)}")
    return language


def language_token(language: Language) -> str:
    """The name in the vocabulary of the token that opens a line in `language`."""
    return "[zh-cn]" if language == "zh" else f"[{language}]"
