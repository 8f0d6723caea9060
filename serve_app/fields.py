"""How one field of a request is read and checked: its type, its limits, and the sentence that says what is wrong."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from acestep_engine.errors import ParameterError
from acestep_engine.languages import LANGUAGES, parse_language
from acestep_engine.lyrics import check_languages, check_length
from acestep_engine.params import MAX_DURATION_S, MAX_SEED, MAX_STEPS, AudioFormat, CfgType, SchedulerType
from serve_app.printable import show

MIN_DURATION_S = 1.0
MAX_SEEDS_LISTED = 64
MAX_LYRICS = 10_000  # characters
MAX_LISTED = 200  # entries of a list that are looked at
LORA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NO_ADAPTER = "none"  # what lora_name_or_path says for none


@dataclass(frozen=True)
class FieldProblem:
    """One thing wrong with a request: the field's HTTP name and a sentence with its value and the limit."""

    field: str
    problem: str


class InvalidRequestError(Exception):
    """The fields of a request do not make a request."""

    def __init__(self, *problems: FieldProblem) -> None:
        super().__init__(*problems)
        self.problems = problems


def invalid(field: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(FieldProblem(field, problem))


def refuse(problem: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{problem}", {"problem": problem})


NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
EXACT_FLOAT = 2.0**53  # up to here a float holds every whole number


def number(value: object) -> float:
    """Read a number, or a text that writes one. Raises PydanticCustomError for what is none, NaN or infinity."""
    if isinstance(value, str):
        text = value.strip()
        if NUMBER.fullmatch(text) is None:
            raise refuse(f"{show(value)} is not a number")
        parsed = float(text)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(f"{show(value)} is not a number")
    else:
        try:
            parsed = float(value)
        except OverflowError:
            raise refuse(f"{show(value)} is not a number this service can hold") from None
    if not math.isfinite(parsed):
        raise refuse(f"{show(value)} is not a finite number")
    return parsed


def whole(value: object) -> int:
    """Read a whole number: 42, 42.0, "42", "4.2e1". Raises PydanticCustomError for what is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and INTEGER.fullmatch(value.strip()):
        return int(value)  # exact, where a float of 17 digits and more is not
    parsed = number(value)
    if not parsed.is_integer():
        raise refuse(f"{show(value)} is not a whole number")
    if abs(parsed) > EXACT_FLOAT:
        raise refuse(f"{show(value)} is too large to be exact in this form: write all of its digits, without a point")
    return int(parsed)


FLAGS: Mapping[object, bool] = {
    **dict.fromkeys(("true", "on", "yes", "1", 1), True),
    **dict.fromkeys(("false", "off", "no", "0", 0), False),
}


def flag(value: object) -> bool:
    """Read a switch: true, 1, "true", "on", "yes", and their opposites. Raises PydanticCustomError for others."""
    known = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(known, str | int | float) or known not in FLAGS:
        raise refuse(f"{show(value)} is neither true nor false")
    return FLAGS[known]


def lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def format_name(value: object) -> object:
    """Read a format as it is written in names of files too: "MP3", ".mp3"."""
    name = lower(value)
    return name.removeprefix(".") if isinstance(name, str) else name


BAD_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # C0 and DEL, but not tab and line ends


def clean_text(text: str) -> str:
    """Refuse control characters but tab and line ends. The text stays as it came; pydantic refuses lone surrogates."""
    found = BAD_CHARACTERS.search(text)
    if found is not None:
        raise refuse(f"has the control character U+{ord(found[0]):04X} at position {found.start()}")
    return text


def lyrics(text: str) -> str:
    """The lyrics, with VT and FF as the line ends that they are. Refuses a `[lang:xx]` of an unknown language."""
    text = clean_text(text.replace("\v", "\n").replace("\f", "\n"))
    try:
        check_languages(text)
    except ParameterError as error:
        raise refuse(error.problem) from None
    return text


def song_lyrics(text: str) -> str:
    """Refuse lyrics that no vocabulary can read in few enough tokens."""
    try:
        check_length(text)
    except ParameterError as error:
        raise refuse(error.problem) from None
    return text


def _integers(value: object, what: str) -> tuple[int, ...] | None:
    """Read '1, 2', '[1, 2]', 1, [1, 2] or null as a tuple; blank text is null."""
    if value is None:
        return None
    parts = _listed_in(value) if isinstance(value, str) else [*value] if isinstance(value, list | tuple) else [value]
    numbers = []
    for part in parts[: MAX_LISTED + 1]:
        try:
            numbers.append(whole(part))
        except PydanticCustomError:
            expected = "expected whole numbers, separated by commas, or a list of them"
            raise refuse(f"{show(part)} is not {what}: {expected}") from None
    return tuple(numbers) or None


def _listed_in(text: str) -> list[object]:
    """Split a text at its commas. It may be a list as JSON writes one, and end with a comma."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    if not text:
        return []
    parts = [part.strip() for part in text.split(",", MAX_LISTED + 1)]
    if not parts[-1]:
        parts.pop()
    return [part[1:-1] if len(part) > 1 and part[0] == part[-1] == '"' else part for part in parts]


def seeds(value: object) -> tuple[int, ...] | None:
    listed = _integers(value, "a seed")
    if listed is None:
        return None
    if len(listed) > MAX_SEEDS_LISTED:
        raise refuse(f"lists {len(listed)} seeds or more, over the limit of {MAX_SEEDS_LISTED}")
    for seed in listed:
        if not -1 <= seed <= MAX_SEED:
            raise refuse(f"{show(seed)} is not a seed: from 0 to {MAX_SEED}, or -1 to draw one")
    return listed


def oss_steps(value: object) -> tuple[int, ...] | None:
    if isinstance(value, int | float):  # meant as their number, it would make a song of this one step
        raise refuse(f"{show(value)} is no list: name each step to run; how many there are is infer_step")
    steps = _integers(value, "a step")
    if steps is None:
        return None
    for before, step in zip((0, *steps), steps, strict=False):
        if not 1 <= step <= MAX_STEPS:
            raise refuse(f"{show(step)} is not a step: from 1 to {MAX_STEPS}")
        if step <= before:
            raise refuse(f"{step} follows {before}: steps must increase")
    return steps


def duration(seconds: float) -> float:
    """Refuse what is over the limit. 0 and less draw a length; how short a song may be depends on its task."""
    if seconds <= MAX_DURATION_S:
        return seconds
    raise refuse(f"{show(seconds)} s is outside {MIN_DURATION_S:g} to {MAX_DURATION_S:g} s (or -1, which draws one)")


def vocal_language(name: str) -> str:
    try:
        return parse_language(name)
    except ParameterError as error:
        raise refuse(error.problem) from None


def lora_name(name: str) -> str:
    if LORA_NAME.fullmatch(name) is None or name.lower() == NO_ADAPTER:
        raise refuse(f"{show(name)} is no name: 1 to 64 letters, digits, dots, dashes and underscores, and not 'none'")
    return name


def adapter_name(name: str) -> str:
    return NO_ADAPTER if name.strip().lower() in ("", NO_ADAPTER) else name.strip()


def no_language(value: object) -> object:
    """Read the words of other clients for a language that is to be detected."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "auto", "unknown") else value


def blank_is_null(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


Number = Annotated[float, BeforeValidator(number)]
Whole = Annotated[int, BeforeValidator(whole)]
Flag = Annotated[bool, BeforeValidator(flag)]
Text = Annotated[str, AfterValidator(clean_text)]
Lyrics = Annotated[str, Field(max_length=MAX_LYRICS), AfterValidator(lyrics)]  # the length first: it bounds the work
SongLyrics = Annotated[Lyrics, AfterValidator(song_lyrics)]
OptionalText = Annotated[Text | None, BeforeValidator(blank_is_null)]
Format = Annotated[AudioFormat, BeforeValidator(format_name)]
Scheduler = Annotated[SchedulerType, BeforeValidator(lower)]
Guidance = Annotated[CfgType, BeforeValidator(lower)]
VocalLanguage = Annotated[
    Annotated[Text, AfterValidator(vocal_language)] | None,
    BeforeValidator(no_language),
    WithJsonSchema({"anyOf": [{"type": "string", "enum": [*LANGUAGES]}, {"type": "null"}]}),
]
LoraName = Annotated[Text, AfterValidator(lora_name)]
AdapterName = Annotated[Text, AfterValidator(adapter_name)]

_WHOLE = {"type": "integer", "format": "int64"}  # without it, generators of clients take 32 bits
_LISTED = [{"type": "string"}, {"type": "array", "items": _WHOLE}, {"type": "null"}]
_SEEDS_SCHEMA = {"oneOf": [_WHOLE | {"minimum": -1}, *_LISTED]}
_DURATION_SCHEMA = {"type": "number", "minimum": -1, "maximum": MAX_DURATION_S}
Seeds = Annotated[tuple[int, ...] | None, BeforeValidator(seeds), WithJsonSchema(_SEEDS_SCHEMA)]
OssSteps = Annotated[tuple[int, ...] | None, BeforeValidator(oss_steps), WithJsonSchema({"oneOf": _LISTED})]
Duration = Annotated[Number, AfterValidator(duration), WithJsonSchema(_DURATION_SCHEMA)]
