"""The ids of jobs."""

from dataclasses import dataclass

from deployments.messages import JobNotFoundError
from serve_app.request_ids import REQUEST_ID


def known_form(request_id: str) -> str:
    """The id, if it has the form of one. Raises JobNotFoundError: a malformed id is an unknown one."""
    if not REQUEST_ID.fullmatch(request_id):
        raise JobNotFoundError(request_id)
    return request_id


@dataclass(frozen=True)
class SongAddress:
    """The song of a job that an address means. Some players want the extension of the file at its end."""

    request_id: str
    index: int
    extension: str | None = None

    @classmethod
    def parse(cls, last_part: str, index: int) -> "SongAddress":
        """Read the last part of a path, `<request_id>` or `<request_id>.<extension>`. Raises JobNotFoundError."""
        request_id, dot, extension = last_part.partition(".")
        return cls(known_form(request_id), index, extension.lower() if dot else None)
