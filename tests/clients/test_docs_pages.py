"""The pages of /docs and /redoc, without the internet and behind a prefix."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urljoin

import pytest
import requests

from serve_app.settings import Settings
from tests.clients.conftest import LiveServer, StartServer

CHROMIUM = shutil.which("chromium")
PAGES = ("/docs", "/redoc")


@pytest.fixture(params=["", "/music"])
def prefixed(request: pytest.FixtureRequest, start_server: StartServer, live_settings: Settings) -> tuple[str, str]:
    """The address of the application, and of the server."""
    server = start_server(live_settings, route_prefix=request.param)
    return server.url + request.param, server.url


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_only_files_of_our_own(prefixed: tuple[str, str], page: str) -> None:
    address, server = prefixed
    path = address.removeprefix(server)
    text = requests.get(f"{address}{page}", timeout=10).text
    named = re.findall(r"""(?:src|href|spec-url)="([^"]+)"|url: '([^']+)'""", text)
    loaded = [urljoin(f"{path}{page}", "".join(one)) for one in named]
    assert f"{path}/openapi.json" in loaded
    assert len(loaded) >= 3
    for target in loaded:
        assert target.startswith(f"{path}/")
        answer = requests.get(f"{server}{target}", timeout=10)
        assert answer.ok, target
        assert len(answer.content) > 1_000


@pytest.mark.parametrize(
    "name", ["../core.py", "..%2Fcore.py", "%2e%2e/core.py", "consts.py", "", "swagger-ui-bundle.js.map"]
)
def test_no_other_file_is_served(live_server: LiveServer, name: str) -> None:
    assert (
        b"404"
        in live_server.send(
            f"GET /docs/assets/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        ).splitlines()[0]
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.parametrize("page", PAGES)
def test_a_browser_without_the_internet_shows_every_route(prefixed: tuple[str, str], page: str, tmp_path: Path) -> None:
    address, server = prefixed
    log = tmp_path / "net.json"
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path}/profile",
        f"--log-net-log={log}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        f"{address}{page}",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    for words in ("Make a song and wait for it", "Follow a job live", "Register an adapter"):
        assert words in shown
    parameters = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = {one["url"] for one in parameters if "url" in one and one.get("initiator") == server}
    assert f"{address}/openapi.json" in asked
    assert [url for url in asked if not url.startswith((f"{address}/", "data:", "blob:"))] == []
