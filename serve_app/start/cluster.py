"""The application on Ray: connect, deploy, say what went wrong, stop.

The only module of a start that imports Ray. Its functions import it themselves, once the environment is complete.
"""

import logging
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from serve_app.settings import Settings
from serve_app.start.addresses import authority, is_every_interface, split_address
from serve_app.start.errors import StartError
from serve_app.start.gcs import check_cluster_answers

STOP_TIMEOUT_S = 30.0
POLL_S = 0.1
NOT_APPLIED = "New http_options/controller_options will not be applied"
RAISED = re.compile(r"^(?:\w+\.)*[A-Z]\w*: (?P<sentence>\S.*)$")  # the last line of a traceback, as Python writes it


@dataclass(frozen=True)
class HttpPlace:
    """Where the service answers: at `host` and `port`, and from this machine at `reachable_host`."""

    host: str
    port: int
    reachable_host: str

    @property
    def url(self) -> str:
        return f"http://{authority(self.reachable_host, self.port)}"


class Cluster:
    """A connection to the Ray that the service runs on: its own, or with `shared` one that others may use."""

    def __init__(self, application: str, shared: bool) -> None:
        self._application = application
        self.shared = shared
        self._deployed = False
        self.dashboard_url: str | None = None

    def start(self, settings: Settings) -> None:
        """Start Ray, or connect to the cluster that RAY_ADDRESS names. Raises StartError."""
        import ray
        from ray.exceptions import RayError

        level = max(logging.getLevelNamesMapping()[settings.log_level], logging.WARNING)
        try:
            if self.shared:
                _check_bootstrap_address()
            context = ray.init(address="auto" if self.shared else "local", namespace="serve", logging_level=level)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            problem = "the cluster of RAY_ADDRESS cannot be used" if self.shared else "Ray did not start"
            raise StartError(f"{problem}: {_first_line(error)}") from None
        self.dashboard_url = context.dashboard_url

    def deploy(self, build: Any, settings: Settings, http_options: dict[str, Any], route_prefix: str) -> HttpPlace:
        """Return where the application answers once all of its replicas are ready. Raises StartError."""
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.context import _get_global_client
        from ray.serve.exceptions import RayServeException
        from ray.serve.schema import LoggingConfig

        try:
            if _get_global_client(raise_if_no_controller_running=False) is None:
                calm = LoggingConfig(log_level=settings.log_level if settings.log_level != "INFO" else "WARNING")
                serve.start(http_options=http_options, logging_config=calm)
                # `serve.run` finds the Serve that was just started with these options, and says they are ignored.
                logging.getLogger("ray.serve").addFilter(_is_not_about_options)
            app = build(settings)
            # What was there before is not removed if this attempt fails: it may belong to somebody else.
            self._deployed = self._application not in serve.status().applications
            serve.run(app, name=self._application, route_prefix=route_prefix)
        except (RuntimeError, ValueError, TimeoutError, RayError, RayServeException) as error:
            raise StartError(f"the application did not start: {self._reason(error)}") from error
        self._deployed = True
        return _place(_get_global_client().http_config)

    def stop(self) -> None:
        """Remove the application and leave the cluster; one of its own ends."""
        import ray
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        if not ray.is_initialized():
            return
        if self._deployed:
            with suppress(RayError, RayServeException):  # the controller is gone, and the application with it
                self._delete()
        ray.shutdown()

    def _delete(self) -> None:
        """Have Serve remove the application, and wait for it.

        Serve's own shutdown would have this process print that a call of the controller failed: so the controller ends.
        """
        from ray import serve

        serve.delete(self._application, _blocking=False)
        give_up_at = time.monotonic() + STOP_TIMEOUT_S
        while self._application in serve.status().applications and time.monotonic() < give_up_at:
            time.sleep(POLL_S)

    def _reason(self, error: Exception) -> str:
        """Return what a replica raised, else what Serve says."""
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        with suppress(RayError, RayServeException):  # the controller is gone
            application = serve.status().applications.get(self._application)
            for deployment in application.deployments.values() if application else ():
                sentence = raised_in(deployment.message)
                if sentence is not None and deployment.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                    return sentence
        return raised_in(str(error)) or _first_line(error)


def raised_in(text: str) -> str | None:
    """Return the message of the last exception in a text with tracebacks, or None without any."""
    found = [match["sentence"] for line in text.splitlines() if (match := RAISED.match(line))]
    return found[-1] if found else None


def _is_not_about_options(record: logging.LogRecord) -> bool:
    return NOT_APPLIED not in record.getMessage()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_bootstrap_address() -> None:
    """Raise an error for an address that Ray would try to reach for minutes: `auto`, or another one than was given."""
    from ray._private.services import canonicalize_bootstrap_address

    address = split_address(canonicalize_bootstrap_address("auto") or "")
    if address is not None:
        check_cluster_answers(*address, os.environ)


def _place(http: Any) -> HttpPlace:
    """Return where a Serve with these options answers."""
    import ray
    from ray import serve

    if not is_every_interface(http.host):
        return HttpPlace(http.host, http.port, http.host)
    here = ray.get_runtime_context().get_node_id()
    with_proxy = serve.status().proxies
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] in with_proxy}
    reachable = "localhost" if here in addresses else next(iter(addresses.values()), "localhost")
    return HttpPlace(http.host, http.port, reachable)
