"""The model that is served and the replicas that have it loaded, as the JobManager sees them."""

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from acestep_engine.checkpoint import check_folder, notice
from acestep_engine.errors import CheckpointError
from acestep_engine.params import ModelSpec
from deployments.failures import cause_of
from deployments.messages import ModelUnavailableError, ReplicaState, ServiceStatus
from deployments.models import Models
from deployments.store.protocol import JobStore

STALE_S = 4.0  # a replica that has not reported for so long is gone; they report every second
MODEL_SETTING = "model"

logger = logging.getLogger("ray.serve")


class Fleet:
    """Knows the current model, keeps what the replicas say of themselves, and loads another model on all of them."""

    def __init__(
        self,
        store: JobStore,
        models: Models,
        build_id: str,
        generator: DeploymentHandle[Any],
        text_encoder: DeploymentHandle[Any],
    ) -> None:
        self._store = store
        self._models = models
        self._build_id = build_id
        self._generator = generator
        self._text_encoder = text_encoder
        self._changing = asyncio.Lock()
        self._reports: dict[str, tuple[float, ReplicaState]] = {}  # by replica: when, and what
        self.spec = models.first

    async def restore(self) -> None:
        """Take up the model that /initialize chose in an earlier life of the same built application's JobManager."""
        kept = await self._store.get_setting(MODEL_SETTING)
        if kept is not None:
            saved = json.loads(kept)
            if saved["build_id"] == self._build_id:
                self.spec = ModelSpec(**saved["spec"])
        logger.info("serving %s from %s", self.spec.name, self.spec.path)
        if (warning := notice(self.spec)) is not None:
            logger.warning(warning)

    def status(self, queue_size: int) -> ServiceStatus:
        """From memory, at once."""
        fresh_after = time.monotonic() - STALE_S
        self._reports = {key: report for key, report in self._reports.items() if report[0] > fresh_after}
        replicas = tuple(self._reports[key][1] for key in sorted(self._reports))
        loaded = any(replica.model for replica in replicas)
        return ServiceStatus(self.spec.name, notice(self.spec), loaded, replicas, queue_size)

    def note(self, state: ReplicaState) -> None:
        """A replica says where it runs and what it has loaded."""
        self._reports[state.replica_id] = time.monotonic(), state

    def understands(self, latent_space: str, made_by: str) -> bool:
        """Return whether latents mean something to the current model, as far as that is known.

        `latent_space` is what they say of themselves. Where they say nothing, `made_by` names the model that made them,
        and may be empty too.
        """
        if not latent_space:
            return made_by in ("", self.spec.name)
        reports = (state for _, state in self._reports.values() if state.model == self.spec.name)
        return all(state.latent_space in ("", latent_space) for state in reports)

    async def initialize(self, name: str | None, options: Mapping[str, Any]) -> None:
        """Load a model on every replica there is; later ones load it with their first job.

        Raises ModelUnavailableError with the reason if it is unknown or fails on any of them; the old one stays then.
        """
        async with self._changing:
            old, new = self.spec, self._models.choose(name, options, self.spec)
            if not self._models.downloadable(new):
                try:
                    check_folder(Path(new.path))  # before any replica lets go of the old one
                except CheckpointError as error:
                    raise ModelUnavailableError(_reason(new, error)) from error
            failure = await self._load(new)
            if failure is not None:
                logger.error("%s cannot be loaded: %r", new.name, failure)
                await self._load(old)
                raise ModelUnavailableError(_reason(new, failure))
            kept = {"build_id": self._build_id, "spec": dataclasses.asdict(new)}
            await self._store.put_setting(MODEL_SETTING, json.dumps(kept))
            self.spec = new
            logger.info("serving %s now", new.name)

    async def _load(self, spec: ModelSpec) -> BaseException | None:
        """What went wrong on the first replica where something did."""
        answers = await asyncio.gather(
            self._broadcast(self._generator, "load", spec), self._broadcast(self._text_encoder, "load", spec)
        )
        return next((cause_of(one) for each in answers for one in each if isinstance(one, BaseException)), None)

    @staticmethod
    async def _broadcast(handle: DeploymentHandle[Any], method: str, *args: object) -> list[Any]:
        """The answer or the exception of every replica there is; nothing if there is none."""
        try:
            response = handle.broadcast(method, *args)
            return list(await response.results_async(return_exceptions=True))
        except (RayServeException, RayError) as error:
            logger.debug("no answer to %s: %s", method, error)
            return []


def _reason(spec: ModelSpec, error: BaseException) -> str:
    """A sentence without the server's folders."""
    if isinstance(error, CheckpointError):
        return f"{spec.name} cannot be loaded: {str(error).replace(spec.path, spec.name)}"
    return f"{spec.name} cannot be loaded; the log says why"
