"""Ways in which one client can hurt a server: large and slow bodies, idle and greedy connections, races.

Each stops by itself. Every function misbehaves towards the server at an address of this machine, and returns a word
about how it went.
"""

import asyncio
import base64
import io
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import requests
import soundfile

MIB = 2**20
SONG = {"prompt": "piano", "lyrics": "", "audio_duration": 2, "infer_step": 2, "guidance_scale": 1}
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Case:
    """One way to misbehave. `amount` scales it: 1 is the full case, less is for a quick look."""

    name: str
    run: "Callable[[str, float], str]"


async def _open(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    return await asyncio.open_connection(address.hostname, address.port, limit=4 * MIB)


def _head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


async def _status(reader: asyncio.StreamReader) -> str:
    """The status of an answer; `closed` where the connection ends without one."""
    with suppress(OSError, asyncio.IncompleteReadError):
        line = await reader.readline()
        if line:
            return line.split()[1].decode()
    return "closed"


def _counted(statuses: list[str]) -> str:
    return ", ".join(f"{count} × {status}" for status, count in sorted(Counter(statuses).items()))


def _together(work: list[Awaitable[str]]) -> str:
    async def run() -> list[str]:
        answers = await asyncio.gather(*work, return_exceptions=True)
        return [one if isinstance(one, str) else type(one).__name__ for one in answers]

    return _counted(asyncio.run(run()))


def _bodies() -> list[tuple[bytes, str]]:
    """44 MB of every shape that a parser may be slow or greedy with."""
    part = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n'
    return [
        (b'{"prompt": [' + b"[]," * (14 * MIB) + b"[]]}", "application/json"),
        (b"[" * (44 * MIB), "application/json"),
        (b'{"lyrics": "' + b"\\u00e4" * (7 * MIB) + b'"}', "application/json"),
        (b'{"audio_base64": "' + b"\\/" * (21 * MIB) + b'"}', "application/json"),
        (b'{"audio_base64": "' + b"A" * (43 * MIB) + b'"}', "application/json"),
        (b"prompt=" + b"%41" * (14 * MIB), FORM),
        (b"audio_base64=" + b"%41" * (14 * MIB), FORM),
        (b"a&" * (22 * MIB), FORM),
        (part % b"prompt" + b"a" * (43 * MIB) + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (part % b"audio_file" + b"\r\n--" * (10 * MIB) + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (part % b"a" + b"\r\n--x\r\n" * (6 * MIB), "multipart/form-data; boundary=x"),
    ]


def large_bodies(url: str, amount: float) -> str:
    """Send each body once, three at a time."""
    bodies = _bodies()
    chosen = bodies[:: max(1, int(1 / amount))]

    def send(body: bytes, kind: str) -> str:
        try:
            headers = {"Content-Type": kind}
            return str(
                requests.post(f"{url}/generate_music_async", data=body, headers=headers, timeout=120).status_code
            )
        except requests.RequestException as error:
            return type(error).__name__

    async def all_of_them() -> list[str]:
        places = asyncio.Semaphore(3)

        async def one(body: bytes, kind: str) -> str:
            async with places:
                return await asyncio.to_thread(send, body, kind)

        return await asyncio.gather(*(one(body, kind) for body, kind in chosen))

    return _counted(asyncio.run(all_of_them()))


def slow_bodies(url: str, amount: float) -> str:
    """Begin 1,050 requests and send a byte a second of each body for ten seconds."""

    async def one() -> str:
        reader, writer = await _open(url)
        try:
            writer.write(_head("POST", "/generate_music_async", "Content-Type: application/json", "Content-Length: 99"))
            answer = asyncio.ensure_future(_status(reader))
            for _ in range(10):
                writer.write(b" ")
                with suppress(ConnectionError):
                    await writer.drain()
                await asyncio.wait([answer], timeout=1.0)
                if answer.done():
                    return answer.result()
            answer.cancel()
            return "held"
        finally:
            writer.close()

    return _together([one() for _ in range(int(1_050 * amount))])


def followers(url: str, amount: float) -> str:
    """Follow a job that waits 1,050 times, for eight seconds."""
    blocked = [_queue(url, audio_duration=240, infer_step=200) for _ in range(3)]

    async def one() -> str:
        reader, writer = await _open(url)
        try:
            writer.write(_head("GET", f"/events/{blocked[-1]}", "Accept: text/event-stream"))
            status = await asyncio.wait_for(_status(reader), 60)
            await asyncio.sleep(8)
            return status
        finally:
            writer.close()

    try:
        return _together([one() for _ in range(int(1_050 * amount))])
    finally:
        for request_id in blocked:
            requests.delete(f"{url}/request/{request_id}", timeout=60)


def slow_readers(url: str, amount: float) -> str:
    """Fetch a song of 44 MB 200 times and read a little of it every second."""
    request_id = _made(url, audio_duration=max(10, 240 * amount), infer_step=1)

    async def one(path: str) -> str:
        reader, writer = await _open(url)
        try:
            writer.write(_head("GET", path))
            status = await asyncio.wait_for(_status(reader), 60)
            for _ in range(8):
                await asyncio.wait_for(reader.read(4096), 60)
                await asyncio.sleep(1)
            return status
        finally:
            writer.transport.abort()

    paths = [f"/result/{request_id}", f"/stream/{request_id}", f"/result/{request_id}?format=json"]
    return _together([one(paths[index % 3]) for index in range(int(200 * amount))])


def ranges(url: str, amount: float) -> str:
    """Ask 40 times for one byte, for the headers and for the JSON of a song of 44 MB, all at once."""
    request_id = _made(url, audio_duration=max(10, 240 * amount), infer_step=1)

    async def one(method: str, path: str, *headers: str) -> str:
        reader, writer = await _open(url)
        try:
            writer.write(_head(method, path, "Connection: close", *headers))
            status = await asyncio.wait_for(_status(reader), 60)
            while await asyncio.wait_for(reader.read(MIB), 60):
                pass
            return status
        finally:
            writer.close()

    path = f"/result/{request_id}"
    work: list[Awaitable[str]] = []
    for _ in range(int(40 * amount)):
        work += [one("GET", path, "Range: bytes=5-5"), one("HEAD", path), one("GET", f"{path}?format=json")]
    return _together(work)


def header_floods(url: str, amount: float) -> str:
    """Send 100 MB of headers on each of three connections, and begin heads that never end on 500 others."""

    async def flood(line: bytes) -> str:
        reader, writer = await _open(url)
        try:
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            for _ in range(int(100 * amount)):
                writer.write(line * (MIB // len(line)))
                await writer.drain()
            return await asyncio.wait_for(_status(reader), 60)
        except ConnectionError:
            return "closed"
        finally:
            writer.transport.abort()

    async def endless_head() -> str:
        reader, writer = await _open(url)
        try:
            writer.write(b"GET /health HTTP/1.1\r\nHost: loc")
            return await asyncio.wait_for(_status(reader), 60)
        finally:
            writer.close()

    floods = [flood(line) for line in (b"X-A: b\r\n", b"X-Long: " + b"a" * 8_000 + b"\r\n", b"a")]
    return _together([*floods, *(endless_head() for _ in range(int(500 * amount)))])


def idle_sockets(url: str, amount: float) -> str:
    """Open 3,000 connections and say nothing for fifteen seconds."""

    async def one() -> str:
        try:
            reader, writer = await _open(url)
        except OSError as error:
            return type(error).__name__
        try:
            return "closed" if not await asyncio.wait_for(reader.read(1), 15) else "answered"
        except TimeoutError:
            return "held"
        finally:
            writer.close()

    return _together([one() for _ in range(int(3_000 * amount))])


def amplified_sources(url: str, amount: float) -> str:
    """Send silence of ten minutes, eight channels, 192 kHz, in a file of a megabyte: 3.7 GB when it is decoded."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 192_000, 8, format="FLAC") as flac:
        second = np.zeros((192_000, 8), np.int16)
        for _ in range(600):
            flac.write(second)
    fields = {"prompt": "piano", "infer_step": "1", "guidance_scale": "1"}

    def send() -> str:
        files = {"audio_file": ("silence.flac", file.getvalue())}
        answer = requests.post(f"{url}/generate_music_with_audio", files=files, data=fields, timeout=300)
        if answer.status_code != 200:
            return str(answer.status_code)
        return str(_until_ended(url, answer.json()["request_id"]))

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(send) for _ in range(max(1, int(4 * amount)))))

    return _counted(asyncio.run(all_of_them()))


def cancels(url: str, amount: float) -> str:
    """Submit songs from five clients and cancel each at once; then nothing may run or wait."""

    def client(index: int) -> list[str]:
        with requests.Session() as session:
            statuses = []
            for _ in range(int(600 * amount)):
                queued = session.post(f"{url}/generate_music_async", json=SONG | {"infer_step": 50}, timeout=60)
                if queued.status_code == 200:
                    request_id = queued.json()["request_id"]
                    statuses.append(str(session.delete(f"{url}/request/{request_id}", timeout=60).status_code))
                else:
                    statuses.append(f"submit {queued.status_code}")
            return statuses

    async def all_of_them() -> list[str]:
        answers = await asyncio.gather(*(asyncio.to_thread(client, index) for index in range(5)))
        return [status for statuses in answers for status in statuses]

    return _counted(asyncio.run(all_of_them()))


def many_songs(url: str, amount: float) -> str:
    """Make 500 songs of mixed lengths, eight at a time."""

    def make(index: int) -> str:
        song = SONG | {"audio_duration": (1, 2, 5, 10)[index % 4], "format": ("wav", "mp3", "ogg")[index % 3]}
        return str(requests.post(f"{url}/generate_music_direct", json=song, timeout=300).status_code)

    async def all_of_them() -> list[str]:
        places = asyncio.Semaphore(8)

        async def one(index: int) -> str:
            async with places:
                return await asyncio.to_thread(make, index)

        return await asyncio.gather(*(one(index) for index in range(int(500 * amount))))

    return _counted(asyncio.run(all_of_them()))


def base64_uploads(url: str, amount: float) -> str:
    """Send 32 MB of noise as base64 in JSON twelve times at once."""
    noise = base64.b64encode(np.random.default_rng(0).bytes(30 * MIB)).decode()
    body = json.dumps(SONG | {"audio_base64": noise})

    def send() -> str:
        headers = {"Content-Type": "application/json"}
        answer = requests.post(f"{url}/generate_music_with_audio_json", data=body, headers=headers, timeout=120)
        return str(answer.status_code)

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(send) for _ in range(max(1, int(12 * amount)))))

    return _counted(asyncio.run(all_of_them()))


def _queue(url: str, **fields: object) -> str:
    queued = requests.post(f"{url}/generate_music_async", json=SONG | fields, timeout=60)
    request_id: str = queued.json()["request_id"]
    return request_id


def _made(url: str, **fields: object) -> str:
    request_id = _queue(url, **fields)
    assert _until_ended(url, request_id) == "completed"
    return request_id


def _until_ended(url: str, request_id: str) -> str:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        outcome = requests.get(f"{url}/status/{request_id}", timeout=60).json()["outcome"]
        if outcome is not None:
            return str(outcome)
        time.sleep(0.1)
    return "no end"


CASES = [
    Case("44 MB bodies of every shape", large_bodies),
    Case("base64 uploads at once", base64_uploads),
    Case("1,050 slow bodies", slow_bodies),
    Case("1,050 followers", followers),
    Case("200 slow readers", slow_readers),
    Case("ranges, HEAD and JSON of a large song", ranges),
    Case("floods of headers", header_floods),
    Case("3,000 idle sockets", idle_sockets),
    Case("amplified sources", amplified_sources),
    Case("3,000 submits and cancels", cancels),
    Case("500 songs", many_songs),
]
