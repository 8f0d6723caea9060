"""The ids of jobs."""

import re

from deployments.messages import JobNotFoundError

REQUEST_ID = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}")


def known_form(request_id: str) -> str:
    """The id, if it has the form of one. Raises JobNotFoundError: a malformed id is an unknown one."""
    if not REQUEST_ID.fullmatch(request_id):
        raise JobNotFoundError(request_id)
    return request_id
