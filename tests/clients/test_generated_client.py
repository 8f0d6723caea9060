"""A client that is generated from /openapi.json, as people do it for other languages. Generating it needs Java."""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import LiveServer

GENERATION_TIMEOUT_S = 200
GENERATOR = Path(sys.executable).with_name("openapi-generator-cli")

pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="the generator of clients is written in Java")


@pytest.fixture
def generated(live_server: LiveServer, tmp_path: Path) -> Iterator[Any]:
    """The generated Python package."""
    schema = tmp_path / "openapi.json"
    schema.write_bytes(live_server.get("/openapi.json").content)
    name = "generated_music_client"
    command = [GENERATOR, "generate", "-i", schema, "-g", "python", "-o", tmp_path / "client"]
    options = ["--package-name", name, "--global-property", "apiTests=false,modelTests=false,apiDocs=false"]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=GENERATION_TIMEOUT_S)
    sys.path.insert(0, str(tmp_path / "client"))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(tmp_path / "client"))
        for module in [module for module in sys.modules if module.startswith(name)]:
            del sys.modules[module]


def test_it_makes_follows_and_fetches_songs(generated: Any, live_server: LiveServer) -> None:
    api = generated.ApiClient(generated.Configuration(host=live_server.url))
    songs, jobs = generated.GenerateApi(api), generated.JobsApi(api)
    request = generated.GenerateRequest(
        prompt="jazz", audio_duration=10, infer_step=5, manual_seeds=generated.ManualSeeds(3_674_253_092)
    )
    queued = songs.generate_music_async(request)
    assert jobs.status(queued.request_id).status in ("pending", "processing", "completed")
    made = songs.generate_music(request)
    assert made.seed.actual_instance == 3_674_253_092
    assert songs.generate_music_direct(request)[:4] == b"RIFF"
    assert jobs.result(made.request_id)[:4] == b"RIFF"
    assert jobs.queue_status().total_requests == 3


def test_operations_are_named_by_what_they_do_and_integers_are_wide(live_server: LiveServer) -> None:
    schema = live_server.get("/openapi.json").json()
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert {"generate_music", "status", "result", "queue_status", "initialize"} <= set(names)
    text = json.dumps(schema)
    assert str(2**64 - 1) not in text.replace("2^64", "")
    seed = schema["components"]["schemas"]["Generated"]["properties"]["seed"]
    assert {"type": "integer", "format": "int64"} in seed["oneOf"]
    assert schema["components"]["schemas"]["GenerateRequest"]["properties"]["audio_duration"]["minimum"] == -1
