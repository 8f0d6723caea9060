"""`acestep-serve`: starts the application here, or on the cluster that RAY_ADDRESS names; downloads the model.

Ray is imported only once the options and the port are found to be right: it takes seconds, and reads the environment.
"""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acestep_engine.checkpoint import missing_parts
from acestep_engine.download import download_checkpoint
from acestep_engine.errors import CheckpointError
from deployments.messages import ServiceError
from deployments.models import PUBLISHED, published_folder
from deployments.placement import PlacementError
from serve_app.settings import Settings

DEFAULT_CONFIG = Path("serve_config.yaml")
IMPORT_PATH = "serve_app.app:build_app"
HEALTH_TIMEOUT_S = 60.0  # once Serve says that every replica is ready

DESCRIPTION = """\
Serve ACE-Step music generation over HTTP. Without options: port 8019, the settings of ./serve_config.yaml, and the
best model that this machine can run (without a GPU or a download, the bundled nano model: small, instrumental).
"""
EPILOG = """\
environment:
  ACE_OUTPUT_DIR        where songs are saved (./outputs)
  LOG_LEVEL             DEBUG, INFO, WARNING or ERROR (INFO)
  CUDA_VISIBLE_DEVICES  which GPUs may be used, as CUDA numbers them
  ACESTEP_ADMIN_KEY     the key for /initialize and for changing /loras; without it these are off
  ACESTEP_CALLBACK_SECRET  what signs callbacks; without it they are not signed
  HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE  where and as whom `download` fetches; 1 forbids it
  RAY_ADDRESS           a running Ray cluster to serve on; without it one is started on this machine. Where Serve runs
                        there already, its own host and port stay
  RAY_AUTH_MODE         token: Ray's own ports and its dashboard ask for the token that `ray get-auth-token` prints
                        (so unless you set this); disabled: they ask for none, and whoever reaches them can run code

examples:
  acestep-serve                                   http://localhost:8019/docs
  acestep-serve --port 8020 --host localhost
  acestep-serve download && acestep-serve --model v1-3.5b
  acestep-serve --checkpoint_path ~/ACE-Step-v1-3.5B --cpu_offload --overlapped_decode
"""


class CliError(Exception):
    """A sentence for whoever typed the command."""


class HttpSettings(BaseModel):
    """`http_options` of the configuration file, as far as this command needs them."""

    model_config = ConfigDict(extra="allow")
    host: str = "0.0.0.0"
    port: int = Field(default=8019, ge=1, le=65_535)


class ApplicationSettings(BaseModel):
    """One entry of `applications`."""

    model_config = ConfigDict(extra="allow")
    name: str = "ace-step"
    route_prefix: str = "/"
    import_path: str
    args: dict[str, Any] = {}


class ConfigFile(BaseModel):
    """A Serve configuration file."""

    model_config = ConfigDict(extra="allow")
    http_options: HttpSettings = HttpSettings()
    applications: list[ApplicationSettings] = []


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 after a clean stop, 1 with a sentence on stderr, 2 for options that argparse refuses."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "download":
            return _download(given)
        return _serve(given)
    except (CliError, CheckpointError, PlacementError, ServiceError) as error:
        print(f"acestep-serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="acestep-serve",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=int, help="the HTTP port (8019)")
    parser.add_argument("--host", help="the address to listen at (0.0.0.0: every interface)")
    _add(
        parser,
        "config",
        type=Path,
        metavar="FILE",
        help="a Serve configuration file (./serve_config.yaml if it exists)",
    )
    _add(parser, "model", help="auto, nano, v1-3.5b, a name configured under checkpoints, or a checkpoint folder")
    _add(
        parser,
        "checkpoint_path",
        metavar="DIR",
        help="a checkpoint folder, or the folder that v1-3.5b is kept in or downloaded to",
    )
    _add_switch(parser, "download", "fetch v1-3.5b first if it is the model and not there (`auto` wants a GPU for it)")
    _add(
        parser,
        "device_id",
        type=int,
        metavar="N",
        help="use only this GPU (default: all). Sets CUDA_VISIBLE_DEVICES, and is ignored where that is set already",
    )
    _add_switch(parser, "bf16", "bfloat16, or with --no-bf16 float32 (default: bfloat16 on a GPU, float32 on a CPU)")
    _add_switch(parser, "torch_compile", "compile the model; by default a start on a GPU tries whether that is faster")
    _add_switch(parser, "cpu_offload", "keep only the part in use on the GPU: fits 8 GB, slower")
    _add_switch(parser, "overlapped_decode", "decode long songs in pieces: less memory")
    commands = parser.add_subparsers(dest="command", metavar="", title="commands")
    download = commands.add_parser(
        "download",
        help="fetch the published v1-3.5b checkpoint (about 8 GB), or verify and complete what is there",
        allow_abbrev=False,
    )
    for name in ("checkpoint_path", "config"):
        kind = Path if name == "config" else str
        _add(download, name, type=kind, default=argparse.SUPPRESS, help="as without `download`")
    return parser


def _add(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    """An option that may be written with underscores or dashes."""
    parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), dest=name, **options)


def _add_switch(parser: argparse.ArgumentParser, name: str, help_text: str) -> None:
    """`--name`, `--name true`, `--name=false`, `--no-name`. None when it is not given."""
    _add(parser, name, nargs="?", const=True, type=_boolean, metavar="true|false", help=help_text)
    negations = dict.fromkeys((f"--no_{name}", f"--no-{name.replace('_', '-')}"))
    parser.add_argument(*negations, dest=name, action="store_false", default=None, help=argparse.SUPPRESS)


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]


def read_config(path: Path | None) -> ConfigFile:
    """The named file, else ./serve_config.yaml if it exists, else the defaults. Raises CliError."""
    if path is None and not DEFAULT_CONFIG.is_file():
        return ConfigFile()
    path = path or DEFAULT_CONFIG
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return ConfigFile.model_validate(content or {})
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CliError(f"{path} is no YAML: {error}") from None
    except ValidationError as error:
        raise CliError(f"{path}: {_problems(error)}") from None


def application_of(config: ConfigFile) -> ApplicationSettings:
    """The music application of a configuration file. Raises CliError if it has another one only."""
    for application in config.applications:
        if application.import_path == IMPORT_PATH:
            return application
    if config.applications:
        raise CliError(f"the configuration file has no application with import_path {IMPORT_PATH}")
    return ApplicationSettings(import_path=IMPORT_PATH)


def settings_of(arguments: Mapping[str, Any], given: argparse.Namespace) -> Settings:
    """The file's `args`, changed by the options that were given. Raises CliError."""
    switches = ("model", "download", "bf16", "torch_compile", "cpu_offload", "overlapped_decode")
    changes = {name: getattr(given, name) for name in switches if getattr(given, name) is not None}
    if given.checkpoint_path:
        folder = Path(given.checkpoint_path).expanduser()
        if given.model is not None:
            changes["checkpoint_dir"] = folder
        elif folder.is_dir() and not missing_parts(folder):
            changes["model"] = str(folder.absolute())
        else:
            changes |= {"model": PUBLISHED, "checkpoint_dir": folder}
    try:
        return Settings.model_validate({**arguments, **changes})
    except ValidationError as error:
        raise CliError(f"the settings: {_problems(error)}") from None


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())


def _download(given: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    args = application_of(read_config(given.config)).args
    folder = published_folder(Path(given.checkpoint_path or Settings.model_validate(args).checkpoint_dir))
    try:
        download_checkpoint(folder)
    except KeyboardInterrupt:
        print(f"\nStopped. What has arrived is kept in {folder}; the next `acestep-serve download` goes on there.")
        return 130
    print(f"v1-3.5b is complete in {folder}")
    return 0


def _serve(given: argparse.Namespace) -> int:
    config = read_config(given.config)
    application = application_of(config)
    settings = settings_of(application.args, given)
    overrides = {name: value for name in ("host", "port") if (value := getattr(given, name)) is not None}
    try:
        http = HttpSettings.model_validate(config.http_options.model_dump() | overrides)
    except ValidationError as error:
        raise CliError(_problems(error)) from None
    _prepare_environment(given.device_id)
    shared = "RAY_ADDRESS" in os.environ
    if not shared:
        _check_port(http.host, http.port)

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        _start(settings, application, http, shared)
        while not stopped.wait(3600):
            pass
    except KeyboardInterrupt:
        print("\nStopping; unfinished jobs go on at the next start.", flush=True)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # once is enough
        _stop(application.name, shared)
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _prepare_environment(device_id: int | None) -> None:
    """What Ray and its workers read when they start; nothing the user has set is changed."""
    if device_id is not None:
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            visible = os.environ["CUDA_VISIBLE_DEVICES"]
            print(
                f"acestep-serve: --device_id {device_id} is ignored: CUDA_VISIBLE_DEVICES is {visible!r}",
                file=sys.stderr,
            )
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", str(device_id))
    if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
        # Ray's ports take code to run. The second binds all but those of Serve's replicas to the loopback interface,
        # whatever the platform; the token protects them all.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve_app.proxy:middlewares")
    root = str(Path(__file__).parents[1])  # a checkout that is not installed
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, *paths]))


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise CliError(
            f"cannot listen at {host}:{port}: {error.strerror}. Choose another with --port or --host"
        ) from None


def _start(settings: Settings, application: ApplicationSettings, http: HttpSettings, shared: bool) -> None:
    """Returns when /health says ready, with everything printed that a user needs next."""
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from serve_app.app import build_app

    print("Starting ...", flush=True)
    level = logging.getLevelNamesMapping()[settings.log_level]
    context = ray.init(
        address="auto" if shared else "local", namespace="serve", logging_level=max(level, logging.WARNING)
    )
    signal.signal(signal.SIGTERM, _interrupt)  # Ray has set its own
    calm = LoggingConfig(log_level=settings.log_level if settings.log_level != "INFO" else "WARNING")
    serve.start(http_options=http.model_dump(), logging_config=calm)
    app = build_app(settings)
    try:
        serve.run(app, name=application.name, route_prefix=application.route_prefix)
    except RuntimeError as error:
        raise CliError(f"the application did not start: {error}") from error
    reach = "localhost" if http.host in ("0.0.0.0", "::", "localhost") else http.host
    url = f"http://{reach}:{http.port}{application.route_prefix.rstrip('/')}"
    health = _wait_until_healthy(url)
    print(_banner(url, health, context.dashboard_url), flush=True)


def _wait_until_healthy(url: str) -> dict[str, Any]:
    deadline = time.monotonic() + HEALTH_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/health", timeout=5, trust_env=False)
            if answer.status_code == httpx.codes.OK:
                body: dict[str, Any] = answer.json()
                return body
        except httpx.HTTPError:
            pass  # the proxy learns its routes a moment after the replicas are ready
        time.sleep(0.2)
    raise CliError(f"{url}/health has not answered ready for {HEALTH_TIMEOUT_S:g} s; the log above says why")


def _banner(url: str, health: Mapping[str, Any], dashboard_url: str | None) -> str:
    request = json.dumps({"prompt": "acoustic guitar, calm, peaceful", "audio_duration": 10, "infer_step": 20})
    notice = [f"  note       {health['notice']}"] if health.get("notice") else []
    token = "  (its token: ray get-auth-token)" if os.environ.get("RAY_AUTH_MODE") == "token" else ""
    dashboard = [f"  dashboard  http://{dashboard_url}{token}"] if dashboard_url else []
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
        f"  curl -f -X POST {url}/generate_music -H 'Content-Type: application/json' -H 'Accept: audio/wav' \\",
        f"       -d '{request}' -o song.wav",
        "",
        "Ctrl-C stops it.",
    ]
    return "\n".join(lines)


def _stop(application: str, shared: bool) -> None:
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    if shared:
        serve.delete(application)  # others may be served there
    else:
        serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
