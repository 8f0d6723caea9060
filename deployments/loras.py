"""The LoRA adapters that requests may name: registered by an administrator, checked completely before, and kept."""

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from acestep_engine.errors import AdapterError, CheckpointError
from acestep_engine.lora import find_adapter, read_adapter
from acestep_engine.model.config import read_transformer_config
from acestep_engine.params import ModelSpec
from deployments.messages import LoraInfo, LoraNotFoundError, LoraRefusedError
from deployments.store.protocol import JobStore

LORAS_SETTING = "loras"

logger = logging.getLogger("ray.serve")


class LoraRegistry:
    """Its table is in the store, so that it survives restarts. `spec` answers the model that adapters have to fit."""

    def __init__(self, store: JobStore, spec: Callable[[], ModelSpec]) -> None:
        self._store = store
        self._spec = spec
        self._loras: dict[str, LoraInfo] = {}
        self._changing = asyncio.Lock()

    def listed(self) -> tuple[LoraInfo, ...]:
        """By name."""
        return tuple(self._loras[name] for name in sorted(self._loras))

    async def restore(self, configured: Mapping[str, str]) -> None:
        """Take up what was registered in an earlier life, and what the settings name: a name with its absolute path.

        Of the configured ones only those are read that are new or were changed. One that cannot be used is left out.
        """
        kept = await self._store.get_setting(LORAS_SETTING)
        known = [LoraInfo(**{**one, "modules": tuple(one["modules"])}) for one in json.loads(kept or "[]")]
        self._loras = {info.name: info for info in known}
        for name, path in configured.items():
            old = self._loras.get(name)
            if old is not None and old.path == path and old.stamp == await asyncio.to_thread(_stamp, Path(path)):
                continue
            try:
                await self.register(name, path, root=None)
            except LoraRefusedError as error:
                self._loras.pop(name, None)
                logger.error("the configured adapter %r cannot be used: %s", name, error)

    async def register(self, name: str, path: str, root: str | None) -> LoraInfo:
        """Check an adapter and give it a name; one of that name is replaced, but not for jobs accepted before.

        None of its files may lie outside of `root`, if there is one. Raises LoraRefusedError, StorageError.
        """
        info = await asyncio.to_thread(self._check, name, path, root)
        async with self._changing:
            await self._keep(self._loras | {name: info})
        logger.info("registered the adapter %r: rank %d, sha256 %s", name, info.rank, info.digest)
        return info

    async def remove(self, name: str) -> None:
        """Jobs that were accepted with it still run. Raises LoraNotFoundError, StorageError."""
        async with self._changing:
            if name not in self._loras:
                raise LoraNotFoundError(name)
            await self._keep({other: info for other, info in self._loras.items() if other != name})

    async def _keep(self, loras: dict[str, LoraInfo]) -> None:
        await self._store.put_setting(LORAS_SETTING, json.dumps([dataclasses.asdict(info) for info in loras.values()]))
        self._loras = loras

    def _check(self, name: str, path: str, root: str | None) -> LoraInfo:
        try:
            stamp = _stamp(Path(path))  # before it is read: what changes meanwhile is read again at the next start
            model = read_transformer_config(Path(self._spec().path))
            content = read_adapter(Path(path), model, None if root is None else Path(root))
        except CheckpointError as error:
            raise LoraRefusedError(f"the model that it has to fit cannot be read: {error}") from None
        except AdapterError as error:
            raise LoraRefusedError(str(error)) from None
        except OSError as error:
            raise LoraRefusedError(f"its folder cannot be read: {error.strerror}") from None
        return LoraInfo(name, content.digest, path, content.rank, content.modules, content.nbytes, stamp)


def _stamp(path: Path) -> str:
    """Another one when the weights were changed, almost certainly."""
    try:
        status = find_adapter(path).stat()
    except (OSError, AdapterError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"
