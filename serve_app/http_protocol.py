"""The HTTP/1 protocol of the server in front of the application.

uvicorn prefers httptools where that is installed. Its parser stops at `Upgrade`, so that a request whose upgrade is not
taken loses its body: Java's HttpClient and `curl --http2` offer h2c with every POST. It also sends chunks to HTTP/1.0
clients, which take the chunks' sizes for content. h11 does neither.
"""

import asyncio
import json
import resource
import uuid
from http import HTTPStatus
from typing import Any, ClassVar

import h11
from uvicorn.config import HTTP_PROTOCOLS, Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MAX_HEAD_BYTES = 64 * 1024  # of a request: lyrics in an address are up to 40 KB

HEAD_TIMEOUT_S = 10.0  # from the connection, or from a request's first byte, to the end of its head

USUAL_CONNECTIONS = 20_000
SPARE_FILES = 1_000  # of those that this process may open: its logs, and its connections to the replicas
RETRY_SOON_S = 2

BAD_REQUEST = f"the request is not valid HTTP/1.1, or its head is longer than {MAX_HEAD_BYTES} bytes"
TOO_SLOW = f"the head of the request did not come within {HEAD_TIMEOUT_S:g} s"


class HttpProtocol(H11Protocol):
    """One connection. Refuses what is not HTTP, and a request whose head does not come, with a problem body.

    So it does where too many connections are open already, before anything is read: those that exist are left alone.
    """

    max_connections: ClassVar[int] = USUAL_CONNECTIONS  # that are open at a time, WebSockets too

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        config.h11_max_incomplete_event_size = MAX_HEAD_BYTES
        super().__init__(config, server_state, app_state, _loop)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:  # this one is among them
            self._refuse(503, "too_many_connections", f"{self.max_connections} connections are open already")
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # the head is there, or there will be none
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_on_head)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up_on_head(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(408, "request_timeout", TOO_SLOW)
        else:
            self.transport.close()  # browsers open connections ahead of their use

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "bad_http", BAD_REQUEST)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is on its way already
            phrase = HTTPStatus(status).phrase
            body = json.dumps(
                {
                    "type": "about:blank",
                    "title": phrase,
                    "status": status,
                    "detail": detail,
                    "success": False,
                    "error_message": detail,
                    "code": code,
                    "request_id": uuid.uuid4().hex,
                }
            ).encode()
            headers = [
                ("Content-Type", "application/problem+json"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                ("Connection", "close"),
            ]
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                headers.append(("Retry-After", str(RETRY_SOON_S)))
            response = h11.Response(status_code=status, headers=headers, reason=phrase.encode())
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def room_for(connections: int, max_files: int) -> int:
    """Return how many connections may be open at a time in a process that may open so many files in all."""
    return max(1, min(connections, max_files - min(SPARE_FILES, max_files // 2)))


def install(connections: int = USUAL_CONNECTIONS) -> None:
    """Make it the protocol of every uvicorn server that this process starts from now on, unless told otherwise.

    No more connections than this, and than the process may open files, are open at a time.
    """
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_bounded = max_files != resource.RLIM_INFINITY
    HttpProtocol.max_connections = room_for(connections, max_files) if is_bounded else connections
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{HttpProtocol.__name__}"
