"""What phones and browsers record is read by the optional decoder, within the same limits, and can open nothing."""

import io
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from acestep_engine import media_child
from acestep_engine.audio import AudioLimits, check_audio, read_audio
from acestep_engine.errors import AudioError, AudioTooLargeError
from tests.engine.recordings import RATE_HZ, RECORDINGS, recording, tones

av = pytest.importorskip("av")

LIMITS = AudioLimits()


@pytest.mark.parametrize("kind", RECORDINGS)
def test_what_phones_and_browsers_record_is_read(kind: str) -> None:
    found = read_audio(recording(kind), LIMITS)

    assert found.sample_rate_hz == RATE_HZ
    assert found.samples.shape[1] == pytest.approx(2 * RATE_HZ, abs=4_096)
    second = found.samples[:, RATE_HZ // 2 : 3 * RATE_HZ // 2]
    assert list(np.abs(np.fft.rfft(second)).argmax(axis=1)) == [440, 660]
    assert np.sqrt((second**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)


def test_lossless_audio_comes_out_as_it_went_in() -> None:
    for kind in ("mka of pcm floats", "caf of pcm", "mp4 of lossless audio"):
        found = read_audio(recording(kind), LIMITS).samples
        np.testing.assert_allclose(found, tones(2), atol=4e-5)


def test_the_sound_of_a_video_is_read() -> None:
    for kind in ("m4a whose index comes first", "mka of flac"):
        info = check_audio(recording(kind, video=10), LIMITS)
        assert info.duration_s == pytest.approx(2, abs=0.1)


def test_a_video_without_sound_is_refused() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode())

    with pytest.raises(AudioError, match="this is an MP4 or M4A file, but it holds no sound"):
        check_audio(file.getvalue(), LIMITS)


@pytest.mark.parametrize("layout", ["mono", "5.1"])
def test_other_numbers_of_channels_become_stereo(layout: str) -> None:
    channels = {"mono": 1, "5.1": 6}[layout]
    data = recording("mka of pcm floats", tones(0.5, channels), layout)

    assert check_audio(data, LIMITS).channels == channels
    assert read_audio(data, LIMITS).samples.shape == (2, RATE_HZ // 2)


def test_the_limits_of_other_files_hold() -> None:
    with pytest.raises(AudioTooLargeError, match=r"the limit is 1 s"):
        check_audio(recording("webm of opus"), AudioLimits(max_duration_s=1))
    with pytest.raises(AudioTooLargeError, match="2 channels exceed the limit of 1"):
        check_audio(recording(), AudioLimits(max_channels=1))
    with pytest.raises(AudioError, match="a sample rate of 48000 Hz is outside of 8000 to 44100 Hz"):
        check_audio(recording(), AudioLimits(max_rate_hz=44_100))
    for value, message in ((np.nan, "NaN or infinite"), (200.0, "the limit is 100")):
        samples = tones(1)
        samples[1, 20_000] = value
        with pytest.raises(AudioError, match=message):
            check_audio(recording("mka of pcm floats", samples), LIMITS)


def test_a_long_file_is_refused_without_decoding_the_rest() -> None:
    silence = np.zeros((1, 1_200 * 8_000), np.float32)
    data = recording("mka of flac", silence, "mono", 8_000)
    assert len(data) < 2**20

    with pytest.raises(AudioTooLargeError, match=r"lasts at least 60\d\.\d s, the limit is 600 s"):
        check_audio(data, LIMITS)


@pytest.mark.parametrize("kind", ["m4a whose index comes first", "webm of opus", "aac", "mp4 of Safari's recorder"])
def test_a_file_that_is_cut_off_is_read_for_what_is_there(kind: str) -> None:
    data = recording(kind, tones(5))

    assert 1 < check_audio(data[: len(data) // 2], LIMITS).duration_s < 4


@pytest.mark.parametrize("kind", RECORDINGS)
def test_damaged_files_are_read_in_part_or_refused(kind: str) -> None:
    data = recording(kind, tones(0.5))
    random = np.random.default_rng(0)
    for _ in range(3):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = random.integers(12, len(data), 50)
        damaged[places] = random.integers(0, 256, 50)
        for sent in (damaged.tobytes(), data[: random.integers(12, len(data))]):
            with suppress(AudioError, AudioTooLargeError):
                assert check_audio(sent, LIMITS).frames > 0


def test_a_file_without_its_index_is_refused() -> None:
    data = recording("m4a")

    with pytest.raises(AudioError, match="but it is broken or encoded in a way that is not supported; convert it"):
        check_audio(data[: len(data) // 2], LIMITS)


def box(name: bytes, *content: bytes) -> bytes:
    inner = b"".join(content)
    return struct.pack(">I", 8 + len(inner)) + name + inner


def with_external_samples(data: bytes, path: bytes) -> bytes:
    """A QuickTime file whose samples are said to be in another file, by an alias as the Finder makes them."""
    at = data.index(b"dref") - 4
    (size,) = struct.unpack_from(">I", data, at)
    path += bytes(len(path) % 2)
    alias = box(b"alis", bytes(134), b"\xff" * 4, bytes(16), struct.pack(">HH", 2, len(path)), path, b"\xff\xff\0\0")
    outside = box(b"dref", bytes(4), struct.pack(">I", 1), alias)
    changed = bytearray(data[:at] + outside + data[at + size :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = changed.rindex(name, 0, at) - 4
        (outer,) = struct.unpack_from(">I", changed, place)
        struct.pack_into(">I", changed, place, outer + len(outside) - size)
    return bytes(changed)


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and which paths were asked for there."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_that_names_another_one_opens_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret.pcm"
    secret.write_bytes(os.urandom(400_000))

    with pytest.raises(AudioError):
        read_audio(with_external_samples(recording("mov of pcm"), str(secret).encode()), LIMITS)


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXTINF:1,\n{0}/a.ts\n", "ffconcat version 1.0\nfile {0}/a.wav\n", "<MPD><BaseURL>{0}</BaseURL></MPD>"],
)
def test_playlists_are_never_opened(text: str, asked: tuple[str, list[str]]) -> None:
    url, paths = asked

    with pytest.raises(AudioError, match=r"a playlist|HTML or XML text"):
        check_audio(text.format(url).encode(), LIMITS)
    for head in (b"\x00\x00\x00\x20ftypM4A ", b"\x1aE\xdf\xa3", b"caff", b"#!AMR\n"):
        with suppress(AudioError):  # whatever follows the start of an AMR file is sound to it
            check_audio(head + text.format(url).encode(), LIMITS)
    assert paths == []


def test_the_process_that_decodes_can_open_nothing() -> None:
    code = (
        "from acestep_engine import media_child as m; import socket\n"
        "m._give_up_rights()\n"
        "for attempt in (lambda: open('/etc/hostname'), lambda: socket.socket()):\n"
        "    try: attempt()\n"
        "    except OSError as error: print(error.errno)\n"
        "try: bytearray(2**30)\n"
        "except MemoryError: print('memory')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.split() == ["24", "24", "memory"]


def test_an_index_of_a_hundred_million_samples_takes_no_memory() -> None:
    """A sample table of constant sizes needs no bytes for its entries, but the decoder builds an index of them all."""
    data = bytearray(recording("mp4 of lossless audio"))
    at = data.index(b"stsz")
    struct.pack_into(">II", data, at + 8, 1, 88_000_000)
    chunk = data.index(b"stsc")
    struct.pack_into(">II", data, chunk + 8, 1, 1)
    struct.pack_into(">I", data, chunk + 16, 88_000_000)
    stts = data.index(b"stts")
    struct.pack_into(">II", data, stts + 12, 88_000_000, 4_096)
    code = (
        "import resource, sys; from acestep_engine.audio import *\n"
        "try: check_audio(sys.stdin.buffer.read(), AudioLimits())\n"
        "except (AudioError, AudioTooLargeError) as error: print(type(error).__name__)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], input=bytes(data), check=True, capture_output=True)

    error, most_mib = done.stdout.split()
    assert error in (b"AudioError", b"AudioTooLargeError")
    assert int(most_mib) < 400


def test_a_process_that_dies_is_a_broken_file_and_leaves_no_other_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for body in (
        "import os; os.abort()",
        "print('{}')",
        "print('no json')",
        "print('[1]')",
        "import sys; sys.stdin.read()",
    ):
        script = tmp_path / "child.py"
        script.write_text(body)
        monkeypatch.setattr(media_child, "__file__", str(script))
        with pytest.raises(AudioError, match="broken"):
            check_audio(recording(samples=tones(0.1)) + bytes(2**20), LIMITS)


def test_a_process_that_dies_in_the_middle_is_a_broken_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text("""import os, sys
sys.stdin.buffer.read()
print('{"channels": 2, "sample_rate_hz": 48000}', flush=True)
sys.stdout.buffer.write(bytes(800_000))
sys.stdout.flush()
os.abort()
""")
    monkeypatch.setattr(media_child, "__file__", str(script))

    with pytest.raises(AudioError, match="broken"):
        check_audio(recording(samples=tones(0.1)), LIMITS)


def test_an_installation_without_the_library_says_both_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('libav is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(AudioError, match=r"convert it: ffmpeg .*pip install 'acestep-serve\[media\]'"):
        check_audio(recording(samples=tones(0.1)), LIMITS)


def test_leaving_early_ends_the_process() -> None:
    before = _processes()
    with pytest.raises(AudioTooLargeError):
        check_audio(recording("mka of pcm floats", tones(20)), AudioLimits(max_duration_s=1))
    for _ in range(50):
        if _processes() <= before:
            return
        time.sleep(0.1)
    raise AssertionError("a process was left behind")


def _processes() -> set[int]:
    """Processes that this one has started."""
    return {int(pid) for tasks in Path("/proc/self/task").iterdir() for pid in (tasks / "children").read_text().split()}


def test_the_secrets_of_the_server_are_not_handed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACESTEP_ADMIN_KEY", "secret")
    script = tmp_path / "child.py"
    script.write_text(f"import os; open({str(tmp_path / 'seen')!r}, 'w').write(repr(dict(os.environ)))")
    monkeypatch.setattr(media_child, "__file__", str(script))

    with pytest.raises(AudioError):
        check_audio(recording(samples=tones(0.1)), LIMITS)

    assert "secret" not in (tmp_path / "seen").read_text()
