"""The last part of a start: wait until the service answers, and say what to do next."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import httpx

from serve_app.start.errors import StartError

HEALTH_TIMEOUT_S = 60.0  # once Serve says that every replica is ready
POLL_S = 0.2
SONG = {"prompt": "acoustic guitar, calm, peaceful", "audio_duration": 10, "infer_step": 20}


def wait_until_healthy(url: str, timeout_s: float = HEALTH_TIMEOUT_S) -> dict[str, Any]:
    """Return what /health answers once it is ready. Raises StartError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/health", timeout=5, trust_env=False)
            if answer.status_code == httpx.codes.OK:
                body: dict[str, Any] = answer.json()
                return body
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            pass  # the proxy learns its routes a moment after the replicas are ready
        time.sleep(POLL_S)
    raise StartError(f"{url}/health has not answered ready for {timeout_s:g} s; the log above says why")


def banner(url: str, health: Mapping[str, Any], dashboard_url: str | None) -> str:
    """Return what a user needs next. `url` is the service's, without a slash at its end."""
    notice = [f"  note       {health['notice']}"] if health.get("notice") else []
    dashboard = [f"  dashboard  http://{dashboard_url}{_token_hint()}"] if dashboard_url else []
    place = f"on {health['device']}" if health["device"] else "(loaded when the first job comes)"
    lines = [
        "",
        "ACE-Step is ready.",
        f"  model      {health['model']} {place}",
        *notice,
        f"  API        {url}/docs",
        *dashboard,
        "",
        "Make a song:",
        f"  curl -f -X POST '{url}/generate_music' -H 'Content-Type: application/json' -H 'Accept: audio/wav' \\",
        f"       -d '{json.dumps(SONG)}' -o song.wav",
        "",
        "Ctrl-C stops it.",
    ]
    return "\n".join(lines)


def _token_hint() -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return ""
    if "RAY_AUTH_TOKEN" in os.environ:
        return "  (its token: that of RAY_AUTH_TOKEN)"
    return "  (its token: ray get-auth-token)"
