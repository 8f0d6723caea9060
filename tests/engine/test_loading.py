"""Loading is strict: a file that is not exactly the model's is refused, and says why."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acestep_engine.errors import CheckpointError, CheckpointNotFoundError
from acestep_engine.model.json_files import read_config
from acestep_engine.model.loading import check_names, find_weights, load_weights


class Small(nn.Module):
    """A linear layer, a convolution and an integer buffer."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.conv = nn.Conv1d(2, 4, 5)
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))


@pytest.fixture
def module() -> Small:
    with torch.device("meta"):
        return Small()


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "linear.weight": torch.randn(2, 3, generator=generator),
        "linear.bias": torch.randn(2, generator=generator),
        "conv.weight": torch.randn(4, 2, 5, generator=generator),
        "conv.bias": torch.randn(4, generator=generator),
        "steps": torch.tensor([1, 2, 3]),
    }


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def test_a_complete_file_fills_the_module_and_casts_floating_tensors_only(
    module: Small, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    load_weights(module, write(tmp_path / "model.safetensors", tensors), dtype=torch.bfloat16)

    assert torch.equal(module.linear.weight, tensors["linear.weight"].bfloat16())
    assert module.steps.tolist() == [1, 2, 3]
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_loaded_module_does_not_change_when_its_file_does(
    module: Small, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    file = write(tmp_path / "model.safetensors", tensors)
    load_weights(module, file)
    size = file.stat().st_size
    with file.open("r+b") as handle:
        handle.seek(size - 64)
        handle.write(bytes(64))

    assert torch.equal(module.linear.bias, tensors["linear.bias"])
    assert torch.equal(module.conv.weight, tensors["conv.weight"])


def test_every_difference_is_named_with_the_shape_found_and_the_shape_expected(
    module: Small, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    del tensors["linear.bias"]
    tensors["conv.weight"] = torch.zeros(4, 2, 3)
    tensors["head.weight"] = torch.zeros(7)
    file = write(tmp_path / "decoder" / "model.safetensors", tensors)

    with pytest.raises(CheckpointError) as caught:
        load_weights(module, file)

    message = str(caught.value)
    assert "linear.bias (2,) is missing from decoder/model.safetensors" in message
    assert "conv.weight in decoder/model.safetensors has shape (4, 2, 3), expected (4, 2, 5)" in message
    assert "head.weight (7,) in decoder/model.safetensors is not part of the model" in message
    assert str(tmp_path) not in message


def test_a_long_list_of_differences_is_cut_after_ten(module: Small, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    surplus = {f"extra.{index}": torch.zeros(1) for index in range(14)}
    file = write(tmp_path / "model.safetensors", tensors | surplus)

    with pytest.raises(CheckpointError, match=r"and 4 more$"):
        load_weights(module, file)


def test_an_integer_tensor_in_the_place_of_weights_is_refused(
    module: Small, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    tensors["linear.bias"] = torch.zeros(2, dtype=torch.int32)

    with pytest.raises(CheckpointError, match=r"linear.bias .* is integer, expected floating point"):
        load_weights(module, write(tmp_path / "model.safetensors", tensors))


def test_tensors_declared_unused_may_be_in_the_file(module: Small, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", tensors | {"projectors.0.weight": torch.zeros(5)})

    load_weights(module, file, unused=lambda name: name.startswith("projectors."))

    assert torch.equal(module.state_dict()["conv.bias"], tensors["conv.bias"])


def test_weight_norm_is_folded_into_the_plain_weight(module: Small, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 4, 5))
    gain, direction = normed.parametrizations["weight"].original0, normed.parametrizations["weight"].original1
    with torch.no_grad():
        gain.uniform_(0.5, 2.0)
    del tensors["conv.weight"]
    tensors |= {"conv.weight_g": gain.detach().clone(), "conv.weight_v": direction.detach().clone()}

    load_weights(module, write(tmp_path / "model.safetensors", tensors))

    torch.testing.assert_close(module.conv.weight, normed.weight.detach(), rtol=1e-6, atol=1e-7)


def test_half_of_a_weight_norm_pair_is_missing_by_name(
    module: Small, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    tensors["conv.weight_v"] = tensors.pop("conv.weight")

    with pytest.raises(CheckpointError, match=r"conv.weight_g \(4, 1, 1\) is missing"):
        load_weights(module, write(tmp_path / "model.safetensors", tensors))


def test_tied_weights_need_one_of_their_names(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = nn.ModuleDict({"first": nn.Linear(2, 2, bias=False), "second": nn.Linear(2, 2, bias=False)})
        module["second"].weight = module["first"].weight
    weight = torch.eye(2)

    load_weights(module, write(tmp_path / "model.safetensors", {"second.weight": weight}))

    assert torch.equal(module.state_dict()["first.weight"], weight)


def test_shards_are_found_through_their_index(module: Small, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    first = {name: tensors[name] for name in ("linear.weight", "linear.bias")}
    second = {name: tensor for name, tensor in tensors.items() if name not in first}
    write(tmp_path / "a.safetensors", first)
    write(tmp_path / "b.safetensors", second)
    weight_map = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    load_weights(module, tmp_path)

    assert torch.equal(module.linear.weight, tensors["linear.weight"])
    assert torch.equal(module.conv.weight, tensors["conv.weight"])


def test_an_index_cannot_point_outside_its_folder(module: Small, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    write(tmp_path / "elsewhere.safetensors", tensors)
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "../elsewhere.safetensors")}))

    with pytest.raises(CheckpointError, match=r"no .safetensors file beside it"):
        load_weights(module, index)


def test_a_shard_that_lacks_what_the_index_promises_is_refused(
    module: Small, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    promised = dict.fromkeys(tensors, "a.safetensors")
    del tensors["conv.bias"]
    write(tmp_path / "a.safetensors", tensors)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": promised}))

    with pytest.raises(CheckpointError, match=r"conv.bias is missing from .*/a.safetensors"):
        load_weights(module, tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_are_refused_unopened(module: Small, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"never read")

    with pytest.raises(CheckpointError, match=r"only safetensors"):
        load_weights(module, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"only safetensors"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 7, b"\xff" * 64, (10**15).to_bytes(8, "little") + b"{}", (9).to_bytes(8, "little") + b"not json!"],
    ids=["empty", "short", "huge-header", "header-past-end", "header-no-json"],
)
def test_a_corrupted_header_is_a_checkpoint_error(module: Small, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"no valid safetensors file"):
        load_weights(module, file)


def test_a_truncated_file_is_a_checkpoint_error(module: Small, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", tensors)
    file.write_bytes(file.read_bytes()[:-10])

    with pytest.raises(CheckpointError, match=r"no valid safetensors file"):
        load_weights(module, file)


def test_a_missing_file_or_folder_is_not_found(module: Small, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "nowhere"):
        with pytest.raises(CheckpointError):
            load_weights(module, path)
    with pytest.raises(CheckpointNotFoundError):
        find_weights(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_a_checkpoint_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(CheckpointError, match=r"config.json"):
        read_config(tmp_path)


def test_a_config_is_read_from_its_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"config.json does not exist"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"depths": [1, 2]}')

    assert read_config(tmp_path) == {"depths": [1, 2]}


def test_names_and_shapes_can_be_checked_without_a_file(module: Small, tensors: dict[str, Tensor]) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}

    check_names(module, {**shapes, "mel.window": [8]}, unused=lambda name: name.startswith("mel."))
    with pytest.raises(CheckpointError, match=r"mel.window"):
        check_names(module, {**shapes, "mel.window": [8]})
    with pytest.raises(CheckpointError, match=r"linear.weight .* expected"):
        check_names(module, shapes | {"linear.weight": [2, 4]})
