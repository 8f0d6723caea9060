"""Health, administration, samples and the documentation."""

import asyncio
import re
import subprocess
import sys
from typing import Any

import httpx
import pytest

from serve_app import openapi
from serve_app.routes.admin import configured_model
from serve_app.samples import SAMPLES
from serve_app.schemas import GenerateRequest, parse_generate
from serve_app.service import StatusWatch
from serve_app.settings import Settings
from tests.serve_app.conftest import Connect
from tests.serve_app.memory import MemoryJobs

KEY = {b"X-API-Key": "sesame-ключ".encode()}
DOCUMENTED_BODY = {
    "checkpoint_path": "",
    "device_id": 0,
    "bf16": True,
    "torch_compile": False,
    "cpu_offload": False,
    "overlapped_decode": False,
}


async def test_health_says_what_is_loaded(client: httpx.AsyncClient) -> None:
    response = await client.get("/health")
    body = response.json()
    openapi.Health.model_validate(body)
    assert response.status_code == 200
    assert (body["status"], body["pipeline_loaded"], body["replicas"], body["device"]) == ("healthy", True, 1, "cpu")
    assert (body["model"], body["notice"]) == ("tiny", "a test tone, not music")


async def test_health_is_503_while_no_model_is_loaded(connect: Connect, settings: Settings, jobs: MemoryJobs) -> None:
    jobs.loaded = False
    response = await (await connect(settings)).get("/health")
    assert response.status_code == 503
    assert (response.json()["status"], response.json()["pipeline_loaded"]) == ("starting", False)
    assert response.headers["retry-after"]


async def test_health_is_idle_and_no_error_where_no_replica_needs_to_be_there(
    connect: Connect, settings: Settings, jobs: MemoryJobs
) -> None:
    jobs.loaded = False
    none = settings.model_copy(update={"generator": settings.generator.model_copy(update={"min_replicas": 0})})
    client = await connect(none)
    response = await client.get("/health")
    assert (response.status_code, response.json()["status"], response.json()["pipeline_loaded"]) == (200, "idle", False)


async def test_health_is_good_while_another_model_is_loaded(
    connect: Connect, settings: Settings, jobs: MemoryJobs
) -> None:
    jobs.loading = True
    response = await (await connect(settings)).get("/health")
    body = response.json()
    openapi.Health.model_validate(body)
    assert (response.status_code, body["status"], body["pipeline_loaded"]) == (200, "loading", False)


async def test_health_does_not_wait_for_a_job_manager_that_never_answers(
    connect: Connect, settings: Settings, jobs: MemoryJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "service_status", asyncio.Event().wait)
    client = await connect(settings)
    async with asyncio.timeout(StatusWatch.TIMEOUT_S):
        response = await client.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "unreachable")


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"json": {}},
        {"json": DOCUMENTED_BODY},
        {"json": {"model_name": "ACE-Step"}},
        {"json": {"checkpoint_path": "tiny"}},
        {"params": DOCUMENTED_BODY},
        {"data": {"checkpoint_path": ""}},
    ],
)
@pytest.mark.parametrize("headers", [{}, KEY])
async def test_initialize_that_asks_for_nothing_else_changes_nothing_and_needs_no_key(
    client: httpx.AsyncClient, jobs: MemoryJobs, asked: dict[str, Any], headers: dict[bytes, bytes]
) -> None:
    response = await client.post("/initialize", **asked, headers=headers)
    assert response.status_code == 200, response.text
    body = response.json()
    openapi.Initialized.model_validate(body)
    assert (body["success"], body["message"]) == (True, "Pipeline initialized successfully")
    assert body["ignored_fields"] == [name for name in asked.get("json", {}) if name == "model_name"]
    assert jobs.initialized == []


@pytest.mark.parametrize("headers", [KEY, {b"Authorization": b"Bearer " + "sesame-ключ".encode()}])
async def test_initialize_with_the_key_counts_only_what_differs_from_the_documented_defaults(
    client: httpx.AsyncClient, jobs: MemoryJobs, headers: dict[bytes, bytes]
) -> None:
    response = await client.post("/initialize", json=DOCUMENTED_BODY | {"torch_compile": True}, headers=headers)
    assert response.status_code == 200
    assert jobs.initialized == [(None, {"torch_compile": True})]


async def test_initialize_takes_its_options_from_the_query_too(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    response = await client.post("/initialize?checkpoint_path=nano&cpu_offload=true", headers=KEY)
    assert response.status_code == 200
    both = await client.post("/initialize?cpu_offload=true", json={"checkpoint_path": "nano"}, headers=KEY)
    assert both.status_code == 200
    assert jobs.initialized == [("nano", {"cpu_offload": True})] * 2


async def test_status_without_an_id_says_whether_the_service_is_initialized(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    health = (await client.get("/health")).json()
    response = await client.get("/status")
    openapi.ServiceState.model_validate(response.json())
    assert (response.status_code, response.json()) == (200, {"initialized": True, **health})


async def test_status_of_a_service_that_starts_is_200_and_not_initialized(
    connect: Connect, settings: Settings, jobs: MemoryJobs
) -> None:
    jobs.loaded = False
    response = await (await connect(settings)).get("/status")
    assert (response.status_code, response.json()["initialized"]) == (200, False)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"X-API-Key": b"wrong"},
        {b"X-API-Key": b"\xff\xfe"},
        {b"X-API-Key": b"x" * 10_000},
        {b"Authorization": b"Basic c2VzYW1l"},
        {b"Authorization": b"Bearer"},
    ],
)
async def test_initialize_without_the_key_is_401(
    client: httpx.AsyncClient, jobs: MemoryJobs, headers: dict[bytes, bytes]
) -> None:
    response = await client.post("/initialize", json={"checkpoint_path": "nano"}, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert not jobs.initialized


async def test_administration_is_off_without_a_key_unless_it_is_open(connect: Connect, settings: Settings) -> None:
    off = await connect(settings.model_copy(update={"admin_key": None}))
    response = await off.post("/initialize", json={"cpu_offload": True})
    assert (response.status_code, response.json()["code"]) == (403, "administration_off")
    opened = await connect(settings.model_copy(update={"admin_key": None, "admin_open": True}))
    assert (await opened.post("/initialize", json={"cpu_offload": True})).status_code == 200


@pytest.mark.parametrize("asked", ["/etc", "../x", "facebook/musicgen-large", "http://example.org/model", "/missing"])
async def test_a_checkpoint_that_is_not_configured_is_refused(client: httpx.AsyncClient, asked: str) -> None:
    response = await client.post("/initialize", json={"checkpoint_path": asked}, headers=KEY)
    assert response.status_code == 422
    assert "the models are nano, v1-3.5b, mine" in response.json()["detail"]


async def test_a_model_that_cannot_be_loaded_says_why(client: httpx.AsyncClient) -> None:
    response = await client.post("/initialize", json={"checkpoint_path": "v1-3.5b"}, headers=KEY)
    assert (response.status_code, response.json()["code"]) == (422, "model_unavailable")
    assert response.json()["detail"] == "no model is called 'v1-3.5b'; there are tiny"


async def test_a_configured_folder_is_asked_for_by_its_name(settings: Settings) -> None:
    assert configured_model(settings, "mine") == configured_model(settings, "/srv/checkpoints/mine") == "mine"
    assert configured_model(settings, " ") is None
    started_with = settings.model_copy(update={"model": "/srv/checkpoints/first"})
    assert configured_model(started_with, "/srv/checkpoints/first") == "first"


@pytest.mark.parametrize("body", [b"[]", b'{"bf16": 2}', b'{"device_id": -1}', b"\xff", b"{"])
async def test_bad_options_are_refused(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/initialize", content=body, headers=KEY)
    assert response.status_code in (400, 422)
    openapi.Problem.model_validate(response.json())


async def test_sample_data_is_a_request_to_start_from(client: httpx.AsyncClient) -> None:
    body = (await client.get("/sample_data")).json()
    openapi.SampleData.model_validate(body)
    assert body["success"] is True
    assert (await client.post("/generate_music_async", json=body["sample"])).status_code == 200


async def test_every_sample_is_a_valid_request() -> None:
    for sample in SAMPLES:
        parse_generate(vars(sample))


async def test_the_root_points_to_the_documentation(client: httpx.AsyncClient) -> None:
    assert (await client.get("/")).json()["docs"] == "/docs"


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_documentation_pages_are_served(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 200
    assert "/openapi.json" in response.text


async def test_the_schema_describes_every_route_and_every_field(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    assert set(schema["paths"]) == {
        "/health",
        "/initialize",
        "/loras",
        "/loras/{name}",
        "/sample_data",
        "/status",
        "/generate",
        "/generate_music",
        "/generate_music_direct",
        "/generate_music_async",
        "/generate_music_form",
        "/generate_music_with_audio",
        "/generate_music_with_audio_mp3",
        "/generate_music_with_audio_base64",
        "/generate_music_with_audio_base64_mp3",
        "/generate_music_with_audio_json",
        "/generate_music_with_audio_json_mp3",
        "/generate_music_with_audio_direct_mp3",
        "/lyrics/tokens",
        "/status/{request_id}",
        "/events/{request_id}",
        "/result/{request_id}",
        "/stream/{request_id}",
        "/queue/status",
        "/request/{request_id}",
    }
    body = schema["paths"]["/generate_music"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/GenerateRequest"}
    components = schema["components"]["schemas"]
    fields = components["GenerateRequest"]["properties"]
    assert set(fields) == {*GenerateRequest.model_fields, "audio_base64"}
    in_parts = schema["paths"]["/generate_music"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    parts = components[in_parts["$ref"].rpartition("/")[2]]["properties"]
    assert set(parts) == {*fields, "audio_file"}
    assert all(field["description"] for field in fields.values())
    assert all("default" in fields[name] for name in GenerateRequest.model_fields)
    assert components["GenerateRequest"]["properties"]["infer_step"]["maximum"] == 200
    assert components["FormRequest"]["properties"]["infer_step"]["default"] == 27
    assert {"audio_file", "audio_base64"} < set(components["UploadRequestParts"]["properties"])
    parse_generate(components["GenerateRequest"]["example"])


async def test_every_reference_of_the_schema_leads_somewhere(client: httpx.AsyncClient) -> None:
    response = await client.get("/openapi.json")
    components = response.json()["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', response.text))
    assert references <= set(components)
    assert "#/$defs" not in response.text


async def test_every_operation_has_a_summary_and_a_description(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert all(one["summary"] and one["description"] and one["tags"] for one in operations)
    assert len({one["operationId"] for one in operations}) == len(operations)
    assert all("HTTPValidationError" not in str(one) for one in operations)


def test_the_http_side_does_not_load_torch() -> None:
    code = "import sys, serve_app.ingress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
