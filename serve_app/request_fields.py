"""The fields of a body under our own names: other names are translated, what means nothing is set aside.

The published pipeline writes `*_input_params.json` beside each song. Such a file is a request, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

from acestep_engine.params import TASKS
from serve_app.fields import InvalidRequestError, invalid, number
from serve_app.names import ALIASES, IGNORED
from serve_app.printable import show
from serve_app.resolve import FIELDS_OF_TASKS
from serve_app.schemas import GenerateRequest, parse_generate

# The published pipeline writes both into its files; no form and no other client has them.
MARKS_OF_PUBLISHED_FILES = ("actual_seeds", "timecosts")

NOTHING = (None, "")  # of two names of a field, one that says nothing gives way


@dataclass(frozen=True)
class RequestFields:
    """Fields by the request model's names.

    `sent_as` has the client's name of a field where it is another. `ignored` are the names of what means nothing.
    """

    fields: dict[str, object]
    sent_as: Mapping[str, str]
    ignored: tuple[str, ...]


def translate(sent: Mapping[str, object]) -> RequestFields:
    """Translate the names of a body's fields. Raises InvalidRequestError for two names of a field that disagree."""
    is_published = any(name in sent for name in MARKS_OF_PUBLISHED_FILES)
    fields: dict[str, object] = {}
    sent_as: dict[str, str] = {}
    ignored: list[str] = []
    for name, value in sent.items():
        if name in IGNORED:
            ignored.append(name)
            continue
        ours = ALIASES.get(name, name)
        if name != ours and value is None:
            continue
        if name == "actual_seeds" and isinstance(value, list) and sent.get("batch_size") in (None, 1):
            value = value[:1]  # the published pipeline lists the seeds of all songs of a batch beside each of them
        if fields.get(ours) in NOTHING:
            fields[ours], sent_as[ours] = value, name
        elif value not in NOTHING and not _same(ours, fields[ours], value):
            raise invalid(name, f"{show(value)} is not what {sent_as[ours]} says, another name of it: send one of them")
    if is_published:
        ignored += _without_other_tasks(fields)
    return RequestFields(fields, sent_as, tuple(ignored))


def _same(name: str, one: object, other: object) -> bool:
    """Return whether two values of a field mean the same. One that is refused is left to the request model."""
    try:
        first, second = (getattr(parse_generate({name: value}), name) for value in (one, other))
    except InvalidRequestError:
        return one == other
    return bool(first == second)


def _without_other_tasks(fields: dict[str, Any]) -> list[str]:
    """Remove what the published pipeline writes of tasks that a song is not made by; the names of what was removed.

    It has no field for the seconds of an extension: they are a range that begins before the song or ends behind it.
    """
    task = fields.get("task", "text2music")
    if task == "extend" and "left_extend_length" not in fields and "right_extend_length" not in fields:
        fields |= _extension(fields)
    others = [name for name, tasks in FIELDS_OF_TASKS.items() if name in fields and task in TASKS and task not in tasks]
    removed = {name: fields.pop(name) for name in others}
    return [name for name, value in removed.items() if value is not None and value != _default(name)]


def _extension(fields: Mapping[str, object]) -> dict[str, float]:
    """The seconds before and after a song, of a range that reaches past its ends."""
    try:
        start_s, end_s, length_s = (
            number(fields.get(name) or 0.0) for name in ("repaint_start", "repaint_end", "audio_duration")
        )
    except PydanticCustomError:
        return {}  # the request model says which of them is no number
    return {"left_extend_length": max(0.0, -start_s), "right_extend_length": max(0.0, end_s - length_s)}


def _default(name: str) -> object:
    return GenerateRequest.model_fields[name].default
