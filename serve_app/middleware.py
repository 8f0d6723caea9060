"""Middleware around the whole application, error answers included: ids, CORS, HEAD, spellings of paths, caching.

Request ─▶ LostClients ─▶ RequestFrame ─▶ CORS ─▶ ForeignPages ─▶ PlainPath ─▶ HeadAsGet ─▶ FastAPI
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import HttpProblem, problem_response
from serve_app.printable import printable
from serve_app.request_ids import REQUEST_ID

logger = logging.getLogger("ray.serve.acestep")  # Ray Serve's handlers write it

CLIENT_CLOSED = 499  # in the log only: nobody is there to be answered
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

CORS_METHODS = ("GET", "HEAD", "POST", "DELETE")
CORS_REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "X-API-Key",
    "X-Request-ID",
)
CORS_RESPONSE_HEADERS = (
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "X-Model",
    "X-Request-ID",
    "X-Seed",
)


class Application(FastAPI):
    """FastAPI inside our own middleware.

    Middleware that FastAPI is given does not see its answers to unhandled exceptions, so that it stands outside.
    """

    def __init__(
        self,
        *,
        behind_proxy: bool,
        lost_client: type[Exception],
        cors_origins: Sequence[str],
        allowed_hosts: Sequence[str],
        **options: Any,
    ) -> None:
        # A redirect for a slash too many names the scheme and the host as we see them, behind a proxy the wrong ones.
        super().__init__(redirect_slashes=False, **options)
        self._behind_proxy = behind_proxy
        self._lost_client = lost_client
        self._cors_origins = cors_origins
        self._allowed_hosts = allowed_hosts

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = PlainPath(HeadAsGet(super().build_middleware_stack()))
        app = ForeignPages(app, self._cors_origins, self._allowed_hosts)
        if self._cors_origins:
            app = CORSMiddleware(
                app,
                allow_origins=self._cors_origins,
                allow_methods=CORS_METHODS,
                allow_headers=CORS_REQUEST_HEADERS,
                expose_headers=CORS_RESPONSE_HEADERS,
            )
        return LostClients(RequestFrame(app, behind_proxy=self._behind_proxy), self._lost_client)


class LostClients:
    """Takes a client that the server in front can no longer be asked about as one that has left.

    Ray cancels the questions of a request whose client leaves together with the request, at times a moment before it.
    """

    def __init__(self, app: ASGIApp, lost_client: type[Exception]) -> None:
        self._app = app
        self._lost_client = lost_client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_or_leave() -> Message:
            try:
                return await receive()
            except self._lost_client:
                return {"type": f"{scope['type']}.disconnect", "code": 1005}  # 1005: it gave no reason

        await self._app(scope, receive_or_leave, send)


class RequestFrame:
    """Gives every request an id, answers it as X-Request-ID, and writes one line to the log.

    Behind Ray Serve's proxy the id is the one the proxy gave (or passed on). The proxy answers that id itself, beside
    whatever header we send, so that only an id that differs from it is sent from here. An answer that says nothing of
    caching is not to be kept: it is an error, or it changes.
    """

    def __init__(self, app: ASGIApp, *, behind_proxy: bool) -> None:
        self._app = app
        self._behind_proxy = behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        foreign = self._behind_proxy and REQUEST_ID.fullmatch(given) is not None
        request_id = given if foreign else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        where = printable(f"{scope.get('method', 'WebSocket')} {scope['path']}", 120)
        started, status = time.perf_counter(), 500

        async def send_framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                answered = headers.setdefault("X-Request-ID", request_id)
                if self._behind_proxy and answered == given:
                    del headers["X-Request-ID"]
            elif message["type"] == "websocket.accept":
                MutableHeaders(scope=message).setdefault("X-Request-ID", request_id)
            elif message["type"] == "websocket.close":
                status = message.get("code", 1000)
            await send(message)

        try:
            await self._app(scope, receive, send_framed)
        except asyncio.CancelledError:
            status = CLIENT_CLOSED
            raise
        finally:
            elapsed_ms = (time.perf_counter() - started) * 1000
            logger.info("%s %s %d %.0f ms", request_id, where, status, elapsed_ms)


class ForeignPages:
    """Refuses what web pages of other origins ask for, where it would change something, and foreign names of this host.

    A browser sends a form to any address that a page names, and opens WebSockets to it. It says which page asked.
    """

    def __init__(self, app: ASGIApp, allowed_origins: Sequence[str], allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._allowed_origins = allowed_origins
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": problem.detail})
        else:
            await problem_response(Request(scope), problem)(scope, receive, send)

    def _problem(self, scope: Scope) -> HttpProblem | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._allowed_hosts and _name_of(host) not in self._allowed_hosts:
            detail = f"'{printable(host)}' is no name of this server; the operator may add it to allowed_hosts"
            return HttpProblem(421, "foreign_host", detail)
        if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
            return None
        origin = headers.get("origin")
        if origin is None or headers.get("sec-fetch-site") in ("same-origin", "none"):
            return None  # no page, or one of ours
        if not {origin, "*"}.isdisjoint(self._allowed_origins):
            return None
        if origin.partition("://")[2] in (host, headers.get("x-forwarded-host")):
            return None
        detail = f"a page of '{printable(origin)}' may not use this server; the operator may add it to cors_origins"
        return HttpProblem(403, "foreign_origin", detail)


def _name_of(host: str) -> str:
    """A Host header without its port, in lower case."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and (port.isdigit() or not port) else host.lower()


class PlainPath:
    """Reads `//health` and `/health/` as `/health`: base addresses end with a slash or do not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            prefix, path = scope.get("root_path", "").rstrip("/"), scope["path"]
            if path == prefix or path.startswith(f"{prefix}/"):
                path = path[len(prefix) :]
            plain = "/".join(part for part in path.split("/") if part)
            scope = dict(scope) | {"path": f"{prefix}/{plain}", "root_path": prefix}
        await self._app(scope, receive, send)


class _HeadAnsweredError(BaseException):
    """Ends the application, past every `except Exception`, once a HEAD request has its headers."""


class HeadAsGet:
    """Answers HEAD wherever there is GET: GET's status and headers. The application ends where its body would begin."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_headers(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise _HeadAnsweredError

        scope = dict(scope) | {"method": "GET", "state": {**scope.get("state", {}), "only_headers": True}}
        with suppress(_HeadAnsweredError):
            await self._app(scope, receive, send_headers)


def wants_only_headers(request: Request) -> bool:
    """Return whether a GET request came as HEAD: a route may save itself what it would do for the body."""
    only_headers: bool = getattr(request.state, "only_headers", False)
    return only_headers
