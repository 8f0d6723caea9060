"""The registry of adapters, over a real store and the nano model."""

from pathlib import Path

import pytest

from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.lora import read_adapter
from acestep_engine.model.config import read_transformer_config
from acestep_engine.params import ModelSpec
from deployments.loras import LoraRegistry
from deployments.messages import LoraInfo, LoraNotFoundError, LoraRefusedError
from deployments.store.protocol import JobStore
from tests.deployments.conftest import OpenStore
from tests.nano_lora import save_nano_lora

NANO = ModelSpec("nano", str(NANO_PATH))


def registry(store: JobStore, spec: ModelSpec = NANO) -> LoraRegistry:
    return LoraRegistry(store, lambda: spec)


def names(loras: LoraRegistry) -> list[str]:
    return [info.name for info in loras.listed()]


async def register(loras: LoraRegistry, path: Path, name: str = "rap") -> LoraInfo:
    return await loras.register(name, str(path), str(path.parent))


async def test_what_is_registered_is_listed_and_outlives_a_restart(open_store: OpenStore, tmp_path: Path) -> None:
    loras = registry(await open_store())
    info = await register(loras, save_nano_lora(tmp_path / "rap", seed=1, rank=6))
    assert (info.name, info.rank, info.modules) == ("rap", 6, ("attn.to_q", "cross_attn.to_v"))
    assert info.digest == read_adapter(tmp_path / "rap", read_transformer_config(NANO_PATH)).digest
    await register(loras, save_nano_lora(tmp_path / "choir", seed=2), "choir")
    later = registry(await open_store())
    await later.restore({})
    assert later.listed() == loras.listed()
    assert names(later) == ["choir", "rap"]


async def test_removed_is_removed(store: JobStore, tmp_path: Path) -> None:
    loras = registry(store)
    await register(loras, save_nano_lora(tmp_path / "rap", seed=1))
    await loras.remove("rap")
    assert names(loras) == []
    with pytest.raises(LoraNotFoundError):
        await loras.remove("rap")
    await loras.restore({})
    assert names(loras) == []


async def test_a_name_can_be_given_again(store: JobStore, tmp_path: Path) -> None:
    loras = registry(store)
    first = await register(loras, save_nano_lora(tmp_path / "first", seed=1))
    second = await register(loras, save_nano_lora(tmp_path / "second", seed=2))
    assert first.digest != second.digest
    assert loras.listed() == (second,)


async def test_what_does_not_fit_is_refused_and_changes_nothing(store: JobStore, tmp_path: Path) -> None:
    loras = registry(store)
    kept = await register(loras, save_nano_lora(tmp_path / "rap", seed=1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoraRefusedError, match=r"empty has none of pytorch_lora_weights\.safetensors"):
        await register(loras, tmp_path / "empty")
    assert loras.listed() == (kept,)


async def test_without_a_model_to_fit_nothing_is_registered(store: JobStore, tmp_path: Path) -> None:
    loras = registry(store, ModelSpec("v1-3.5b", str(tmp_path / "absent")))
    with pytest.raises(LoraRefusedError, match="the model that it has to fit cannot be read"):
        await register(loras, save_nano_lora(tmp_path / "rap", seed=1))


async def test_configured_adapters_are_registered_at_start(store: JobStore, tmp_path: Path) -> None:
    configured = {"rap": str(save_nano_lora(tmp_path / "rap", seed=1)), "gone": str(tmp_path / "gone")}
    loras = registry(store)
    await loras.restore(configured)
    assert names(loras) == ["rap"]
    before = loras.listed()
    again = registry(store)
    await again.restore(configured)
    assert again.listed() == before
    save_nano_lora(tmp_path / "rap", seed=2, rank=5)
    changed = registry(store)
    await changed.restore(configured)
    assert changed.listed()[0].digest != before[0].digest


async def test_a_configured_adapter_that_broke_is_left_out(store: JobStore, tmp_path: Path) -> None:
    configured = {"rap": str(save_nano_lora(tmp_path / "rap", seed=1))}
    await registry(store).restore(configured)
    (tmp_path / "rap" / "pytorch_lora_weights.safetensors").write_bytes(b"broken")
    loras = registry(store)
    await loras.restore(configured)
    assert names(loras) == []
