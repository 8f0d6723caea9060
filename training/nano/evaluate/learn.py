"""Train the judges on renderings of training seeds, once: they are kept beside a digest of what they depend on."""

import hashlib
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.nano.compose import FIRST_HELD_OUT_SEED, Wish, compose
from training.nano.evaluate.classify import FamilyNet, mel_picture
from training.nano.evaluate.drums import DrumLine, drum_features
from training.nano.evaluate.hear import Judges
from training.nano.evaluate.keys import MODES, KeyNet, chroma
from training.nano.render import render
from training.nano.words import FAMILIES

PIECES, PIECE_S = 3000, 8.0
FIRST_SEED = 5_000_000  # of training's, far from those that a data set begins with
EXAM_SHARE, FIRST_EXAM_SEED = 0.1, FIRST_HELD_OUT_SEED + 1_000_000
WORKERS = 2
BATCH = 64
PICTURE_FRAMES = 192  # a training crop, 4.5 s
PROBE_SEEDS = (FIRST_SEED, FIRST_SEED + 1)
LEARNED_FROM = (
    *(f"evaluate/{name}.py" for name in ("spectra", "classify", "keys", "drums", "learn")),
    *(f"{name}.py" for name in ("compose", "piece", "words", "render", "effects")),
    *("score/*.py", "instruments/*.py"),
)


@dataclass(frozen=True, eq=False)
class Examples:
    """What the judges see of N pieces, and the truth: indices of families, `keys` as 2 * tonic + minor."""

    pictures: Tensor  # (N, 128, T) float16
    chroma: Tensor  # (N, 24, T') float32
    drum_features: Tensor  # (N, F) float32
    families: Tensor  # (N,) int64
    keys: Tensor  # (N,) int64
    drums: Tensor  # (N,) float32, 0 or 1


def load_judges(work: Path, pieces: int = PIECES, tell: Callable[[str], None] = print) -> Judges:
    """The judges kept in `work`; without any of what they would learn from now, new ones, which takes minutes."""
    path = work / f"judges-{pieces}-{_digest()}.safetensors"
    judges = Judges(FamilyNet(), KeyNet(), DrumLine())
    nets = nn.ModuleDict({"family": judges.family, "key": judges.key, "drums": judges.drums})
    if path.is_file():
        nets.load_state_dict(load_file(path))
        nets.eval()
        return judges
    started = time.perf_counter()
    with _workers() as pool:
        lesson = examples(range(FIRST_SEED, FIRST_SEED + pieces), pool)
        exam = examples(range(FIRST_EXAM_SEED, FIRST_EXAM_SEED + math.ceil(EXAM_SHARE * pieces)), pool)
    tell(f"{pieces} pieces to learn from were rendered in {time.perf_counter() - started:.0f} s")
    train(judges, lesson)
    for line in examine(judges, exam):
        tell(line)
    work.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in nets.state_dict().items()}, partial)
    partial.replace(path)
    tell(f"the judges were ready in {time.perf_counter() - started:.0f} s")
    return judges


def examples(seeds: Sequence[int], pool: Executor) -> Examples:
    """Renderings of the pieces of `seeds`, as the judges see them."""
    seen = list(pool.map(_example, seeds, chunksize=16))
    pictures, tones, rises, families, tonics, played = zip(*seen, strict=True)
    return Examples(
        torch.from_numpy(np.stack(pictures)),
        torch.from_numpy(np.stack(tones)),
        torch.from_numpy(np.stack(rises)),
        torch.tensor(families),
        torch.tensor(tonics),
        torch.tensor(played),
    )


def train(judges: Judges, lesson: Examples) -> None:
    """Train all three from scratch, the same every time. Leaves them ready to judge."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)  # the nets' own dropout
    judges.drums.settle(lesson.drum_features)
    for net in (judges.family, judges.key, judges.drums):
        net.train()
        _draw_weights(net, generator)
    with _one_thread():
        _fit(judges.family, 10, 3e-3, lambda: _family_batches(judges.family, lesson, generator))
        _fit(judges.key, 12, 3e-3, lambda: _key_batches(judges.key, lesson, generator))
        _fit(judges.drums, 30, 3e-2, lambda: _drum_batches(judges.drums, lesson, generator))
    for net in (judges.family, judges.key, judges.drums):
        net.eval()


@torch.inference_mode()
def examine(judges: Judges, exam: Examples) -> list[str]:
    """How often each judge is right about pieces that it never saw, and which families it takes for which."""
    parts = exam.pictures.float().split(BATCH)
    leads = torch.cat([judges.family(part).argmax(dim=1) for part in parts])
    joint = torch.cat([judges.key(part).flatten(1).softmax(dim=1) for part in exam.chroma.split(BATCH)])
    minor = joint[:, 1::2].sum(dim=1) > 0.5
    played = judges.drums(exam.drum_features) > 0
    confused = [
        f"{FAMILIES[true]} for {FAMILIES[found]}"
        for true, found in zip(exam.families, leads, strict=True)
        if true != found
    ]
    mistakes = ", ".join(
        f"{one} {confused.count(one)}" for one in sorted(set(confused), key=confused.count, reverse=True)
    )
    count = len(leads)
    return [
        f"judged of {count} held-out renderings: "
        f"lead {_rate(leads == exam.families)}, mode {_rate(minor == (exam.keys % 2 == 1))}, "
        f"key {_rate(joint.argmax(dim=1) == exam.keys)}, drums {_rate(played == (exam.drums > 0))}",
        f"true leads taken for others: {mistakes or 'none'}",
    ]


def _example(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int, float]:
    piece = compose(seed, Wish(duration_s=PIECE_S))
    audio = render(piece)
    tonic_and_mode = 2 * piece.key + MODES.index(piece.mode)
    return (
        mel_picture(audio).half().numpy(),
        chroma(audio).numpy(),
        drum_features(audio).numpy(),
        FAMILIES.index(piece.lead),
        tonic_and_mode,
        float(piece.drums),
    )


def _workers() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        WORKERS, mp_context=multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )


def _digest() -> str:
    """Of how two pieces sound and of the sources of what is heard and learned: a change of any calls for new judges."""
    found = hashlib.sha256()
    for seed in PROBE_SEEDS:
        found.update(render(compose(seed, Wish(duration_s=PIECE_S))).tobytes())
    here = Path(__file__).parent
    for pattern in LEARNED_FROM:
        for source in sorted(here.parent.glob(pattern)):
            found.update(source.read_bytes())
    return found.hexdigest()[:12]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps as small as these take many times as long where threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _draw_weights(net: nn.Module, generator: torch.Generator) -> None:
    for layer in net.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 / layer.weight[0].numel())
            layer.weight.data.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.data.zero_()


def _fit(net: nn.Module, epochs: int, rate: float, losses_of_epoch: Callable[[], Iterator[Tensor]]) -> None:
    """AdamW, the rate falling to nothing along half a cosine."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.02)
    for epoch in range(epochs):
        for loss in losses_of_epoch():
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * (epoch + 1) / epochs))


def _orders(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled indices, batch by batch."""
    yield from torch.randperm(count, generator=generator).split(BATCH)


def _family_batches(net: FamilyNet, lesson: Examples, generator: torch.Generator) -> Iterator[Tensor]:
    for chosen in _orders(len(lesson.families), generator):
        pictures = _disturbed(lesson.pictures[chosen].float(), generator)
        yield F.cross_entropy(net(pictures), lesson.families[chosen], label_smoothing=0.05)


def _key_batches(net: KeyNet, lesson: Examples, generator: torch.Generator) -> Iterator[Tensor]:
    for chosen in _orders(len(lesson.keys), generator):
        tones = lesson.chroma[chosen]
        noise = torch.rand(tones.shape, generator=generator) * torch.rand(len(chosen), 1, 1, generator=generator)
        yield F.cross_entropy(net(tones + noise).flatten(1), lesson.keys[chosen], label_smoothing=0.05)


def _drum_batches(net: DrumLine, lesson: Examples, generator: torch.Generator) -> Iterator[Tensor]:
    for chosen in _orders(len(lesson.drums), generator):
        yield F.binary_cross_entropy_with_logits(net(lesson.drum_features[chosen]), lesson.drums[chosen])


def _disturbed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of pictures (B, 128, T) as other rooms, codecs and decoders would show them.

    Tilted, blurred, noisy, and with a floor that hides what is soft: what the judges learn must not hang on details
    that a decoder loses.
    """
    batch, bands, frames = pictures.shape

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, 1, generator=generator)

    first = int(torch.randint(0, max(1, frames - PICTURE_FRAMES), (1,), generator=generator))
    crop = pictures[..., first : first + PICTURE_FRAMES]
    blurred = F.avg_pool2d(crop[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    share = draw(0.0, 1.0) * (draw(0.0, 1.0) > 0.5)
    tilt = draw(-0.12, 0.12) * torch.linspace(-1, 1, bands)[:, None]
    noise = draw(0.0, 0.06) * torch.randn(crop.shape, generator=generator)
    floor = draw(-1.0, -0.6)
    return torch.maximum(torch.lerp(crop, blurred, share) + tilt + noise, floor)


def _rate(right: Tensor) -> str:
    return f"{100 * right.float().mean():.0f} %"
