"""Routes about the service itself: its health, its model, ideas to start from."""

import hmac
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from deployments.messages import ModelUnavailableError, ServiceStatus
from serve_app.bodies import read_body
from serve_app.errors import RETRY_SOON_S, HttpProblem
from serve_app.fields import invalid
from serve_app.openapi import HEALTH, INITIAL, INITIALIZED, PROBLEMS, SAMPLE, takes
from serve_app.printable import printable, show
from serve_app.samples import SAMPLES
from serve_app.schemas import InitializeRequest, parse_initialize
from serve_app.service import Service, body_limits, service_of
from serve_app.settings import Settings

router = APIRouter(tags=["Service"])

ADMIN_SECURITY: dict[str, Any] = {"security": [{"bearer": []}, {"api_key": []}]}
HEALTH_WAIT_S = 0.05  # /health answers within 100 ms, also before the first status has arrived
INITIALIZED_MESSAGE = "Pipeline initialized successfully"
READY = ("healthy", "loading", "idle")  # songs can be made, now or in a moment
BUILT_IN_MODELS = ("nano", "v1-3.5b")


@router.get("/", include_in_schema=False)
async def index(request: Request) -> Response:
    root = request.scope.get("root_path", "").rstrip("/")
    links = {name: f"{root}/{name}" for name in ("docs", "redoc", "openapi.json", "health", "sample_data")}
    return JSONResponse({"service": request.app.title, "version": request.app.version, **links})


@router.get(
    "/health", summary="Whether the service is ready", response_model=None, responses={200: HEALTH, 503: HEALTH}
)
async def health(request: Request) -> Response:
    """200 and `healthy` once a model is loaded; 503 and `starting` before, `unreachable` without the job manager.

    Where no replica needs to be there (`generator.min_replicas: 0`), 200 and `idle` until a job has brought one up.
    While /initialize loads another model, 200 and `loading`: jobs are accepted, and made after it.
    """
    body = await _health_json(request, service_of(request))
    if body["status"] in READY:
        return JSONResponse(body)
    return JSONResponse(body, 503, {"Retry-After": str(RETRY_SOON_S)})


@router.get("/status", summary="Whether the service is initialized", response_model=None, responses={200: INITIAL})
async def service_status(request: Request) -> Response:
    """The same as `/health`, always with 200. Clients of the earlier server ask for `initialized`."""
    body = await _health_json(request, service_of(request))
    return JSONResponse({"initialized": body["status"] in READY, **body})


async def _health_json(request: Request, service: Service) -> dict[str, Any]:
    status = await service.watch.latest(HEALTH_WAIT_S)
    return {
        "status": _state(status, may_be_idle=service.settings.generator.min_replicas == 0),
        "pipeline_loaded": status is not None and status.loaded,
        "model": status.model if status else None,
        "notice": status.notice if status else None,
        "device": status.replicas[0].device if status and status.replicas else None,
        "replicas": len(status.replicas) if status else 0,
        "queue_size": status.queue_size if status else 0,
        "version": request.app.version,
    }


def _state(status: ServiceStatus | None, *, may_be_idle: bool) -> str:
    if status is None:
        return "unreachable"
    if status.loaded:
        return "healthy"
    if status.replicas:
        return "loading"
    return "idle" if may_be_idle else "starting"


@router.get("/sample_data", summary="An idea to start from", response_model=None, responses={200: SAMPLE})
async def sample_data() -> Response:
    """A prompt with lyrics and settings that suit them; another one each time."""
    return JSONResponse({"success": True, "sample": asdict(secrets.choice(SAMPLES))})


def _sent_key(request: Request) -> bytes:
    headers = request.headers
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    sent = credentials.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return sent.encode("latin-1")  # the bytes as they came


def require_admin(request: Request) -> None:
    """Raises HttpProblem 401 for a wrong or missing key, 403 where administration is off."""
    settings = service_of(request).settings
    if settings.admin_key:
        if not hmac.compare_digest(_sent_key(request), settings.admin_key.encode()):
            detail = "administration needs the administrator's key, as `Authorization: Bearer` or `X-API-Key`"
            raise HttpProblem(401, "wrong_key", detail, headers={"WWW-Authenticate": "Bearer"})
    elif not settings.admin_open:
        detail = "administration is off: the operator sets ACESTEP_ADMIN_KEY, or admin_open on a machine of their own"
        raise HttpProblem(403, "administration_off", detail)


def configured_model(settings: Settings, asked: str) -> str | None:
    """The name of the model that `checkpoint_path` asks for; None is the current one. Raises InvalidRequestError."""
    if not asked.strip():
        return None
    if asked in (*BUILT_IN_MODELS, *settings.checkpoints):
        return asked
    if asked == settings.model:
        return Path(asked).name  # a folder is called by its last part
    for name, folder in settings.checkpoints.items():
        if asked == folder:
            return name
    names = ", ".join([*BUILT_IN_MODELS, *settings.checkpoints])
    raise invalid("checkpoint_path", f"{show(asked)} is not configured; the models are {names}")


@router.post(
    "/initialize",
    summary="Load a model",
    response_model=None,
    responses={200: INITIALIZED, **PROBLEMS},
    openapi_extra=takes("InitializeRequest", required=False) | ADMIN_SECURITY,
)
async def initialize(request: Request) -> Response:
    """Loads a configured checkpoint on every replica; songs that run are finished with the old one.

    The options come as a JSON body, a form or query parameters. Those that have their default stay as they are, and so
    does everything where none differs: clients of the earlier server begin with such a call, and it needs no key.
    Another model and other options need the administrator's key.
    """
    service = service_of(request)
    fields: dict[str, object] = dict(request.query_params)
    if _has_body(request):
        with service.bodies.enter() as room:
            fields |= (await read_body(request, body_limits(service.settings), room)).fields
    asked = parse_initialize(fields)
    ignored = sorted(printable(name) for name in fields.keys() - InitializeRequest.model_fields.keys())
    status = await service.job_manager.service_status()
    current = ("", status.model, service.settings.checkpoints.get(status.model))
    if asked.options or asked.checkpoint_path.strip() not in current:
        require_admin(request)
        name = configured_model(service.settings, asked.checkpoint_path)
        try:
            status = await service.job_manager.initialize(name, asked.options)
        except ModelUnavailableError as error:
            raise HttpProblem(422, "model_unavailable", str(error)) from None
        service.watch.note(status)
    body = {"success": True, "message": INITIALIZED_MESSAGE, "model": status.model, "notice": status.notice}
    return JSONResponse(body | {"ignored_fields": ignored})


def _has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"
