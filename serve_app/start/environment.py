"""The environment variables that Ray and its workers read when they start.

`prepare` fills in what the user has not set, and replaces what cannot work where a better value is certain. It runs
before Ray is imported: Ray reads some of these variables at its import.
"""

import os
import secrets
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from serve_app.start.errors import StartError
from serve_app.start.folders import choose_folders

Environment = MutableMapping[str, str]

# In all of these an empty value means the default. Not so in CUDA_VISIBLE_DEVICES, where it means no GPU.
EMPTY_IS_UNSET = (
    "ACE_OUTPUT_DIR",
    "LOG_LEVEL",
    "ACESTEP_ADMIN_KEY",
    "ACESTEP_CALLBACK_SECRET",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "HOME",
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_TMPDIR",
    "RAY_memory_monitor_refresh_ms",
    "TMPDIR",
)
AUTH_MODES = ("token", "disabled")
TOKEN_FILE = Path(".ray", "auth_token")  # in the home folder, where Ray looks


def drop_empty(environment: Environment) -> None:
    """Remove the variables that are set but empty, as Compose and .env files leave them."""
    for name in EMPTY_IS_UNSET:
        if name in environment and not environment[name].strip():
            del environment[name]


def have_home(environment: Environment) -> None:
    """Set HOME where it is not: parts of Ray read the variable only, and a user id need not have an entry."""
    if "HOME" not in environment:
        try:
            environment["HOME"] = str(Path.home())
        except RuntimeError:
            environment["HOME"] = "/"  # as container runtimes have it


def names_cluster(environment: Mapping[str, str]) -> bool:
    """Return whether RAY_ADDRESS asks for a cluster that runs already. For Ray, `local` means a new one."""
    return environment.get("RAY_ADDRESS", "local").strip().lower() != "local"


def prepare(environment: Environment, device_id: int | None) -> None:
    """Complete the environment for Ray. Raises StartError for what Ray cannot work with.

    Call it after `drop_empty` and `have_home`.
    """
    _choose_device(environment, device_id)
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode and mode not in AUTH_MODES:
        raise StartError(f"RAY_AUTH_MODE is {mode!r}: it is one of {', '.join(AUTH_MODES)}")
    if names_cluster(environment):
        if not mode and token_of(environment):
            environment["RAY_AUTH_MODE"] = "token"  # Ray itself looks for a token only where no address is given
    else:
        environment.pop("RAY_ADDRESS", None)
        _prepare_own_cluster(environment)
    environment.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve_app.proxy:middlewares")
    root = str(Path(__file__).parents[2])  # a checkout that is not installed
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, *paths]))


def _choose_device(environment: Environment, device_id: int | None) -> None:
    if device_id is None:
        return
    if "CUDA_VISIBLE_DEVICES" in environment:
        visible = environment["CUDA_VISIBLE_DEVICES"]
        print(
            f"acestep-serve: --device_id {device_id} is ignored: CUDA_VISIBLE_DEVICES is {visible!r}", file=sys.stderr
        )
    environment.setdefault("CUDA_VISIBLE_DEVICES", str(device_id))


def _prepare_own_cluster(environment: Environment) -> None:
    # Ray's ports take code to run. This binds all but those of Serve's replicas to the loopback interface, whatever the
    # platform and whether or not they ask for a token.
    environment.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Ray's monitor kills its own workers when any program takes memory. It would kill the service without any help to
    # the others.
    environment.setdefault("RAY_memory_monitor_refresh_ms", "0")
    # Serve ends a proxy that is not ready after 5 s, three times, and the start fails: too little on a busy machine.
    environment.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    environment.setdefault("RAY_AUTH_MODE", "token")
    if environment["RAY_AUTH_MODE"].lower() == "token":
        _have_token(environment)
    choose_folders(environment)


def _have_token(environment: Environment) -> None:
    """Let there be a token: the one that exists, else a new one in the home folder, else one in the environment."""
    if token_of(environment):
        return
    path = Path(environment["HOME"]) / TOKEN_FILE
    token = secrets.token_hex(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token)
    except OSError as error:
        print(
            f"acestep-serve: Ray's token cannot be kept in {path} ({error.strerror}), so this start has a token of its"
            " own: set RAY_AUTH_TOKEN_PATH to a file with a token to know it",
            file=sys.stderr,
        )
        environment["RAY_AUTH_TOKEN"] = token


def token_of(environment: Mapping[str, str]) -> str | None:
    """Return the token that Ray will find, or None. Raises StartError if RAY_AUTH_TOKEN_PATH does not name one."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"].strip()
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    if named is None:
        return _read(Path(environment["HOME"]) / TOKEN_FILE) or None
    token = _read(Path(named))
    if not token:
        problem = "is empty" if token == "" else "cannot be read"
        raise StartError(
            f"the token file {named} {problem}: set RAY_AUTH_TOKEN_PATH to a file with Ray's token, or unset it"
        )
    return token


def _read(path: Path) -> str | None:
    """Return the file's text, or None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
