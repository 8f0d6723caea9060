"""The Idempotency-Key header: one job for all requests that carry the same key and ask for the same."""

import hashlib
import json
import re

from fastapi import Request

from serve_app.fields import invalid
from serve_app.printable import show
from serve_app.schemas import GenerateRequest

HEADER = "Idempotency-Key"
KEY = re.compile(r"[\x21-\x7e]{1,255}")


def key_of(request: Request) -> str | None:
    """The key that a request carries. Raises InvalidRequestError for one that is none."""
    sent = request.headers.getlist(HEADER)
    if not sent:
        return None
    if len(sent) > 1 or not KEY.fullmatch(sent[0].strip()):
        what = (
            "is sent more than once" if len(sent) > 1 else f"{show(sent[0])} is not 1 to 255 visible ASCII characters"
        )
        raise invalid(HEADER, what)
    return f"client:{sent[0].strip()}"


def digest_of(request: Request, asked: GenerateRequest, source: str | None) -> str:
    """Equal for requests to the same route that ask for the same, whatever is drawn for them later."""
    what = [request.url.path, asked.model_dump(mode="json", exclude_unset=True), source, asked.callback_url]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
