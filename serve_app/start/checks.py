"""Checks before Ray starts: it takes seconds, and says little about what went wrong."""

import socket
from collections.abc import Mapping

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from deployments.models import resolve_models
from deployments.state_lock import StateLock
from deployments.store.urls import ENCODE
from serve_app.models import model_choice
from serve_app.settings import Settings
from serve_app.start.addresses import authority, split_address
from serve_app.start.errors import StartError
from serve_app.start.folders import writing_problem
from serve_app.start.gcs import check_cluster_answers

REDIS_TIMEOUT_S = 1.5


def check_listening(host: str, port: int) -> None:
    """Raise StartError if no server can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, ValueError) as error:  # a ValueError: no name of a host can be written so
        problem = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(
            f"cannot listen at {authority(host, port)}: {problem}. Choose another with --port or --host"
        ) from None


def check_model(settings: Settings) -> None:
    """Raise ModelUnavailableError for a model that this machine cannot run."""
    resolve_models(model_choice(settings), cluster_has_gpu=False)  # what is wrong with a name does not depend on GPUs


def check_storage(settings: Settings) -> None:
    """Raise StartError or StorageError if jobs or songs cannot be kept on this machine."""
    for name, folder in (("state_dir", settings.state_dir), ("output_dir", settings.output_dir)):
        path = folder.expanduser().absolute()
        problem = writing_problem(path)
        if problem is not None:
            raise StartError(f"{name}, {path}, cannot be written: {problem}. Set another `{name}`, or make room")
    StateLock.check(settings.state_dir.expanduser().absolute())
    if settings.store != "sqlite":
        _check_redis(settings.store)


def check_cluster(environment: Mapping[str, str]) -> None:
    """Raise StartError if the cluster of RAY_ADDRESS does not answer. Ray itself would try for minutes.

    `auto` is left to Ray.
    """
    given = environment["RAY_ADDRESS"].strip()
    if given.lower() == "auto":
        return
    address = split_address(given)
    if address is None:
        raise StartError(
            f"RAY_ADDRESS, {given}, is no address of a Ray cluster: it is host:port, for instance 127.0.0.1:6379, or"
            " auto for the cluster on this machine; unset it to start one"
        )
    check_cluster_answers(*address, environment)


def _check_redis(url: str) -> None:
    once = Retry(NoBackoff(), 0)
    try:
        with Redis.from_url(
            url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S, retry=once
        ) as client:
            client.ping()
    except ValueError:  # its text may hold a part of the password
        raise StartError(f"the job store's URL cannot be used: {ENCODE}") from None
    except (RedisError, OSError) as error:
        raise StartError(f"the Redis of `store` does not answer: {error}") from None
