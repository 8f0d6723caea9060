"""A small hub on this machine that speaks HTTP as the real one does, and fails as it is told to."""

import hashlib
import json
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from acestep_engine.checkpoint import COMPONENTS, LYRIC_VOCABULARY
from acestep_engine.download import REPOSITORY, Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LISTING = f"/api/models/{REPOSITORY}"
VOCABULARY = (Path(__file__).parents[2] / "golden" / LYRIC_VOCABULARY).read_bytes()
WEIGHTS = "ace_step_transformer/diffusion_pytorch_model.safetensors"
CONFIG = "umt5-base/config.json"


def content_of(path: str, size: int) -> bytes:
    """`size` bytes that no other path has."""
    return (hashlib.sha256(path.encode()).digest() * (size // 32 + 1))[:size]


PUBLISHED = {
    **{f"{component}/config.json": content_of(component, 300) for component in COMPONENTS},
    WEIGHTS: content_of("transformer", 400_000),
    "music_dcae_f8c8/diffusion_pytorch_model.safetensors": content_of("dcae", 5_000),
    "music_vocoder/diffusion_pytorch_model.safetensors": content_of("vocoder", 4_000),
    "umt5-base/model.safetensors": content_of("umt5", 3_000),
    "umt5-base/tokenizer.json": content_of("tokenizer", 2_000),
}
COMPLETE = PUBLISHED | {LYRIC_VOCABULARY: VOCABULARY}
UNWANTED = {
    "README.md": b"# a model",
    "config.json": b"{}",
    "umt5-base/pytorch_model.bin": pickle.dumps("never opened"),
    "music_vocoder/generator.pt": pickle.dumps("never opened"),
    "another_component/model.safetensors": b"other",
    "umt5-base/old/model.safetensors": b"other",
    "umt5-base/../../escape.json": b"{}",
}


def listing_with(**wrong: Any) -> bytes:
    """A listing of one file that was made wrong in one place."""
    entry = {"rfilename": CONFIG, "size": 1, "blobId": "0" * 40} | wrong
    return json.dumps({"sha": COMMIT, "siblings": [entry]}).encode()


@dataclass
class Request:
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """A hub with one model, its storage (where weights are redirected to) and the vocabulary's place, on one port."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=lambda: PUBLISHED | UNWANTED)
    vocabulary: bytes = VOCABULARY
    no_listing: bytes | None = None  # what comes instead of the model's listing
    requests: list[Request] = field(default_factory=list)
    served: dict[str, bytes] = field(default_factory=dict)  # what comes instead of a listed file
    listed_sizes: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)  # what a path answers first
    cuts: dict[str, list[int]] = field(default_factory=dict)  # after how many bytes of the file the connection ends
    redirect_to: str | None = None
    understands_ranges: bool = True
    range_shift: int = 0  # how far the range that comes is from the one asked for
    gate: threading.Event | None = None  # files wait for it
    asked_for_a_file: threading.Event = field(default_factory=threading.Event)

    def source(self) -> Source:
        return Source(
            endpoint=f"http://127.0.0.1:{self.port}",
            vocabulary_url=f"http://127.0.0.1:{self.port}/raw/vocab.json",
            waits_s=(),
        )

    def listing(self) -> dict[str, Any]:
        return {"id": REPOSITORY, "sha": COMMIT, "siblings": [self.entry(path) for path in self.files]}

    def entry(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        size = self.listed_sizes.get(path, len(content))
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        entry: dict[str, Any] = {"rfilename": path, "size": size, "blobId": blob}
        if path.endswith(".safetensors"):
            entry["lfs"] = {"size": size, "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
        return entry

    def of(self, path: str) -> list[Request]:
        """The requests for a file's content, at the hub or its storage."""
        return [request for request in self.requests if request.path in {f"/storage/{path}", resolved(path)}]


def resolved(path: str) -> str:
    return f"/{REPOSITORY}/resolve/{COMMIT}/{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.requests.append(Request(path, self.headers["Range"], self.headers["Authorization"]))
        if hub.statuses.get(path):
            self.send(hub.statuses[path].pop(0), b"no")
        elif path == LISTING:
            self.send(200, json.dumps(hub.listing()).encode() if hub.no_listing is None else hub.no_listing)
        elif path == "/raw/vocab.json":
            self.send(200, hub.vocabulary)
        elif path.startswith(resolved("")):
            name = path.removeprefix(resolved(""))
            digests = hub.entry(name)
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digests["blobId"]}"'}
            if "lfs" in digests:
                headers |= {"X-Linked-Etag": f'"{digests["lfs"]["sha256"]}"', "X-Linked-Size": str(digests["size"])}
                storage = f"http://localhost:{hub.port}/storage/{name}"  # another origin than 127.0.0.1
                self.send(302, b"", headers | {"Location": hub.redirect_to or storage})
            else:
                self.send_file(name, headers)
        elif path.startswith("/storage/"):
            self.send_file(path.removeprefix("/storage/"), {})
        else:
            self.send(404, b"")

    def send_file(self, name: str, headers: dict[str, str]) -> None:
        hub = self.hub
        hub.asked_for_a_file.set()
        if hub.gate is not None:
            hub.gate.wait()
        content = hub.served.get(name, hub.files[name])
        start, status = 0, 200
        if self.headers["Range"] and hub.understands_ranges:
            found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])
            assert found is not None
            start, status = int(found[1]) + hub.range_shift, 206
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        end = hub.cuts[name].pop(0) if hub.cuts.get(name) else None
        self.send(status, content[start:], headers, cut=None if end is None else max(end - start, 0))

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests read `hub.requests`."""


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error here."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers on a free port of this machine."""
    hub = Hub()
    server = Server(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()
