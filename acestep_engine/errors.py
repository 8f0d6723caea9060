"""What can go wrong in the engine.

EngineError
├── RequestError              the request cannot be done as asked; the caller must change it
│   ├── ParameterError          a field is out of its range: field, value, limit
│   ├── AudioError              the audio cannot be read: broken, empty, unknown
│   ├── AudioTooLargeError      the audio is longer, wider or faster than the configured bound
│   └── LatentShapeError        latents do not have the shape the decoder takes
├── CheckpointError           a checkpoint folder cannot be used; the message names the file or the tensor
│   ├── CheckpointNotFoundError
│   └── DownloadError
├── AdapterError              a LoRA adapter cannot be used; the message names the file, the tensor or the size
│   ├── AdapterChangedError     its files are not those that the request was accepted with
│   └── AdapterNotLoadedError   it is not on the device
├── NumericalError            the model answered NaN or infinity
└── Cancelled                 the request was aborted between two steps

Every class passes all it was given to `Exception.__init__`, so that it survives pickling between processes.
"""


class EngineError(Exception):
    """Base of everything the engine raises on purpose."""


class RequestError(EngineError):
    """The request cannot be done as asked."""


class ParameterError(RequestError):
    """A field is out of its range. `field` is its HTTP name, `problem` a sentence with the value and the limit."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class AudioError(RequestError):
    """The audio cannot be read."""


class AudioTooLargeError(RequestError):
    """The audio exceeds a bound on duration, channels or sample rate."""


class LatentShapeError(RequestError):
    """Latents are not (8, 16, T) with T >= 1."""


class CheckpointError(EngineError):
    """A checkpoint folder cannot be used."""


class CheckpointNotFoundError(CheckpointError):
    """There is no checkpoint at that place."""


class DownloadError(CheckpointError):
    """A checkpoint could not be downloaded or its content is not what was published."""


class AdapterError(EngineError):
    """A LoRA adapter cannot be used. The message names no folder of the server."""


class AdapterChangedError(AdapterError):
    """The files of an adapter are not those that the request was accepted with."""


class AdapterNotLoadedError(AdapterError):
    """An adapter is not on the device."""


class NumericalError(EngineError):
    """The model answered NaN or infinity; nothing is published."""


class Cancelled(EngineError):
    """The request was aborted between two steps."""
