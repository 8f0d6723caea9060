"""Routes about LoRA adapters: which there are, and their registration."""

from functools import partial

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from deployments.messages import LoraInfo
from serve_app.bodies import read_body
from serve_app.loras import confined_path
from serve_app.openapi import LORA, LORA_REMOVED, LORAS, PROBLEMS, takes
from serve_app.routes.admin import ADMIN_SECURITY, require_admin
from serve_app.schemas import parse_lora
from serve_app.service import body_limits, service_of

router = APIRouter(tags=["Adapters"])


def _lora_json(info: LoraInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "digest": info.digest,
        "rank": info.rank,
        "modules": list(info.modules),
        "bytes": info.nbytes,
    }


@router.get("/loras", summary="The registered adapters", response_model=None, responses={200: LORAS, **PROBLEMS})
async def loras(request: Request) -> Response:
    """What `lora_name_or_path` of a request may be."""
    registered = await service_of(request).job_manager.loras()
    return JSONResponse({"loras": [_lora_json(info) for info in registered]})


@router.post(
    "/loras",
    summary="Register an adapter (administrators)",
    status_code=201,
    response_model=None,
    responses={201: LORA, **PROBLEMS},
    openapi_extra=takes("LoraRequest") | ADMIN_SECURITY,
)
async def register_lora(request: Request) -> Response:
    """Reads an adapter under the server's folder for adapters and checks all of it: names, shapes, values.

    One of the same name is replaced; jobs that were accepted before keep theirs, as long as its files are there.
    """
    require_admin(request)
    service = service_of(request)
    with service.bodies.enter() as room:
        body = await read_body(request, body_limits(service.settings), room)
    asked = parse_lora(body.fields)
    root = service.settings.lora_root
    path = await anyio.to_thread.run_sync(partial(confined_path, root, asked.path))
    info = await service.job_manager.register_lora(asked.name, str(path), str(root))
    return JSONResponse(_lora_json(info), 201)


@router.delete(
    "/loras/{name}",
    summary="Remove an adapter (administrators)",
    response_model=None,
    responses={200: LORA_REMOVED, **PROBLEMS},
    openapi_extra=ADMIN_SECURITY,
)
async def remove_lora(request: Request, name: str) -> Response:
    """No request may name it any more; jobs that were accepted with it still run. Its files stay."""
    require_admin(request)
    await service_of(request).job_manager.remove_lora(name)
    return JSONResponse({"success": True, "name": name, "message": "The adapter is no longer registered"})
