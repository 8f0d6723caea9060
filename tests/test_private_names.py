"""Private names of other packages: each may go with any release, and its test says what to do then.

What uvicorn's protocol needs is in `serve_app/test_transport.py`. The last test finds names without a test.
"""

import ast
import inspect
import warnings
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's models use pydantic in an old way
    from ray import serve  # noqa: F401  before its modules

from acestep_engine.model import linear

ROOT = Path(__file__).parents[1]
PACKAGES = ("acestep_engine", "deployments", "serve_app")
TESTED = {  # the name as the code has it, and where
    ("torch._C._cuda_endAllocateToPool", "acestep_engine/graphs.py"),
    ("torch._C", "acestep_engine/graphs.py"),
    ("torch.ops.mkldnn._linear_pointwise", "acestep_engine/model/linear.py"),
    ("entry._compresslevel", "serve_app/batches.py"),
    ("ray._private.services", "serve_app/start/cluster.py"),
    ("ray.serve.context._get_global_client", "serve_app/start/cluster.py"),
}
DOCUMENTED = {"os._exit"}  # public, whatever it looks like


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
def test_torch_can_end_the_recording_of_a_graph_that_failed() -> None:
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    assert end is not None, (
        "torch._C._cuda_endAllocateToPool is gone. `CudaRecorder._end` calls it where `capture_end` raised, because the"
        " allocator then still believes that a recording goes on, and gives nothing back when memory is short. See"
        " CUDAGraph::capture_end of this torch: if it ends the allocator's part before it can raise, drop it; else"
        " find its new name. Until then such a failure only wastes memory: the call's absence is suppressed."
    )
    with pytest.raises(TypeError):
        end()  # it still takes a device and a pool


@pytest.mark.skipif(not linear.ONEDNN, reason="this torch is built without oneDNN")
def test_torch_has_onednns_product_with_a_weight() -> None:
    advice = (
        "torch.ops.mkldnn._linear_pointwise has changed. `linear._product` calls it for large products on a CPU. See"
        " what torch._inductor's mkldnn_lowerings emits for nn.Linear in this torch. Without it, F.linear answers the"
        " same to rounding, in up to twice the time on some processors; tests/engine/test_same_bytes.py has to pass."
    )
    x, weight, bias = torch.randn(96, 512), torch.randn(256, 512), torch.randn(256)
    assert x.shape[0] * weight.numel() >= linear.SMALL_PRODUCT
    try:
        product = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    except (AttributeError, RuntimeError) as error:
        pytest.fail(f"{advice} ({error})")
    assert torch.allclose(product, F.linear(x, weight, bias), atol=1e-3), advice
    assert torch.equal(product, linear.project(x, weight, bias)), advice


def test_an_entry_of_a_zip_file_has_its_own_level() -> None:
    file, text = BytesIO(), b"la " * 1000
    with zipfile.ZipFile(file, "w") as archive:
        entry = zipfile.ZipInfo("song.json")
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry._compresslevel = 0  # type: ignore[attr-defined]
        archive.writestr(entry, text)
    assert entry.compress_size >= len(text), (
        "zipfile does not read ZipInfo._compresslevel any more. `batches._entry` sets it so that audio, which is"
        " compressed already, is stored as it is: from Python 3.13 on the name is `compress_level`. Without it only"
        " time is lost."
    )


def test_ray_says_which_cluster_it_would_join() -> None:
    advice = (
        "ray._private.services.canonicalize_bootstrap_address has changed. `cluster._check_bootstrap_address` asks it"
        " which address `ray.init(address='auto')` would try, so that a cluster that does not answer is said at once."
        " See what ray.init calls now for `auto`. Without it a start waits for minutes before it fails."
    )
    try:
        from ray._private.services import canonicalize_bootstrap_address
    except ImportError as error:
        pytest.fail(f"{advice} ({error})")
    assert canonicalize_bootstrap_address("198.51.100.7:6399") == "198.51.100.7:6399", advice


def test_serve_says_whether_it_runs_and_where_it_answers() -> None:
    advice = (
        "ray.serve.context._get_global_client has changed. `Cluster.deploy` asks it whether Serve runs already and with"
        " which HTTP options, because serve.start() with others is ignored. See what `serve.status` and `serve.start`"
        " use now. Without it the address that is printed may be wrong on a cluster that others use as well."
    )
    try:
        from ray.serve.context import _get_global_client
    except ImportError as error:
        pytest.fail(f"{advice} ({error})")
    assert "raise_if_no_controller_running" in inspect.signature(_get_global_client).parameters, advice
    from ray.serve._private.client import ServeControllerClient

    assert isinstance(inspect.getattr_static(ServeControllerClient, "http_config"), property), advice


def test_every_private_name_of_another_package_has_a_test_here() -> None:
    trees = {
        str(file.relative_to(ROOT)): ast.parse(file.read_text())
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
    }
    ours = {name for tree in trees.values() for name in _defined(tree)}
    used = {(name, file) for file, tree in trees.items() for name in _foreign(tree, ours)}
    assert used == TESTED, "write a test for what is new, which says what to do when it goes; remove what is gone"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def _defined(tree: ast.AST) -> Iterator[str]:
    """The names that a file defines: functions, classes, variables, attributes of `self` and `cls`."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name


def _foreign(tree: ast.AST, ours: set[str]) -> Iterator[str]:
    """The private names that a file takes from elsewhere."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if any(map(_is_private, alias.name.split("."))))
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] not in PACKAGES:
                if any(map(_is_private, module.split("."))):
                    yield module
                yield from (f"{module}.{alias.name}" for alias in names if _is_private(alias.name))
            case ast.Attribute(attr=name) if _is_private(name) and name not in ours:
                if (dotted := ast.unparse(node)) not in DOCUMENTED:
                    yield dotted
