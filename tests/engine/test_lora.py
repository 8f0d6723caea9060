"""Songs under adapters: as peft has them, beside others, and the model itself unchanged."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acestep_engine.adapters import AdapterLoader, AdapterShelf, place_adapter
from acestep_engine.context import ContextBuilder
from acestep_engine.engine import Engine
from acestep_engine.errors import AdapterChangedError, AdapterNotLoadedError
from acestep_engine.model.low_rank import WeightedAdapter
from acestep_engine.model.transformer import Transformer
from acestep_engine.params import Adapter, AdapterLimits, GenerationParams
from acestep_engine.requests import Song, songs_of
from tests.engine.loras import (
    OTHER_TARGETS,
    PUBLISHED_TARGETS,
    Lora,
    merged_transformer,
    read,
    registered,
    save_diffusers_file,
    save_peft_folder,
)
from tests.engine.small import CPU, SMALL, Ask, conditioning, latents, packing, small_engine, small_transformer
from tests.engine.wishes import EXACT, KINDS, Wish, assert_same, drain
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = Lora()
RAP = Lora(seed=1, rank=6, alpha=3.0, rslora=True)
WIDE = Lora(seed=2, rank=3, alpha=6.0, targets=(*PUBLISHED_TARGETS, *OTHER_TARGETS), strength=0.2)
PATTERNED = Lora(seed=3, pattern=(("transformer_blocks.2.attn.to_k", 2, 9.0), ("linear_v", 5, 1.0)))
ALL = {"plain": PLAIN, "rslora": RAP, "every module": WIDE, "patterns": PATTERNED}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loras")
    for name, lora in ALL.items():
        save_peft_folder(lora, root / name)
    return root


def merged_engine(lora: Lora, weight: float) -> Engine:
    """An engine whose model has the adapter in its weights."""
    usual = small_engine()
    return Engine(usual.spec, merged_transformer(lora, weight), usual.autoencoder, CPU, usual.calibration)


def under(wish: Wish, adapter: Adapter) -> Wish:
    return replace(wish, params=replace(wish.params, adapter=adapter))


def alone(wish: Wish) -> Song:
    return small_engine().generate(wish.params, wish.inputs)


def run(engine: Engine, wishes: dict[str, Wish]) -> dict[str, Song]:
    for request_id, wish in wishes.items():
        if wish.params.active_adapter is not None:
            engine.adapters.fetch(wish.params.active_adapter)
        wish.add_to(engine, request_id)
    return songs_of(drain(engine))


# As peft has it


@pytest.mark.parametrize("weight", [1.0, -0.7, 0.3])
@pytest.mark.parametrize("name", ALL)
def test_a_song_under_an_adapter_is_that_of_the_model_that_peft_merges(folder: Path, name: str, weight: float) -> None:
    wish = KINDS["erg"]
    found = alone(under(wish, registered(folder / name, weight)))
    expected = merged_engine(ALL[name], weight).generate(wish.params, wish.inputs)
    assert_same(found, expected)
    assert relative_error(torch.tensor(found.latents), torch.tensor(alone(wish).latents)) > 1e-3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "erg"])
def test_every_kind_of_request_runs_under_an_adapter(folder: Path, kind: str) -> None:
    wish = KINDS[kind]
    found = alone(under(wish, registered(folder / "every module")))
    assert_same(found, merged_engine(WIDE, 1.0).generate(wish.params, wish.inputs))


@pytest.mark.parametrize("name", ALL)
def test_the_parts_of_the_model_are_those_that_peft_merges(folder: Path, name: str) -> None:
    """Context and velocity apart, more exactly than a whole song shows."""
    placed = place_adapter(read(folder / name), SMALL, CPU, torch.float32)
    weighted, given = WeightedAdapter(placed, 0.8), conditioning(padded=2)
    params = GenerationParams("", "", 1.0, seed=1, guidance_scale_text=5.0, guidance_scale_lyric=2.0)
    found = ContextBuilder(small_transformer(), CPU, torch.float32).build(params, given, weighted)
    merged = merged_transformer(ALL[name], 0.8)
    expected = ContextBuilder(merged, CPU, torch.float32).build(params, given)
    for of_found, of_expected in zip(found.key_values, expected.key_values, strict=True):
        for part, same in zip(of_found, of_expected, strict=True):
            assert relative_error(part, same) <= EXACT

    def velocities(model: Transformer, context: object, adapter: WeightedAdapter | None) -> torch.Tensor:
        scales = (1.0, 0.01, 1.0)
        packed = packing([Ask(13, query_scales=scales)], [context])  # type: ignore[list-item]
        modulation = model.modulate(torch.tensor(400.0), adapter)
        return torch.stack(model([latents(13)] * 3, [modulation] * 3, packed))

    adapted = velocities(small_transformer(), found, weighted)
    assert relative_error(adapted, velocities(merged, expected, None)) <= EXACT


def test_both_layouts_say_the_same(folder: Path, tmp_path: Path) -> None:
    save_diffusers_file(RAP, tmp_path)
    wish = KINDS["usual"]
    assert_same(
        alone(under(wish, registered(tmp_path))), alone(under(wish, registered(folder / "rslora"))), tolerance=0.0
    )


# Beside others, and afterwards


def test_three_adapters_and_none_in_one_batch_are_each_as_alone(folder: Path) -> None:
    base = KINDS["usual"]
    wishes = {
        "none": base,
        "plain": under(base, registered(folder / "plain")),
        "rslora": under(KINDS["double guidance"], registered(folder / "rslora")),
        "wide": under(replace(base, prompt=9), registered(folder / "every module", 0.5)),
        "plain, weaker": under(base, registered(folder / "plain", 0.4)),
        "plain, another song": under(KINDS["heun"], registered(folder / "plain")),
        "edited": under(KINDS["edited"], registered(folder / "rslora", -1.0)),
    }
    found = run(small_engine(), wishes)
    assert found.keys() == wishes.keys()
    for name, wish in wishes.items():
        assert_same(found[name], alone(wish), tolerance=1e-5)
    distinct = {found[name].latents.tobytes() for name in wishes}
    assert len(distinct) == len(wishes)


def test_they_share_every_forward(folder: Path) -> None:
    base = KINDS["usual"]
    companies: list[int] = []
    hook = small_transformer().register_forward_pre_hook(lambda _, args: companies.append(len(args[2].segments)))
    try:
        run(small_engine(), {"none": base, "one": under(base, registered(folder / "plain"))})
    finally:
        hook.remove()
    assert companies == [2] * base.params.steps


def test_after_any_adapters_the_model_is_bit_for_bit_what_it_was(folder: Path) -> None:
    engine, wish = small_engine(), KINDS["usual"]
    weights = {name: tensor.clone() for name, tensor in engine.transformer.state_dict().items()}
    before = engine.generate(wish.params, wish.inputs)
    for name in ALL:
        run(engine, {"none": wish, name: under(wish, registered(folder / name, 2.0))})
    after = engine.generate(wish.params, wish.inputs)
    assert after.latents.tobytes() == before.latents.tobytes()
    assert after.audio.tobytes() == before.audio.tobytes()
    for name, tensor in engine.transformer.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_weight_zero_is_exactly_the_model_and_loads_nothing(folder: Path) -> None:
    engine, wish = small_engine(), KINDS["usual"]
    gone = Adapter("gone", "0" * 64, "/nowhere", 0.0)
    found = engine.generate(replace(wish.params, adapter=gone), wish.inputs)
    assert found.latents.tobytes() == alone(wish).latents.tobytes()
    assert len(engine.adapters) == 0


def test_compiled_blocks_are_not_used_under_adapters(folder: Path) -> None:
    """Each company of adapters would be compiled anew."""
    wish = under(KINDS["usual"], registered(folder / "plain"))
    with refused_blocks(small_transformer()):
        found = alone(wish)
    assert_same(found, alone(wish), tolerance=0.0)


@contextmanager
def refused_blocks(model: Transformer) -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a compiled block ran under an adapter")

    for block in model.transformer_blocks:
        for name in ("project", "cross_project", "finish"):
            setattr(block, name, refuse)
    try:
        yield
    finally:
        model.use_plain_blocks()


# Which are on the device


def shelf(in_use: set[str], most: int = 2, most_bytes: int = 2**30) -> AdapterShelf:
    loader = AdapterLoader(SMALL, CPU, torch.float32)
    return AdapterShelf(loader, AdapterLimits(most, most_bytes), lambda: in_use)


def test_the_least_recently_used_leaves_but_none_in_use(folder: Path) -> None:
    adapters = {name: registered(folder / name) for name in ALL}
    in_use: set[str] = set()
    kept = shelf(in_use)
    kept.fetch(adapters["plain"])
    kept.fetch(adapters["rslora"])
    kept.weighted(adapters["plain"])
    kept.fetch(adapters["patterns"])
    assert adapters["plain"] in kept
    assert adapters["rslora"] not in kept
    in_use |= {adapters["plain"].digest, adapters["patterns"].digest}
    assert not kept.make_room()
    in_use.remove(adapters["plain"].digest)
    assert kept.make_room()
    assert adapters["plain"] not in kept


def test_bytes_are_bounded_too(folder: Path) -> None:
    one, other = registered(folder / "plain"), registered(folder / "rslora")
    kept = shelf(set(), most=8, most_bytes=1)
    kept.fetch(one)
    kept.fetch(other)
    assert one not in kept
    assert other in kept  # the one that was asked for


def test_a_request_whose_adapter_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(AdapterNotLoadedError, match="'one' is not on the device"):
        under(KINDS["usual"], registered(folder / "plain")).add_to(small_engine(), "first")


def test_changed_files_are_noticed(tmp_path: Path) -> None:
    adapter = registered(save_peft_folder(PLAIN, tmp_path))
    save_peft_folder(replace(PLAIN, seed=77), tmp_path)
    with pytest.raises(AdapterChangedError, match="'one' were changed"):
        small_engine().adapters.fetch(adapter)


@pytest.mark.slow
def test_ten_thousand_switches_leak_nothing(folder: Path) -> None:
    switch(folder, 10_000)


def test_many_switches_leak_nothing(folder: Path) -> None:
    switch(folder, 150)


def switch(folder: Path, times: int) -> None:
    """Songs of one step, each under another adapter than the last, with room for one beside."""
    engine = small_engine()
    engine.adapters.limits = AdapterLimits(most=2)
    wishes = [Wish(GenerationParams("", "", 0.1, seed=1, steps=1, guidance_scale=1.0))]
    wishes += [under(wishes[0], registered(folder / name, weight)) for name in ALL for weight in (1.0, 0.5)]
    for wish in wishes * 10:  # until all caches are full
        engine.generate(wish.params, wish.inputs)
    before = live()
    for index in range(times):
        wish = wishes[index % len(wishes)]
        engine.generate(wish.params, wish.inputs)
        assert len(engine.adapters) <= 2
    after = live()
    assert abs(after[0] - before[0]) < 100, "tensors"
    assert abs(after[1] - before[1]) < 2_000_000, "bytes of tensors"


def live() -> tuple[int, int]:
    """How many tensors there are, and their bytes."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return len(tensors), sum(tensor.nbytes for tensor in tensors)
