"""Files of adapters: the published layouts, and what is refused with its name."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from acestep_engine.errors import AdapterError
from acestep_engine.lora import adaptable_modules, find_adapter, read_adapter
from acestep_engine.model.config import TransformerConfig, unused_in_generation
from tests.engine.loras import Lora, read, save_diffusers_file, save_peft_folder, tensors_of
from tests.engine.small import SMALL, loaded_transformer

QUERY = "transformer_blocks.0.attn.to_q"
SIZE = SMALL.dim


def save(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def pair(module: str = QUERY, rank: int = 2, out: int = SIZE, into: int = SIZE) -> dict[str, Tensor]:
    return {f"{module}.lora_A.weight": torch.ones(rank, into), f"{module}.lora_B.weight": torch.ones(out, rank)}


def raw(folder: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file with any header."""
    folder.mkdir(exist_ok=True)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + data
    (folder / "adapter_model.safetensors").write_bytes(content)
    return folder


# What fits


def test_all_that_may_be_adapted_is_in_the_model_with_this_shape(golden: Path) -> None:
    modules = dict(loaded_transformer().named_modules())
    for name, (out, into) in adaptable_modules(SMALL).items():
        weight = modules[name].weight
        assert tuple(weight.shape[:2]) == (out, into), name
    published = json.loads((golden / "manifest-v1-3.5b.json").read_text())["ace_step_transformer"]
    sizes = adaptable_modules(TransformerConfig.from_json(published["config"]))
    for name, (out, into) in sizes.items():
        assert published["tensors"][f"{name}.weight"][:2] == [out, into], name
    left = {
        name.removesuffix(".weight")
        for name, shape in published["tensors"].items()
        if name.endswith(".weight") and len(shape) > 1 and not unused_in_generation(name)
    } - sizes.keys()
    # No adapter of these is known: convolutions over more than one frame, an embedding.
    assert {name.split(".")[-1] for name in left} == {"conv", "0", "2", "lyric_embs"}


@pytest.mark.parametrize("save_it", [save_peft_folder, save_diffusers_file])
def test_what_peft_and_diffusers_save_is_read(tmp_path: Path, save_it: Callable[[Lora, Path], Path]) -> None:
    lora = Lora(rank=6, alpha=3.0, rslora=True)
    found = read(save_it(lora, tmp_path))
    assert found.rank == 6
    assert found.modules == (
        "attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v",
        "cross_attn.to_k", "cross_attn.to_out.0", "cross_attn.to_q", "cross_attn.to_v",
        "self_attn.linear_k", "self_attn.linear_q", "self_attn.linear_v", "speaker_embedder",
    )  # fmt: skip
    assert {update.scale for update in found.updates.values()} == {3.0 / 6**0.5}
    expected = tensors_of(lora)[f"base_model.model.{QUERY}.lora_A.weight"]
    assert torch.equal(torch.frombuffer(found.updates[QUERY].down.content, dtype=torch.float32), expected.flatten())


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    first = read(save_peft_folder(Lora(), tmp_path / "first"))
    same = read(save_peft_folder(Lora(), tmp_path / "same"))
    other_config = read(save_peft_folder(Lora(alpha=3.0), tmp_path / "other"))
    assert first.digest == same.digest
    assert first.digest != other_config.digest


@pytest.mark.parametrize(
    ("alpha", "config", "scale"),
    [
        (None, None, 1.0),
        (8.0, None, 4.0),
        (None, {"r": 2, "lora_alpha": 8}, 4.0),
        (None, {"r": 2, "lora_alpha": 8, "use_rslora": True}, 8 / 2**0.5),
        (4.0, {"r": 2, "lora_alpha": 8}, 2.0),
        (None, {"transformer.r": 2, "transformer.lora_alpha": 8}, 4.0),
        (None, {"r": 2, "lora_alpha": 8, "alpha_pattern": {"^transformer_blocks.0.attn.to_q": 2}}, 1.0),
        (None, {"r": 2, "lora_alpha": 8, "alpha_pattern": {"to_q": 2}}, 1.0),
        (None, {"r": 2, "lora_alpha": 8, "alpha_pattern": {"o_q": 2}}, 4.0),
    ],
)
def test_scales_come_from_alphas_then_the_config(
    tmp_path: Path, alpha: float | None, config: dict[str, Any] | None, scale: float
) -> None:
    tensors = pair()
    if alpha is not None:
        tensors[f"{QUERY}.alpha"] = torch.tensor(alpha, dtype=torch.bfloat16)
    assert read(save(tmp_path, tensors, config)).updates[QUERY].scale == pytest.approx(scale)


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "base_model.model.transformer.", "diffusion_model."])
@pytest.mark.parametrize(
    ("down", "up"), [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up"), ("lora_A.x", "lora_B.x")]
)
def test_names_of_all_customs_are_read(tmp_path: Path, prefix: str, down: str, up: str) -> None:
    a, b = pair().values()
    found = read(save(tmp_path, {f"{prefix}{QUERY}.{down}.weight": a, f"{prefix}{QUERY}.{up}.weight": b}))
    assert found.updates.keys() == {QUERY}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_floating_type_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    assert read(save(tmp_path, {name: tensor.to(dtype) for name, tensor in pair().items()})).rank == 2


def test_a_single_file_and_a_hugging_face_cache_folder_are_found(tmp_path: Path) -> None:
    save_diffusers_file(Lora(), tmp_path / "plain")
    file = tmp_path / "plain" / "pytorch_lora_weights.safetensors"
    assert find_adapter(file) == file
    snapshot = tmp_path / "models--some--lora" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / file.name).symlink_to(file)
    assert find_adapter(tmp_path / "models--some--lora") == snapshot / file.name
    (tmp_path / "models--some--lora" / "refs").mkdir()
    (tmp_path / "models--some--lora" / "refs" / "main").write_text("abc123")
    assert read(tmp_path / "models--some--lora").digest == read(file).digest


def test_modules_that_only_training_used_are_left_out(tmp_path: Path) -> None:
    found = read(save(tmp_path, pair() | pair("projectors.0.0", out=5, into=7)))
    assert found.updates.keys() == {QUERY}


def test_reading_needs_no_torch() -> None:
    code = "import sys, acestep_engine.lora; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What is refused


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    class Mine:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "opened"),)

    for name in ("pytorch_lora_weights.bin", "adapter.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Mine()))
    with pytest.raises(AdapterError, match=r"it holds adapter\.pt, pytorch_lora_weights\.bin"):
        read(tmp_path)
    with pytest.raises(AdapterError, match=r"adapter\.pt is a pickle"):
        read(tmp_path / "adapter.pt")
    disguised = tmp_path / "adapter_model.safetensors"
    disguised.write_bytes(pickle.dumps(Mine()))
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is no safetensors file"):
        read(tmp_path)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (pair(out=SIZE + 1), r"to_q has lora_B \(33, 2\), expected \(32, 2\)"),
        (pair(into=SIZE - 1), r"to_q has lora_A \(2, 31\), expected \(2, 32\)"),
        (pair() | {f"{QUERY}.lora_B.weight": torch.ones(SIZE, 3)}, r"lora_B \(32, 3\), expected \(32, 2\)"),
        (pair(rank=3000), "rank 3000, must be 1 to 2048"),
        (pair("transformer_blocks.99.attn.to_q"), r"'transformer_blocks\.99\.attn\.to_q' is no module"),
        (pair("text_encoder.q"), "'text_encoder.q' is no module"),
        (pair("transformer_blocks.0.ff.depth_conv.conv"), "depth_conv.conv' is no module"),
        ({f"{QUERY}.lora_A.weight": torch.ones(2, SIZE)}, "to_q lacks its lora_B"),
        ({f"{QUERY}.alpha": torch.ones(1)}, "to_q lacks its lora_A"),
        (pair() | {f"{QUERY}.lora_magnitude_vector": torch.ones(SIZE)}, "lora_magnitude_vector' is no part"),
        (pair() | {"what": torch.ones(1)}, "'what' is no part of a LoRA adapter"),
        (pair() | pair(f"base_model.model.{QUERY}"), "is there twice under different names"),
        (pair("projectors.0.0"), "adapts no module that makes music"),
        (pair() | {f"{QUERY}.lora_A.weight": torch.full((2, SIZE), torch.nan)}, "lora_A.weight in .* not finite"),
        (
            pair() | {f"{QUERY}.lora_B.weight": torch.full((SIZE, 2), torch.inf, dtype=torch.bfloat16)},
            "lora_B.weight in .* not finite",
        ),
        ({name: tensor.double() for name, tensor in pair().items()}, "is F64, expected one of F32, F16, BF16"),
        ({name: tensor.int() for name, tensor in pair().items()}, "is I32, expected one of"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, tensors: dict[str, Tensor], problem: str) -> None:
    with pytest.raises(AdapterError, match=problem):
        read(save(tmp_path, tensors))


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data", "length", "problem"),
    [
        (b"", b"", 2**63, "header of 9,223,372,036,854,775,808 bytes in 8"),
        (b" " * (2**24 + 1), b"", None, "header of 16,777,217 bytes, over the limit"),
        (b"{" * 200_000, b"", None, "its header is no JSON"),
        (b"[" * 200_000 + b"]" * 200_000, b"", None, "its header is no JSON"),
        (b"\xff\xfe", b"", None, "its header is no JSON"),
        (b'{"a": 1, "a": 2}', b"", None, "its header is no JSON"),
        ([], b"", None, "its header is no object"),
        ({"__metadata__": {"a": 1}}, b"", None, "metadata that is not text"),
        ({"a": 1}, b"", None, "does not describe 'a'"),
        ({"a": ENTRY | {"shape": [2]}}, b"1234", None, "has 4 bytes, its shape needs 8"),
        ({"a": ENTRY | {"shape": [True]}}, b"1234", None, "impossible sizes"),
        ({"a": ENTRY | {"shape": [-1], "data_offsets": [0, -4]}}, b"1234", None, "impossible sizes"),
        ({"a": ENTRY, "b": ENTRY}, b"1234", None, "'b' begins at byte 0, expected 4"),
        ({"a": ENTRY | {"data_offsets": [4, 8]}}, b"12345678", None, "'a' begins at byte 4, expected 0"),
        ({"a": ENTRY}, b"12", None, "has 2 bytes of tensors, its header speaks of 4"),
        ({"a": ENTRY}, b"12345678", None, "has 8 bytes of tensors, its header speaks of 4"),
        ({str(index): ENTRY for index in range(20_001)}, b"", None, "20,001 tensors, over the limit"),
    ],
)
def test_files_that_are_not_quite_safetensors_are_refused(
    tmp_path: Path, header: object, data: bytes, length: int | None, problem: str
) -> None:
    with pytest.raises(AdapterError, match=problem):
        read(raw(tmp_path, header, data, length))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"r": 4}, "to_q has rank 2, but the config says 4"),
        ({"r": 2, "rank_pattern": {"to_q": 3}}, "to_q has rank 2, but the config says 3"),
        ({"peft_type": "LOHA"}, "is a 'LOHA' adapter"),
        ({"use_dora": True}, "trained with use_dora"),
        ({"modules_to_save": ["lyric_proj"]}, "trained with modules_to_save"),
        ({"bias": "all"}, "trained with bias 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the model's own weights"),
        ({"r": "two"}, "has r 'two'"),
        ({"lora_alpha": True}, "has lora_alpha 'True'"),
        ({"lora_alpha": float("nan")}, "has lora_alpha 'nan'"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "which is no module's name"),
        ({"rank_pattern": 3}, "rank_pattern that is no object"),
    ],
)
def test_configs_that_cannot_be_applied_are_refused(tmp_path: Path, config: dict[str, Any], problem: str) -> None:
    with pytest.raises(AdapterError, match=problem):
        read(save(tmp_path, pair(), config))


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    save(tmp_path, pair())
    for text, problem in (
        ("[]", "no JSON object"),
        ("{" * 100_000, "is no JSON"),
        (" " * (2**20 + 1), "over the limit"),
    ):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(AdapterError, match=problem):
            read(tmp_path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "adapter.safetensors")
    with pytest.raises(AdapterError, match="is not a regular file"):
        read(tmp_path / "adapter.safetensors")
    with pytest.raises(AdapterError, match="cannot be read: No such file"):
        read(tmp_path / "absent.safetensors")
    with pytest.raises(AdapterError, match="neither a folder nor"):
        read(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="it holds nothing"):
        read(tmp_path / "empty")


def test_links_out_of_the_root_are_not_followed(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside", pair(), {"r": 2})
    root = tmp_path / "root"
    root.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        folder = save(root / name, pair())
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / name)
        assert read_adapter(folder, SMALL).rank == 2
        with pytest.raises(AdapterError, match=f"{re.escape(name)} leads out of the folder"):
            read_adapter(folder, SMALL, root)
    assert read_adapter(save(root / "inside", pair()), SMALL, root).rank == 2


def test_a_link_that_is_swapped_between_the_check_and_the_opening_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, outside = tmp_path / "root", save(tmp_path / "outside", pair())
    root.mkdir()
    inside = save(root / "inside", pair())
    link = root / "link"
    link.symlink_to(inside)
    really_open = os.open

    def swap_and_open(path: Path, *arguments: Any) -> int:
        link.unlink()
        link.symlink_to(outside)
        return really_open(path, *arguments)

    monkeypatch.setattr(os, "open", swap_and_open)
    with pytest.raises(AdapterError, match="leads out of the folder for adapters"):
        read_adapter(link, SMALL, root)


@pytest.mark.parametrize("alpha", [1e308, -1e308, 1e5])
def test_an_adapter_whose_scale_makes_noise_is_refused(tmp_path: Path, alpha: float) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "target_modules": ["to_q"]}
    with pytest.raises(AdapterError, match=r"may add .* to a weight of transformer_blocks.0.attn.to_q, over the limit"):
        read_adapter(save(tmp_path / "loud", pair(), config), SMALL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_finite_and_far_too_large_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    loud = {name: (tensor * 1e4).to(dtype) for name, tensor in pair().items()}
    with pytest.raises(AdapterError, match=r"may add (2|1.99)e\+08 to a weight"):
        read_adapter(save(tmp_path / "loud", loud), SMALL)


def test_a_file_larger_than_any_adapter_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(AdapterError, match="over the limit"):
        read(tmp_path / "large.safetensors")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path, pair()) / "adapter_model.safetensors"
    content = file.read_bytes()
    for length in [*range(0, 300, 7), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
            read(file)
