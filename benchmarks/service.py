"""The whole application in its own processes: what HTTP and Ray add, songs of several callers, /health meanwhile."""

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import httpx

from acestep_engine.params import GenerationParams, ModelSpec
from benchmarks.engine import BASE, InProcess
from benchmarks.tables import print_table

SHORT = replace(BASE, duration_s=5.0, steps=10)
START_TIMEOUT_S = 180.0


def print_tables(spec: ModelSpec, repeats: int) -> None:
    with running_server(spec) as url, httpx.Client(base_url=url, timeout=600.0) as client:
        _print_overhead(client, spec, repeats)
        _print_callers(client, repeats)
        _print_health(client, repeats)


def _print_overhead(client: httpx.Client, spec: ModelSpec, repeats: int) -> None:
    """The same song in this process and through the service, in turn. Prompts are new, so that nothing is cached.

    `around` is what the service spends outside of its engine: HTTP, Ray, the job store, text encoding.
    """
    maker = InProcess(spec)
    rows = []
    for number in range(repeats + 1):
        params = replace(SHORT, prompt=f"{SHORT.prompt}, take {number}")
        here_s = sum(maker.make(params))
        there_s, request_id = _post(client, params)
        timings = client.get(f"/result/{request_id}?format=json").raise_for_status().json()["timings"]
        engine_s = timings["diffusion_s"] + timings["decode_s"] + timings["write_s"]
        rows.append((here_s * 1e3, there_s * 1e3, engine_s * 1e3, (there_s - engine_s) * 1e3))
    medians = [median(column) for column in zip(*rows[1:], strict=True)]  # the first pair warms both up
    columns = ("in process ms", "HTTP ms", "of that engine ms", "around ms", "HTTP / in process")
    title = f"One song of {SHORT.duration_s:g} s in {SHORT.steps} steps, with and without the service"
    print_table(title, columns, [(*medians, medians[1] / medians[0])])


def _print_callers(client: httpx.Client, repeats: int) -> None:
    rows = []
    for callers in (1, 2, 4):
        songs = callers * repeats
        with concurrent.futures.ThreadPoolExecutor(callers) as pool:
            started = time.perf_counter()
            taken = [taken_s for taken_s, _ in pool.map(partial(_post_seed, client), range(songs))]
            elapsed = time.perf_counter() - started
        rows.append((callers, songs, songs * SHORT.duration_s / elapsed, median(taken), max(taken)))
    columns = ("callers", "songs", "audio s per s", "p50 s", "max s")
    print_table(f"Songs of {SHORT.duration_s:g} s in {SHORT.steps} steps, several callers", columns, rows)


def _print_health(client: httpx.Client, repeats: int) -> None:
    latencies: list[float] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=client.base_url) as own:
            while not done.is_set():
                started = time.perf_counter()
                own.get("/health").raise_for_status()
                latencies.append((time.perf_counter() - started) * 1e3)
                time.sleep(0.05)

    asking = threading.Thread(target=ask)
    asking.start()
    for seed in range(repeats):
        _post(client, replace(SHORT, steps=30, seed=seed))
    done.set()
    asking.join()
    row = (len(latencies), median(latencies), quantiles(latencies, n=100)[98], max(latencies))
    print_table("/health while songs are made", ("requests", "p50 ms", "p99 ms", "max ms"), [row])


def _post_seed(client: httpx.Client, seed: int) -> tuple[float, str]:
    return _post(client, replace(SHORT, seed=seed))


def _post(client: httpx.Client, params: GenerationParams) -> tuple[float, str]:
    """Seconds from the request to the last byte of its WAV file, and the job's id."""
    body = {
        "prompt": params.prompt,
        "lyrics": params.lyrics,
        "audio_duration": params.duration_s,
        "infer_step": params.steps,
        "manual_seeds": params.seed,
    }
    started = time.perf_counter()
    response = client.post("/generate_music_direct", json=body).raise_for_status()
    return time.perf_counter() - started, response.headers["X-Request-ID"]


@contextmanager
def running_server(spec: ModelSpec) -> Iterator[str]:
    """`acestep-serve` on a free port, with folders of its own; answers its URL once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(
            "applications:\n- name: ace-step\n  import_path: serve_app.app:build_app\n"
            f"  args:\n    model: {spec.path}\n    state_dir: {folder}/state\n    output_dir: {folder}/outputs\n"
        )
        command = [sys.executable, "-m", "serve_app.cli", "--config", str(config)]
        with open(Path(folder) / "log", "w") as log:
            server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
            try:
                url = f"http://127.0.0.1:{port}"
                _wait_until_ready(url, server, Path(folder) / "log")
                yield url
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(timeout=60)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}:\n{log.read_text()[-2000:]}")
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    os.kill(server.pid, signal.SIGKILL)
    raise RuntimeError(f"the server was not ready after {START_TIMEOUT_S:g} s:\n{log.read_text()[-2000:]}")
