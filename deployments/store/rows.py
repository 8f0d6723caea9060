"""A job's row as JSON texts, one for each of its fields, and back."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from acestep_engine.params import Adapter, GenerationParams
from deployments.failures import INTERNAL
from deployments.messages import SongResult
from deployments.store.protocol import Callback, JobRow, StoreFormatError

DAMAGED = "what was kept of this job cannot be read any more: send the request again"

logger = logging.getLogger("ray.serve")


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
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        request_id = values.get("request_id")
        raise StoreFormatError(f"the job {request_id} in the store was not written by this version: {error}") from error


def row_or_failed(read: Callable[[], JobRow], request_id: str, kept: Mapping[str, Any]) -> JobRow:
    """Return the row that `read` answers, or that of a failed job where it cannot be read.

    So one damaged row costs one job, and the store stays as it is. `kept` are fields that may still be sound.
    """
    try:
        return read()
    except (StoreFormatError, ValueError) as error:
        logger.error("the row of job %s cannot be read, so that the job has failed: %s", request_id, error)
    created_at, key, digest = (kept.get(name) for name in ("created_at", "key", "request_digest"))
    return JobRow(
        request_id=request_id,
        status="failed",
        created_at=created_at if isinstance(created_at, float) else 0.0,
        songs=(GenerationParams("", "", 1.0, seed=0),),
        audio_format="wav",
        request_json={},
        key=key if isinstance(key, str) else request_id,
        request_digest=digest if isinstance(digest, str) else "",
        completed_at=created_at if isinstance(created_at, float) else 0.0,
        outcome="failed",
        error=DAMAGED,
        error_code=INTERNAL.code,
    )


def _song(values: dict[str, Any]) -> GenerationParams:
    adapter = values.get("adapter")
    read = {"oss_steps": tuple(values["oss_steps"]), "adapter": None if adapter is None else Adapter(**adapter)}
    return GenerationParams(**values | read)
