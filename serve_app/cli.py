"""`acestep-serve`: starts the application here, or on the cluster that RAY_ADDRESS names; downloads the model.

Ray is imported only once everything that can be checked without it is found to be right: it takes seconds, reads the
environment, and says little about what went wrong. `serve_app.start` has the parts of a start.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from acestep_engine.checkpoint import missing_parts
from acestep_engine.download import download_checkpoint
from acestep_engine.errors import CheckpointError
from deployments.messages import ServiceError
from deployments.models import PUBLISHED, published_folder
from deployments.placement import PlacementError
from serve_app.proxy import CONNECTIONS_VARIABLE
from serve_app.settings import Settings
from serve_app.start.addresses import bare_host, loopback_names
from serve_app.start.checks import check_cluster, check_listening, check_model, check_storage
from serve_app.start.cluster import Cluster
from serve_app.start.environment import drop_empty, have_home, names_cluster, prepare
from serve_app.start.errors import StartError
from serve_app.start.ready import banner, wait_until_healthy

EVERY_INTERFACE = "0.0.0.0"
DEFAULT_CONFIG = Path("serve_config.yaml")
IMPORT_PATH = "serve_app.app:build_app"

DESCRIPTION = """\
Serve ACE-Step music generation over HTTP. Without options: port 8019, the settings of ./serve_config.yaml, and the
best model that this machine can run (without a GPU or a download, the bundled nano model: small, instrumental).
"""
EPILOG = """\
environment (an empty variable counts as unset; CUDA_VISIBLE_DEVICES does not: empty, it means no GPU):
  ACE_OUTPUT_DIR        where songs are saved (./outputs)
  LOG_LEVEL             DEBUG, INFO, WARNING or ERROR (INFO)
  CUDA_VISIBLE_DEVICES  which GPUs may be used, as CUDA numbers them
  ACESTEP_ADMIN_KEY     the key for /initialize and for changing /loras; without it these are off
  ACESTEP_CALLBACK_SECRET  what signs callbacks; without it they are not signed
  HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE  where and as whom `download` fetches; 1 forbids it
  RAY_ADDRESS           a running Ray cluster to serve on: host:port, or auto for the one on this machine; unset or
                        local, one is started here. Where Serve runs there already, its own host and port stay

environment of the Ray that is started here; its ports, but those of Serve's replicas, are bound to this machine:
  RAY_AUTH_MODE         token: Ray's ports and its dashboard ask for the token that `ray get-auth-token` prints (so
                        unless you set this); disabled: they ask for none, and any user of this machine can run code
  RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH  that token, or a file with it (~/.ray/auth_token, made if it is not there)
  RAY_TMPDIR            where Ray keeps its sockets and logs (TMPDIR, else /tmp); at most 39 characters
  RAY_memory_monitor_refresh_ms  how often Ray looks whether memory is short, to kill replicas then (0: never, so
                        unless you set this)

examples:
  acestep-serve                                   http://localhost:8019/docs
  acestep-serve --port 8020 --host localhost
  acestep-serve download && acestep-serve --model v1-3.5b
  acestep-serve --checkpoint_path ~/ACE-Step-v1-3.5B --cpu_offload --overlapped_decode
"""


def _host(host: object) -> object:
    return (bare_host(host) or EVERY_INTERFACE) if isinstance(host, str) else host


Host = Annotated[str, BeforeValidator(_host)]


class HttpSettings(BaseModel):
    """`http_options` of the configuration file, as far as this command needs them."""

    model_config = ConfigDict(extra="allow")
    host: Host = EVERY_INTERFACE
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
    drop_empty(os.environ)
    have_home(os.environ)
    try:
        if given.command == "download":
            return _download(given)
        return _serve(given)
    except (StartError, CheckpointError, PlacementError, ServiceError) as error:
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
    """The named file, else ./serve_config.yaml if it exists, else the defaults. Raises StartError."""
    if path is None and not DEFAULT_CONFIG.is_file():
        return ConfigFile()
    path = path or DEFAULT_CONFIG
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return ConfigFile.model_validate(content or {})
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StartError(f"{path} is no YAML: {error}") from None
    except ValidationError as error:
        raise StartError(f"{path}: {_problems(error)}") from None


def application_of(config: ConfigFile) -> ApplicationSettings:
    """The music application of a configuration file. Raises StartError if it has another one only."""
    for application in config.applications:
        if application.import_path == IMPORT_PATH:
            return application
    if config.applications:
        raise StartError(f"the configuration file has no application with import_path {IMPORT_PATH}")
    return ApplicationSettings(import_path=IMPORT_PATH)


def settings_of(arguments: Mapping[str, Any], given: argparse.Namespace) -> Settings:
    """The file's `args`, changed by the options that were given. Raises StartError."""
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
    return _validated({**arguments, **changes})


def _validated(arguments: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(arguments)
    except ValidationError as error:
        raise StartError(f"the settings: {_problems(error)}") from None


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors()
    )


def _download(given: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    args = application_of(read_config(given.config)).args
    folder = published_folder(Path(given.checkpoint_path or _validated(args).checkpoint_dir))
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
    asked = {name: value for name in ("host", "port") if (value := getattr(given, name)) is not None}
    try:
        http = HttpSettings.model_validate(config.http_options.model_dump() | asked)
    except ValidationError as error:
        raise StartError(_problems(error)) from None
    check_model(settings)
    prepare(os.environ, given.device_id)
    os.environ[CONNECTIONS_VARIABLE] = str(settings.limits.connections)
    shared = names_cluster(os.environ)
    if shared:
        check_cluster(os.environ)
    else:
        check_listening(http.host, http.port)
        check_storage(settings)
        if not settings.allowed_hosts:
            settings = settings.model_copy(update={"allowed_hosts": loopback_names(http.host)})

    stopped = threading.Event()
    cluster = Cluster(application.name, shared)
    _handle_signals(_interrupt)
    try:
        _start(cluster, settings, application, http, asked)
        while not stopped.wait(3600):
            pass
    except KeyboardInterrupt:
        print("\nStopping; unfinished jobs go on at the next start.", flush=True)
        _handle_signals(signal.SIG_IGN)  # once is enough
        cluster.stop()
        print("Stopped.", flush=True)
    except BaseException:
        _handle_signals(signal.SIG_IGN)
        cluster.stop()
        raise
    return 0


def _handle_signals(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _start(
    cluster: Cluster,
    settings: Settings,
    application: ApplicationSettings,
    http: HttpSettings,
    asked: Mapping[str, object],
) -> None:
    """Return when /health says ready, with everything printed that a user needs next. Raises StartError."""
    print("Starting ...", flush=True)
    cluster.start(settings)
    _handle_signals(_interrupt)  # Ray has set its own
    from serve_app.app import build_app

    place = cluster.deploy(build_app, settings, http.model_dump(), application.route_prefix)
    for name, value in asked.items():
        if getattr(place, name) != getattr(http, name):
            print(
                f"acestep-serve: --{name} {value} is ignored: Serve runs on this cluster at {place.host}:{place.port}"
            )
    url = f"{place.url}{application.route_prefix.rstrip('/')}"
    try:
        health = wait_until_healthy(url)
    except StartError as error:
        if not cluster.shared:
            raise
        # It is deployed, and this machine need not be able to reach the cluster's proxies.
        print(f"acestep-serve: {error}. It stays deployed; Ctrl-C removes it.", file=sys.stderr, flush=True)
    else:
        print(banner(url, health, cluster.dashboard_url), flush=True)


if __name__ == "__main__":
    sys.exit(main())
