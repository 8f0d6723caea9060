"""A job's row as JSON texts, one for each of its fields, and back."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from acestep_engine.params import Adapter, GenerationParams
from deployments.messages import SongResult
from deployments.store.protocol import Callback, JobRow, StoreFormatError


def to_json(value: object) -> str:
    """JSON of plain values and of dataclasses."""
    return json.dumps(value, default=dataclasses.asdict)


def to_texts(row: JobRow) -> dict[str, str]:
    """Every field of a row as JSON, by its name."""
    return {field.name: to_json(getattr(row, field.name)) for field in dataclasses.fields(row)}


def from_texts(texts: Mapping[str, str]) -> JobRow:
    return row_of({name: json.loads(text) for name, text in texts.items()})


def row_of(values: Mapping[str, Any]) -> JobRow:
    """Return the row that its fields' JSON describes. Raises StoreFormatError for fields of another version."""
    try:
        return JobRow(
            **{
                **values,
                "songs": tuple(_song(song) for song in values["songs"]),
                "results": tuple(SongResult(**result) for result in values["results"]),
                "output_paths": tuple(values["output_paths"]),
                "callback": None if values["callback"] is None else Callback(**values["callback"]),
            }
        )
    except (TypeError, KeyError) as error:
        request_id = values.get("request_id")
        raise StoreFormatError(f"the job {request_id} in the store was not written by this version: {error}") from error


def _song(values: dict[str, Any]) -> GenerationParams:
    adapter = values.get("adapter")
    read = {"oss_steps": tuple(values["oss_steps"]), "adapter": None if adapter is None else Adapter(**adapter)}
    return GenerationParams(**values | read)
