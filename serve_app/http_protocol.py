"""The HTTP/1 protocol of the server in front of the application.

uvicorn prefers httptools where that is installed. Its parser stops at `Upgrade`, so that a request whose upgrade is not
taken loses its body: Java's HttpClient and `curl --http2` offer h2c with every POST. It also sends chunks to HTTP/1.0
clients, which take the chunks' sizes for content. h11 does neither.
"""

import asyncio
import json
from typing import Any

import h11
from uvicorn.config import HTTP_PROTOCOLS, Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MAX_HEAD_BYTES = 64 * 1024  # of a request: lyrics in an address are up to 40 KB

_REFUSAL = {
    "type": "about:blank",
    "title": "Bad Request",
    "status": 400,
    "detail": f"the request is not valid HTTP/1.1, or its head is longer than {MAX_HEAD_BYTES} bytes",
    "success": False,
    "code": "bad_http",
}


class HttpProtocol(H11Protocol):
    """One connection. Refuses what is not HTTP with a problem body."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        config.h11_max_incomplete_event_size = MAX_HEAD_BYTES
        super().__init__(config, server_state, app_state, _loop)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is h11.SEND_BODY:  # an answer is on its way already
            self.transport.close()
            return
        body = json.dumps(_REFUSAL | {"error_message": _REFUSAL["detail"]}).encode()
        headers = [
            ("Content-Type", "application/problem+json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def install() -> None:
    """Make it the protocol of every uvicorn server that this process starts from now on, unless told otherwise."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{HttpProtocol.__name__}"
