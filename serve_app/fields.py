"""How one field of a request is read and checked: its type, its limits, and the sentence that says what is wrong."""

import math
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from acestep_engine.errors import ParameterError
from acestep_engine.languages import LANGUAGES, parse_language
from acestep_engine.lyrics import check_languages
from acestep_engine.params import MAX_DURATION_S, MAX_SEED, MAX_STEPS, AudioFormat
from serve_app.printable import show

MIN_DURATION_S = 1.0
MAX_SEEDS_LISTED = 64
MAX_LYRICS = 10_000  # characters
MAX_LISTED = 200  # entries of a list that are looked at
LORA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NO_ADAPTER = "none"  # what lora_name_or_path says for none
CONTEXT_FORM = "form"  # validation context: values are a form's strings, not JSON


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


def _form_text(value: object, info: ValidationInfo) -> str | None:
    """The stripped string when it comes from a form; None where the value is JSON."""
    from_form = bool(info.context and info.context.get(CONTEXT_FORM))
    return value.strip() if from_form and isinstance(value, str) else None


def number(value: object, info: ValidationInfo) -> float:
    text = _form_text(value, info)
    if text is None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise refuse(f"{show(value)} is not a number")
    try:
        parsed = float(text if text is not None else value)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        raise refuse(f"{show(value)} is not a number this service can hold") from None
    if not math.isfinite(parsed):
        raise refuse(f"{show(value)} is not a finite number")
    return parsed


def whole(value: object, info: ValidationInfo) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    parsed = number(value, info)
    if not parsed.is_integer():
        raise refuse(f"{show(value)} is not a whole number")
    return int(parsed)


FORM_FLAGS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


def flag(value: object, info: ValidationInfo) -> bool:
    if isinstance(value, bool):
        return value
    text = _form_text(value, info)
    if text is None or text.lower() not in FORM_FLAGS:
        raise refuse(f"{show(value)} is neither true nor false")
    return FORM_FLAGS[text.lower()]


def lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


BAD_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # C0 and DEL, but not tab and line ends


def clean_text(text: str) -> str:
    """The text as it came. Refuses control characters; tab, LF and CR may stay. (Pydantic refuses lone surrogates.)"""
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


INTEGER = re.compile(r"[+-]?[0-9]{1,20}")


def _integers(value: object, what: str) -> tuple[int, ...] | None:
    """'1, 2', 1, [1, 2] or null to a tuple; blank text is null."""
    if value is None:
        return None
    if isinstance(value, str):
        if not value.strip():
            return None
        parts: list[object] = [*value.split(",", MAX_LISTED + 1)]
    else:
        parts = [*value] if isinstance(value, list | tuple) else [value]
    if not parts:
        return None
    numbers = []
    for part in parts[: MAX_LISTED + 1]:
        if isinstance(part, str) and INTEGER.fullmatch(part.strip()):
            numbers.append(int(part))
        elif isinstance(part, int) and not isinstance(part, bool):
            numbers.append(part)
        else:
            raise refuse(f"{show(part)} is not {what}: expected whole numbers, separated by commas, or a list of them")
    return tuple(numbers)


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
    if seconds == -1 or MIN_DURATION_S <= seconds <= MAX_DURATION_S:
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


def blank_is_null(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


Number = Annotated[float, BeforeValidator(number)]
Whole = Annotated[int, BeforeValidator(whole)]
Flag = Annotated[bool, BeforeValidator(flag)]
Text = Annotated[str, AfterValidator(clean_text)]
Lyrics = Annotated[str, Field(max_length=MAX_LYRICS), AfterValidator(lyrics)]  # the length first: it bounds the work
OptionalText = Annotated[Text | None, BeforeValidator(blank_is_null)]
Format = Annotated[AudioFormat, BeforeValidator(lower)]
VocalLanguage = Annotated[
    Annotated[Text, AfterValidator(vocal_language)] | None,
    BeforeValidator(blank_is_null),
    WithJsonSchema({"anyOf": [{"type": "string", "enum": [*LANGUAGES]}, {"type": "null"}]}),
]
LoraName = Annotated[Text, AfterValidator(lora_name)]
AdapterName = Annotated[Text, AfterValidator(adapter_name)]

_INTEGERS = [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}, {"type": "null"}]
_SEEDS_SCHEMA = {"anyOf": [{"type": "integer", "minimum": -1, "maximum": MAX_SEED}, *_INTEGERS]}
_DURATION_SCHEMA = {
    "type": "number",
    "anyOf": [{"const": -1}, {"minimum": MIN_DURATION_S, "maximum": MAX_DURATION_S}],
}
Seeds = Annotated[tuple[int, ...] | None, BeforeValidator(seeds), WithJsonSchema(_SEEDS_SCHEMA)]
OssSteps = Annotated[tuple[int, ...] | None, BeforeValidator(oss_steps), WithJsonSchema({"anyOf": _INTEGERS})]
Duration = Annotated[Number, AfterValidator(duration), WithJsonSchema(_DURATION_SCHEMA)]
