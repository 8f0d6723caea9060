"""What runs in Ray Serve's HTTP proxy, in front of the ingress."""

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "X-Request-ID"


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


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which `acestep-serve` sets."""
    return [Middleware(OneRequestId)]
