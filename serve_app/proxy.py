"""What runs in Ray Serve's HTTP proxy, in front of the ingress."""

import logging
import os

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.pacing import Paced
from serve_app.request_ids import REQUEST_ID as REQUEST_ID_FORM

logger = logging.getLogger("ray.serve.acestep")  # Ray Serve's handlers write it

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "serve_app.proxy:middlewares"
CONNECTIONS_VARIABLE = "ACESTEP_MAX_CONNECTIONS"  # `limits.connections`, which the proxy's process does not know

REQUEST_ID = "X-Request-ID"
WITHOUT_BODY = ("GET", "HEAD", "DELETE", "OPTIONS")

# Headers by which a caller steers Ray's proxy: how long it waits for an answer, whether a client that leaves cancels
# its request, which replica is asked. Ray reads them with `-` and `_` alike.
CONTROL_HEADERS = frozenset(
    (b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id", b"serve-multiplexed-model-id")
)
# Headers that Ray reads as UTF-8, and fails at other bytes.
READ_AS_TEXT = frozenset((b"traceparent", b"tracestate", b"baggage"))


class ClientHeaders:
    """Keeps from Ray's proxy what a client may not decide there, or what it would fail at."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope["headers"] = _allowed(scope["headers"])
        await self._app(scope, receive, send)


def _allowed(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    kept: list[tuple[bytes, bytes]] = []
    identified = False
    for name, value in headers:
        known = name.lower().replace(b"_", b"-")
        if known in CONTROL_HEADERS or (known in READ_AS_TEXT and not _is_text(value)):
            continue
        if known == b"x-request-id":
            if identified or not REQUEST_ID_FORM.fullmatch(value.decode("latin-1")):
                continue  # Ray's proxy gives the request an id of its own
            identified = True
        kept.append((name, value))
    return kept


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


class PlainTarget:
    """Reads `http://host/health`, which RFC 9112 lets every client send, and `//health` as `/health`.

    Ray's proxy finds an application by how a path begins.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            prefix = scope.get("root_path", "")
            path = scope["path"].removeprefix(prefix)
            scheme, colon, rest = path.partition("://")
            if colon and scheme.lower() in ("http", "https"):
                path = rest.partition("/")[2]
            scope["path"] = f"{prefix}/{path.lstrip('/')}"
        await self._app(scope, receive, send)


class NoBody:
    """Drops the bodies of methods that have none here. Ray's proxy would keep all of a body that no route reads."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("method") not in WITHOUT_BODY:
            await self._app(scope, receive, send)
            return
        is_told = False

        async def receive_nothing() -> Message:
            nonlocal is_told
            if not is_told:
                is_told = True
                return {"type": "http.request", "body": b"", "more_body": False}
            while (message := await receive())["type"] == "http.request":
                pass
            return message

        await self._app(scope, receive_nothing, send)


class OneRequestId:
    """Keeps the X-Request-ID that the application answers. The proxy adds its own behind it, and two mean nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_one(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                ids = headers.getlist(REQUEST_ID)
                if len(ids) > 1:
                    headers[REQUEST_ID] = ids[0]
            await send(message)

        await self._app(scope, receive, send_one)


def _max_connections(usual: int) -> int:
    given = os.environ.get(CONNECTIONS_VARIABLE, "").strip()
    if given.isascii() and given.isdecimal() and len(given) < 10 and int(given) > 0:
        return int(given)
    if given:
        logger.warning("%s is not a number of connections, so that %d may be open", CONNECTIONS_VARIABLE, usual)
    return usual


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which `acestep-serve` sets. Called before the server starts."""
    try:
        from serve_app import http_protocol
    except ImportError as error:  # another uvicorn: it serves all the same
        logger.warning(
            "this uvicorn has no %s, so that requests which offer an upgrade (Java's HttpClient, curl --http2) lose "
            "their bodies: install the version in constraints.txt",
            error.name,
        )
    else:
        http_protocol.install(_max_connections(http_protocol.USUAL_CONNECTIONS))
    layers = (Paced, OneRequestId, ClientHeaders, PlainTarget, NoBody)
    return [Middleware(layer) for layer in layers]
