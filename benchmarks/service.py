"""The whole application in its own processes: what HTTP and Ray add, songs of several callers, /health meanwhile."""

import concurrent.futures
import itertools
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
from pathlib import Path
from statistics import median

import httpx

from acestep_engine.devices import pick_device
from acestep_engine.encode import AudioEncoder
from acestep_engine.lanes import Lanes
from acestep_engine.live_request import Unit
from acestep_engine.params import GenerationParams, ModelSpec
from acestep_engine.requests import Decoded, Failed, Finished
from benchmarks.engine import BASE, InProcess
from benchmarks.tables import percentile, print_table
from benchmarks.threads import apart
from deployments.cpus import available_cpus

SHORT = replace(BASE, duration_s=5.0, steps=10)
CALLED = replace(BASE, duration_s=10.0, steps=27)
CALLERS = (1, 2, 4, 8, 16)
SONGS_PER_TURN = 2  # of each caller
LONG_SONGS = 4
PLACES = 8  # of one size, as a Generator has by default
START_TIMEOUT_S = 180.0


def print_tables(spec: ModelSpec, repeats: int) -> None:
    with running_server(spec) as url, httpx.Client(base_url=url, timeout=600.0) as client:
        cores = available_cpus()
        apart(cores, lambda: _print_overhead(client, spec, repeats))
        apart(cores, lambda: _print_callers(client, spec, repeats, Lanes()))  # what an engine has by default
        served = Lanes[Unit].for_device(pick_device(), cores)
        if served.most > 1:
            apart(1, lambda: _print_callers(client, spec, repeats, served))
        _print_short_among_long(client, repeats)
        _print_cancel(client, repeats)
        _print_health(client, repeats)


def _print_overhead(client: httpx.Client, spec: ModelSpec, repeats: int) -> None:
    """The same song in this process and through the service, in turn. Prompts are new, so that nothing is cached.

    `around` is what the service spends beside what is done here as well, its engine and text encoding: HTTP, Ray, the
    job store. The time of encoding is taken here.
    """
    maker = InProcess(spec)
    rows = []
    for number in range(repeats + 1):
        params = replace(SHORT, prompt=f"{SHORT.prompt}, take {number}")
        encode_s, *here = maker.make(params)
        here_s = encode_s + sum(here)
        there_s, request_id = _post(client, params)
        timings = client.get(f"/result/{request_id}?format=json").raise_for_status().json()["timings"]
        engine_s = timings["diffusion_s"] + timings["decode_s"] + timings["write_s"]
        seconds = (here_s, there_s, engine_s, encode_s, there_s - engine_s - encode_s)
        rows.append([one * 1e3 for one in seconds])
    medians = [median(column) for column in zip(*rows[1:], strict=True)]  # the first pair warms both up
    columns = ("in process ms", "HTTP ms", "of that engine ms", "encoding ms", "around ms", "HTTP / in process")
    title = f"One song of {SHORT.duration_s:g} s in {SHORT.steps} steps, with and without the service"
    print_table(title, columns, [(*medians, medians[1] / medians[0])])


def _print_callers(client: httpx.Client, spec: ModelSpec, repeats: int, lanes: Lanes[Unit]) -> None:
    """Callers that ask for the next song as soon as they have one, over HTTP and of an engine here, in turn."""
    maker, rows = InProcess(spec, lanes=lanes), []
    for callers in CALLERS:
        one_song_each(client, callers, callers)
        taken: list[float] = []
        there_s, here_s = [], []
        for _ in range(repeats):
            song_s, all_s = one_song_each(client, callers, SONGS_PER_TURN * callers)
            taken += song_s
            there_s.append(all_s)
            here_s.append(_in_process(maker, callers, SONGS_PER_TURN * callers))
        percentiles = (median(taken), percentile(taken, 95), percentile(taken, 99))
        audio_s = SONGS_PER_TURN * callers * CALLED.duration_s
        ratio = median(here / there for here, there in zip(here_s, there_s, strict=True))
        rows.append((callers, len(taken), audio_s / median(there_s), *percentiles, audio_s / median(here_s), ratio))
    columns = ("callers", "songs", "audio s per s", "p50 s", "p95 s", "p99 s", "in process audio s per s", "ratio")
    here = "one lane" if lanes.most == 1 else f"{lanes.most} lanes, as the server has"
    title = f"Songs of {CALLED.duration_s:g} s in {CALLED.steps} steps, several callers; in process {here}"
    print_table(title, columns, rows)


def one_song_each(client: httpx.Client, callers: int, songs: int) -> tuple[list[float], float]:
    """Seconds of each song, and of all."""
    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        started = time.perf_counter()
        taken = [
            taken_s for taken_s, _ in pool.map(lambda seed: _post(client, replace(CALLED, seed=seed)), range(songs))
        ]
        return taken, time.perf_counter() - started


def _in_process(maker: InProcess, callers: int, songs: int) -> float:
    """Seconds of the same songs without a service, as many at a time; WAV files are written in the same thread."""
    left, files = iter(range(songs)), dict[str, AudioEncoder]()
    started = time.perf_counter()
    for seed in itertools.islice(left, callers):
        maker.add(str(seed), replace(CALLED, seed=seed))
    while maker.engine.busy:
        for event in maker.engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Decoded):
                if event.request_id not in files:
                    files[event.request_id] = AudioEncoder("wav", event.song_samples, {})
                files[event.request_id].push(event.samples)
            if isinstance(event, Finished):
                files.pop(event.request_id).finish()
                for seed in itertools.islice(left, 1):
                    maker.add(str(seed), replace(CALLED, seed=seed))
    return time.perf_counter() - started


def _print_short_among_long(client: httpx.Client, repeats: int) -> None:
    """A song of 10 s alone, and while 240 s songs fill the server."""
    short = replace(CALLED, duration_s=10.0)
    songs = 4 * repeats
    alone = [_post(client, replace(short, seed=seed))[0] for seed in range(songs + 1)][1:]
    long = [_post_async(client, replace(short, duration_s=240.0, steps=60, seed=seed)) for seed in range(LONG_SONGS)]
    time.sleep(2.0)  # until they run
    among = [_post(client, replace(short, seed=seed))[0] for seed in range(songs)]
    for request_id in long:
        client.delete(f"/request/{request_id}")
    rows = [
        (name, len(taken), median(taken), percentile(taken, 95), percentile(taken, 95) / median(alone))
        for name, taken in (("alone", alone), (f"among {LONG_SONGS} of 240 s in 60 steps", among))
    ]
    columns = ("a song of 10 s in 27 steps", "songs", "p50 s", "p95 s", "p95 / p50 alone")
    print_table("Short songs among long ones, over HTTP", columns, rows)


def _print_cancel(client: httpx.Client, repeats: int) -> None:
    """A song is cancelled while all places of its size are taken: until its place is free, and until the next has it.

    Free it is when DELETE answers. Both are told in steps of the cancelled song as well, at their pace of the moment.
    """
    long = replace(CALLED, duration_s=60.0, steps=200)
    running = [_post_async(client, replace(long, seed=seed)) for seed in range(PLACES)]
    step_s, free_s, taken_s = [], [], []
    for trial in range(3 * repeats):
        waiting = _post_async(client, replace(long, seed=PLACES + trial))
        cancelled = running.pop()  # the youngest, which has most of its steps before it
        step_s.append(_step_s(client, cancelled))
        started = time.perf_counter()
        client.delete(f"/request/{cancelled}").raise_for_status()
        free_s.append(time.perf_counter() - started)
        _wait_until_processing(client, waiting)
        taken_s.append(time.perf_counter() - started)
        running.append(waiting)
    for request_id in running:
        client.delete(f"/request/{request_id}")
    rows = []
    for until, seconds in (("its place is free", free_s), ("the next song has it", taken_s)):
        steps = [time_s / one_s for time_s, one_s in zip(seconds, step_s, strict=True)]
        for unit, values in (("s", seconds), ("steps", steps)):
            rows.append((f"until {until}, {unit}", len(values), *(percentile(values, p) for p in (50, 90, 100))))
    title = f"Cancelling a running song of {long.duration_s:g} s, {PLACES} at a time and one waiting"
    print_table(title, ("", "cancels", "p50", "p90", "max"), rows)


def _step_s(client: httpx.Client, request_id: str, steps: int = 2) -> float:
    """How long a step of a song takes at the moment, once it does any: over the next few."""
    seen: list[tuple[float, int]] = []
    while not seen or seen[-1][1] < seen[0][1] + steps:
        status = client.get(f"/status/{request_id}").json()
        if status["status"] in ("completed", "failed"):
            raise RuntimeError(f"the song to be cancelled {status['status']} first: give it more steps")
        progress = status.get("progress") or {}
        if progress.get("stage") == "diffusion" and progress["step"] >= 1:
            seen.append((time.perf_counter(), progress["step"]))
        time.sleep(0.05)
    return (seen[-1][0] - seen[0][0]) / (seen[-1][1] - seen[0][1])


def _wait_until_processing(client: httpx.Client, request_id: str) -> None:
    while client.get(f"/status/{request_id}").json()["status"] != "processing":
        time.sleep(0.01)


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
    row = (len(latencies), median(latencies), percentile(latencies, 99), max(latencies))
    print_table("/health while songs are made", ("requests", "p50 ms", "p99 ms", "max ms"), [row])


def _post_async(client: httpx.Client, params: GenerationParams) -> str:
    """The id of a job that was queued."""
    request_id: str = (
        client.post("/generate_music_async", json=request_body(params)).raise_for_status().json()["request_id"]
    )
    return request_id


def _post(client: httpx.Client, params: GenerationParams) -> tuple[float, str]:
    """Seconds from the request to the last byte of its WAV file, and the job's id."""
    started = time.perf_counter()
    response = client.post("/generate_music_direct", json=request_body(params)).raise_for_status()
    return time.perf_counter() - started, response.headers["X-Request-ID"]


def request_body(params: GenerationParams) -> dict[str, object]:
    """What asks for this song over HTTP."""
    return {
        "prompt": params.prompt,
        "lyrics": params.lyrics,
        "audio_duration": params.duration_s,
        "infer_step": params.steps,
        "manual_seeds": params.seed,
    }


@contextmanager
def running_server(spec: ModelSpec, replicas: int = 1) -> Iterator[str]:
    """`acestep-serve` on a free port, with folders of its own; answers its URL once all its Generators are ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(
            "applications:\n- name: ace-step\n  import_path: serve_app.app:build_app\n"
            f"  args:\n    model: {spec.path}\n    state_dir: {folder}/state\n    output_dir: {folder}/outputs\n"
            f"    generator: {{ min_replicas: {replicas}, max_replicas: {replicas} }}\n"
        )
        command = [sys.executable, "-m", "serve_app.cli", "--config", str(config)]
        with open(Path(folder) / "log", "w") as log:
            server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
            try:
                url = f"http://127.0.0.1:{port}"
                _wait_until_ready(url, replicas, server, Path(folder) / "log")
                yield url
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(timeout=60)


def _wait_until_ready(url: str, replicas: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}:\n{log.read_text()[-2000:]}")
        try:
            health = httpx.get(f"{url}/health")
            if health.status_code == 200 and health.json()["replicas"] == replicas:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    os.kill(server.pid, signal.SIGKILL)
    raise RuntimeError(f"the server was not ready after {START_TIMEOUT_S:g} s:\n{log.read_text()[-2000:]}")
