"""The pages that show /openapi.json. Everything they need comes from here, so that they work without the internet."""

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

BUNDLE = "fastapi_offline"  # a package that ships the browser's side of both pages
ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
    "favicon.png": "image/png",
}
KEEP = {"Cache-Control": "public, max-age=3600"}
# Redoc loads its maker's logo, Swagger UI asks a validator about schemas: neither leaves the browser.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "media-src 'self' blob:",
        "worker-src blob:",
        "base-uri 'none'",
    )
)


def _addresses(request: Request) -> dict[str, str]:
    """Return the addresses that a page needs: below the prefix that the application is mounted at."""
    root = request.scope.get("root_path", "").rstrip("/")
    return {name: f"{root}/docs/assets/{name}" for name in ASSETS} | {"openapi": f"{root}/openapi.json"}


def _page(page: HTMLResponse) -> Response:
    page.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return page


@router.get("/docs")
async def swagger_ui(request: Request) -> Response:
    """Every route, with forms to try it."""
    addresses = _addresses(request)
    options: dict[str, Any] = {"validatorUrl": None}
    return _page(
        get_swagger_ui_html(
            openapi_url=addresses["openapi"],
            title=request.app.title,
            swagger_js_url=addresses["swagger-ui-bundle.js"],
            swagger_css_url=addresses["swagger-ui.css"],
            swagger_favicon_url=addresses["favicon.png"],
            swagger_ui_parameters=options,
        )
    )


@router.get("/redoc")
async def redoc(request: Request) -> Response:
    """Every route, to read."""
    addresses = _addresses(request)
    return _page(
        get_redoc_html(
            openapi_url=addresses["openapi"],
            title=request.app.title,
            redoc_js_url=addresses["redoc.standalone.js"],
            redoc_favicon_url=addresses["favicon.png"],
            with_google_fonts=False,
        )
    )


@router.get("/docs/assets/{name}")
async def asset(name: str) -> Response:
    """A file of the pages. Raises HTTPException 404 for any other."""
    if name not in ASSETS:
        raise HTTPException(404)
    return FileResponse(str(files(BUNDLE) / "static" / name), headers=KEEP, media_type=ASSETS[name])
