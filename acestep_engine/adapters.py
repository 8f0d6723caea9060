"""LoRA adapters on the device: brought there beside the running songs, and a bounded number of them kept."""

from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor

from acestep_engine.errors import AdapterChangedError, AdapterNotLoadedError
from acestep_engine.lora import AdapterContent, AdapterUpdate, read_adapter
from acestep_engine.model.attention import CrossAttention, LinearAttention, folded_order
from acestep_engine.model.config import TransformerConfig
from acestep_engine.model.low_rank import PlacedAdapter, Update, WeightedAdapter
from acestep_engine.params import Adapter, AdapterLimits
from acestep_engine.safetensors_file import StoredTensor

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FOLDED = {"attn": LinearAttention.FOLDED, "cross_attn": CrossAttention.FOLDED}


class AdapterLoader:
    """Reads adapters for one model and brings them to its device. Safe to use beside the engine's thread."""

    def __init__(self, config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._config = config
        self._device = device
        self._dtype = dtype
        # Neither adapters nor songs wait for the other's work. One for all: the memory of a stream is used again there
        # only.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def load(self, adapter: Adapter) -> PlacedAdapter:
        """Raises AdapterError for files that cannot be used, AdapterChangedError for others than were registered."""
        content = read_adapter(Path(adapter.path), self._config)
        if content.digest != adapter.digest:
            raise AdapterChangedError(f"the files of the adapter {adapter.name!r} were changed since it was registered")
        if self._stream is None:
            return place_adapter(content, self._config, self._device, self._dtype)
        with torch.cuda.stream(self._stream):
            placed = place_adapter(content, self._config, self._device, self._dtype)
        self._stream.synchronize()
        songs = torch.cuda.default_stream(self._device)
        for of_one in placed.updates.values():
            for update in of_one:  # its memory must not be used again before the songs' last kernels are done
                update.down.record_stream(songs)
                update.up.record_stream(songs)
        return placed


class AdapterShelf:
    """The adapters on the device. Those that nobody uses make room for others, the least recently used first.

    For one thread, but its `loader` for any. `in_use` answers the digests that songs use just now: they never leave.
    """

    def __init__(self, loader: AdapterLoader, limits: AdapterLimits, in_use: Callable[[], set[str]]) -> None:
        self.loader = loader
        self.limits = limits
        self._in_use = in_use
        self._placed: OrderedDict[str, PlacedAdapter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._placed)

    def __contains__(self, adapter: Adapter) -> bool:
        return adapter.digest in self._placed

    @property
    def digests(self) -> tuple[str, ...]:
        """The least recently used first."""
        return tuple(self._placed)

    @property
    def nbytes(self) -> int:
        return sum(placed.nbytes for placed in self._placed.values())

    def weighted(self, adapter: Adapter | None) -> WeightedAdapter | None:
        """What a request runs under; the adapter counts as used now. Raises AdapterNotLoadedError."""
        if adapter is None:
            return None
        if adapter not in self:
            raise AdapterNotLoadedError(f"the adapter {adapter.name!r} is not on the device")
        self._placed.move_to_end(adapter.digest)
        return WeightedAdapter(self._placed[adapter.digest], adapter.weight)

    def fetch(self, adapter: Adapter) -> None:
        """Load an adapter here and now, unless it is here. Raises AdapterError."""
        if adapter not in self:
            self.make_room()
            self.put(self.loader.load(adapter))

    def make_room(self, coming: int = 1) -> bool:
        """Let go of unused adapters until so many may come. False if songs use too many of them."""
        self._drop(self._in_use(), self.limits.most - coming, self.limits.most_bytes)
        return len(self) + coming <= self.limits.most

    def put(self, placed: PlacedAdapter) -> None:
        """Keep one that was loaded, and let go of unused ones if they are too large together."""
        self._placed[placed.digest] = placed
        self._drop({*self._in_use(), placed.digest}, self.limits.most, self.limits.most_bytes)

    def clear_unused(self) -> None:
        """Let go of all that nobody uses: the memory is needed."""
        self._drop(self._in_use(), 0, 0)

    def _drop(self, kept: Collection[str], most: int, most_bytes: int) -> None:
        for digest in [digest for digest in self._placed if digest not in kept]:
            if len(self) <= most and self.nbytes <= most_bytes:
                return
            del self._placed[digest]


def place_adapter(
    content: AdapterContent, config: TransformerConfig, device: torch.device, dtype: torch.dtype
) -> PlacedAdapter:
    """In the layout that the model's projections are folded to."""
    updates: dict[str, tuple[Update, ...]] = {}
    for module, update in content.updates.items():
        name, placed = _place(module, update, config, device, dtype)
        updates[name] = (*updates.get(name, ()), placed)
    return PlacedAdapter(content.digest, updates)


def _place(
    module: str, update: AdapterUpdate, config: TransformerConfig, device: torch.device, dtype: torch.dtype
) -> tuple[str, Update]:
    down, up = (_to_tensor(part).to(device, dtype, copy=True) for part in (update.down, update.up))
    attention, _, projection = module.rpartition(".")
    folded = FOLDED.get(attention.rpartition(".")[2], {}).get(projection)
    if folded is None:
        return module, Update(down, up, update.scale, slice(None))
    if folded.reordered:
        order = folded_order(config.num_attention_heads, config.attention_head_dim)
        up = up[order.to(device)]
    outputs = slice(folded.part * up.shape[0], (folded.part + 1) * up.shape[0])
    return f"{attention}.{folded.name}", Update(down, up, update.scale, outputs)


def _to_tensor(stored: StoredTensor) -> Tensor:
    """A view of the file's bytes."""
    return torch.frombuffer(stored.content, dtype=TORCH_DTYPES[stored.dtype]).view(stored.shape)
