"""Why a job did not end well: what a client is told, and whether another replica should try again."""

import logging
from dataclasses import dataclass

from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from acestep_engine.errors import (
    AdapterChangedError,
    AdapterError,
    AudioError,
    AudioTooLargeError,
    CheckpointError,
    EngineError,
    NumericalError,
    RequestError,
)
from deployments.messages import ServiceError

MEMORY_KILL_SIGNS = ("OUT_OF_MEMORY", "running low on memory")  # in what Ray says of an actor's death


class RenderError(Exception):
    """A Generator could not make this song for a reason of its own.

    RenderError
    ├── LatentSpaceError     the latents that the song was to begin from were made by another model
    ├── GpuMemoryError       the song does not fit the memory, not even alone and after freeing all that can be freed
    └── SharedStepError      a step that it shared with other songs failed; another attempt may do better
    """


class LatentSpaceError(RenderError): ...


class GpuMemoryError(RenderError): ...


class SharedStepError(RenderError): ...


@dataclass(frozen=True)
class Failure:
    """`code` is a stable word for programs, `sentence` what a person reads: nothing internal in it."""

    code: str
    sentence: str


CANCELLED = Failure("cancelled", "Cancelled by user")
CLIENT_LEFT = Failure("cancelled", "The client disconnected")
EXPIRED = Failure("expired", "the result is no longer kept")
STORAGE = Failure("storage", "the song could not be written: the server's disk is full or may not be written")
SOURCE_LOST = Failure("storage", "the uploaded audio is no longer there")
INTERNAL = Failure("internal_error", "something failed inside the service; its log has the details")


def timed_out(timeout_s: float) -> Failure:
    return Failure("timeout", f"timed out after {timeout_s:g} s")


def killed_for_memory(times: int) -> Failure:
    sentence = f"the process that made this song was stopped {times} times because its machine ran out of memory"
    return Failure("replica_lost", f"{sentence}; it was not tried again")


def gave_up(attempts: int) -> Failure:
    return Failure("replica_lost", f"the process that made this song stopped {attempts} times; it was not tried again")


def cause_of(error: BaseException) -> BaseException:
    """What was raised in the replica, without the wrappers of the processes it crossed."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) and error.cause is not error:
        error = error.cause
    return error


def is_replica_loss(cause: BaseException) -> bool:
    """Whether the replica, its node or what it held is gone, so that another one may do better."""
    if isinstance(cause, RayTaskError):
        return False
    return isinstance(cause, RayError | RayServeException | SharedStepError)


def is_memory_kill(cause: BaseException) -> bool:
    """Return whether Ray's memory monitor ended the replica, because its machine ran out of memory."""
    if isinstance(cause, RayTaskError):
        return False
    return isinstance(cause, OutOfMemoryError) or (
        isinstance(cause, ActorDiedError) and any(sign in str(cause) for sign in MEMORY_KILL_SIGNS)
    )


def explain(cause: BaseException) -> Failure | None:
    """What to tell the client, or None for an error that nobody foresaw."""
    match cause:
        case AudioTooLargeError():
            return Failure("audio_too_large", str(cause))
        case AudioError():
            return Failure("unreadable_audio", str(cause))
        case RequestError():
            return Failure("invalid_request", str(cause))
        case NumericalError():
            return Failure("numerical", str(cause))
        case CheckpointError():  # its text names files of the server
            return Failure("model_unavailable", "the model could not be loaded")
        case AdapterChangedError():
            return Failure("adapter_changed", str(cause))
        case AdapterError():
            return Failure("adapter_unusable", str(cause))
        case LatentSpaceError():
            return Failure("source_of_other_model", str(cause))
        case GpuMemoryError():
            return Failure("out_of_memory", str(cause))
        case EngineError():
            return Failure("generation_failed", str(cause))
        case _:
            return None


def is_unexpected(record: logging.LogRecord) -> bool:
    """Keep a log record, unless it is the traceback of an error that answers a client's mistake.

    Serve logs whatever a method of a replica raises as an error with a traceback.
    """
    return record.exc_info is None or not isinstance(record.exc_info[1], ServiceError | RequestError)
