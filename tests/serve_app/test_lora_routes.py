"""Adapters over HTTP: registered by administrators, named by requests."""

from pathlib import Path

import httpx
import pytest

from serve_app import openapi
from serve_app.settings import Settings
from tests.serve_app.conftest import Connect
from tests.serve_app.memory import MemoryJobs

KEY = {"Authorization": "Bearer sesame-ключ".encode()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "loras"
    (root / "folder").mkdir(parents=True)
    (root / "rap.safetensors").write_bytes(b"")
    (root / "choir.safetensors").write_bytes(b"")
    return root


@pytest.fixture
async def client(connect: Connect, settings: Settings, root: Path) -> httpx.AsyncClient:
    return await connect(settings.model_copy(update={"lora_root": root}))


async def register(client: httpx.AsyncClient, name: str = "rap", path: str = "rap.safetensors") -> httpx.Response:
    return await client.post("/loras", json={"name": name, "path": path}, headers=KEY)


async def test_an_adapter_is_registered_listed_and_removed(client: httpx.AsyncClient) -> None:
    response = await register(client)
    assert response.status_code == 201
    openapi.Lora.model_validate(response.json())
    listed = (await client.get("/loras")).json()
    openapi.LoraList.model_validate(listed)
    assert listed["loras"] == [response.json()]
    assert "path" not in response.json()
    removed = await client.delete("/loras/rap", headers=KEY)
    assert removed.status_code == 200
    openapi.LoraRemoved.model_validate(removed.json())
    assert (await client.get("/loras")).json() == {"loras": []}
    again = await client.delete("/loras/rap", headers=KEY)
    assert (again.status_code, again.json()["code"]) == (404, "lora_not_found")


async def test_only_administrators_register_and_remove(client: httpx.AsyncClient) -> None:
    body = {"name": "rap", "path": "rap.safetensors"}
    assert (await client.post("/loras", json=body)).status_code == 401
    assert (await client.delete("/loras/rap")).status_code == 401
    assert (await client.get("/loras")).status_code == 200


async def test_what_cannot_be_used_says_why(client: httpx.AsyncClient) -> None:
    response = await register(client, path="folder")
    assert (response.status_code, response.json()["code"]) == (422, "lora_refused")
    assert response.json()["detail"] == "the adapter cannot be registered: folder holds nothing"


@pytest.mark.parametrize("name", ["", "none", "None", "a b", "a@b", "../x", "x" * 65, ".x", "é", None, 3])
async def test_bad_names_are_refused(client: httpx.AsyncClient, name: object) -> None:
    response = await client.post("/loras", json={"name": name, "path": "rap.safetensors"}, headers=KEY)
    assert response.status_code == 422
    openapi.Problem.model_validate(response.json())


@pytest.mark.parametrize("body", [{}, {"name": "rap"}, {"path": "rap"}, {"name": "rap", "path": "rap", "pat": 1}])
async def test_what_is_missing_or_unknown_is_named(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    response = await client.post("/loras", json=body, headers=KEY)
    assert response.status_code == 422
    assert "is missing" in response.text or "did you mean path" in response.text


async def test_paths_out_of_the_folder_are_refused_in_the_same_words(
    client: httpx.AsyncClient, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside.safetensors").write_bytes(b"")
    (root / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (root / "nowhere.safetensors").symlink_to(tmp_path / "absent.safetensors")
    (root / "circle.safetensors").symlink_to(root / "circle.safetensors")
    paths = [
        "../outside.safetensors",
        "../absent.safetensors",
        str(tmp_path / "outside.safetensors"),
        "/dev/zero",
        "/proc/self/environ",
        "link.safetensors",
        "nowhere.safetensors",
        "circle.safetensors",
        "absent.safetensors",
        "folder/../rap.safetensors",
        "http://example.org/a.safetensors",
        "ACE-Step/ACE-Step-v1-chinese-rap-LoRA",
        "./rap.safetensors",
        "\\rap.safetensors",
        "x" * 300,
    ]
    details = {(await register(client, path=path)).json()["detail"] for path in paths}
    assert details == {"path: is not the relative path of an adapter under the server's folder for adapters"}


async def test_without_a_folder_nothing_can_be_registered(connect: Connect, settings: Settings) -> None:
    response = await register(await connect(settings))
    assert response.status_code == 422
    assert "lora_root" in response.json()["detail"]


async def test_a_request_is_made_with_the_adapter_as_it_is_registered(
    client: httpx.AsyncClient, jobs: MemoryJobs, root: Path
) -> None:
    digest = (await register(client)).json()["digest"]
    asked = {"lora_name_or_path": " rap ", "lora_weight": -0.5, "batch_size": 2}
    accepted = (await client.post("/generate_music_async", json=asked)).json()
    submission = jobs.submissions[accepted["request_id"]]
    for song in submission.songs:
        assert song.adapter is not None
        assert (song.adapter.name, song.adapter.digest) == ("rap", digest)
        assert (song.adapter.path, song.adapter.weight) == (str(root / "rap.safetensors"), -0.5)
    assert submission.request_json["lora_name_or_path"] == f"rap@{digest[:16]}"
    assert submission.request_json["lora_weight"] == -0.5
    again = await client.post("/generate_music_async", json=submission.request_json)
    assert jobs.submissions[again.json()["request_id"]].songs == submission.songs


async def test_no_adapter_is_the_default_in_all_its_spellings(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    for spelling in ("none", "None", "", "  "):
        accepted = (await client.post("/generate_music_async", json={"lora_name_or_path": spelling})).json()
        submission = jobs.submissions[accepted["request_id"]]
        assert submission.songs[0].adapter is None
        assert submission.request_json["lora_name_or_path"] == "none"


@pytest.mark.parametrize("name", ["singer", "../../x", "http://example.org/a", "/etc/passwd", "RAP"])
async def test_an_unknown_adapter_is_refused_with_those_that_there_are(client: httpx.AsyncClient, name: str) -> None:
    await register(client)
    await register(client, "choir", "choir.safetensors")
    response = await client.post("/generate_music_async", json={"lora_name_or_path": name})
    assert response.status_code == 422
    (problem,) = response.json()["errors"]
    assert problem["field"] == "lora_name_or_path"
    assert "is not a registered adapter; there are none, rap, choir" in problem["problem"]


async def test_a_request_for_other_content_than_is_registered_is_refused(client: httpx.AsyncClient) -> None:
    digest = (await register(client)).json()["digest"]
    for suffix, status in ((digest, 200), (digest[:16], 200), ("0" * 16, 422), (digest[:8], 422), ("", 422)):
        response = await client.post("/generate_music_async", json={"lora_name_or_path": f"rap@{suffix}"})
        assert response.status_code == status
        assert status == 200 or f"rap@{digest[:16]}" in response.json()["detail"]


async def test_a_song_from_an_earlier_one_keeps_its_adapter_unless_it_says_otherwise(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    await register(client)
    sung = (await client.post("/generate_music", json={"lora_name_or_path": "rap", "lora_weight": 0.3})).json()

    async def adapted(**fields: object) -> tuple[str, float] | None:
        asked = {"task": "retake", "source_request_id": sung["request_id"], **fields}
        accepted = (await client.post("/generate_music_async", json=asked)).json()
        submission = jobs.submissions[accepted["request_id"]]
        again = (await client.post("/generate_music_async", json=submission.request_json)).json()
        assert jobs.submissions[again["request_id"]].songs == submission.songs
        adapter = submission.songs[0].adapter
        return None if adapter is None else (adapter.name, adapter.weight)

    assert await adapted() == ("rap", 0.3)
    assert await adapted(lora_weight=-1) == ("rap", -1.0)
    assert await adapted(lora_name_or_path="none") is None
    assert await adapted(lora_name_or_path="rap") == ("rap", 1.0)
    await client.delete("/loras/rap", headers=KEY)
    gone = await client.post("/generate_music_async", json={"task": "retake", "source_request_id": sung["request_id"]})
    assert gone.json()["errors"][0]["field"] == "lora_name_or_path"
