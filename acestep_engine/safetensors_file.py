"""The safetensors format, read from memory and distrusted: what is accepted is exactly what the header says.

8 bytes with the length of the header, a JSON header, and the tensors' bytes one after the other, without gaps
(https://huggingface.co/docs/safetensors). Not read by its library, because the bytes that are checked have to be those
that are digested and used.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from acestep_engine.errors import AdapterError

MAX_HEADER_BYTES = 2**24
MAX_TENSORS = 20_000
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16
BF16_EXPONENT = 0x7F80  # all ones: infinity or NaN


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in memory, as it is stored. `dtype` is a key of `DTYPES`."""

    dtype: str
    shape: tuple[int, ...]
    content: memoryview

    def is_finite(self) -> bool:
        values = np.frombuffer(self.content, dtype=DTYPES[self.dtype])
        if self.dtype == "BF16":
            return bool(((values & BF16_EXPONENT) != BF16_EXPONENT).all())
        return bool(np.isfinite(values).all())

    def item(self) -> float:
        """The value of a tensor with one element."""
        (value,) = np.frombuffer(self.content, dtype=DTYPES[self.dtype])
        return _bf16(int(value)) if self.dtype == "BF16" else float(value)

    def largest(self) -> float:
        """The largest absolute value; 0 where there is none."""
        values = np.frombuffer(self.content, dtype=DTYPES[self.dtype])
        if self.dtype == "BF16":  # without the sign, larger bits are larger values
            return _bf16(int((values & 0x7FFF).max(initial=0)))
        return float(np.abs(values).max(initial=0.0))

    def as_matrix(self) -> "StoredTensor":
        """Without the dimensions of size 1 after the second."""
        return replace(self, shape=self.shape[:2])


@dataclass(frozen=True, eq=False)
class SafetensorsFile:
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def parse_safetensors(label: str, content: bytearray) -> SafetensorsFile:
    """The tensors of a file, as views of `content`. Raises AdapterError for anything that is not quite safetensors."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise AdapterError(f"{label} is no safetensors file: a header of {length:,} bytes in {len(content):,}")
    if length > MAX_HEADER_BYTES:
        raise AdapterError(f"{label} has a header of {length:,} bytes, over the limit of {MAX_HEADER_BYTES:,}")
    try:
        header = json.loads(content[8 : 8 + length], object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        raise AdapterError(f"{label} is no safetensors file: its header is no JSON") from None
    if not isinstance(header, dict):
        raise AdapterError(f"{label} is no safetensors file: its header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterError(f"{label} has metadata that is not text")
    if len(header) > MAX_TENSORS:
        raise AdapterError(f"{label} has {len(header):,} tensors, over the limit of {MAX_TENSORS:,}")
    data = memoryview(content)[8 + length :]
    placed = sorted((_place(label, name, entry), name) for name, entry in header.items())
    end = 0
    for (start, stop, _, _), name in placed:
        if start != end:
            raise AdapterError(f"{label}: {name!r} begins at byte {start}, expected {end}")
        end = stop
    if end != len(data):
        raise AdapterError(f"{label} has {len(data):,} bytes of tensors, its header speaks of {end:,}")
    tensors = {name: StoredTensor(dtype, shape, data[start:stop]) for (start, stop, dtype, shape), name in placed}
    return SafetensorsFile(tensors, metadata)


def _bf16(bits: int) -> float:
    return float(np.array([bits << 16], dtype="<u4").view("<f4")[0])


def _place(label: str, name: str, entry: Any) -> tuple[int, int, str, tuple[int, ...]]:
    """Where a tensor lies, and what it is."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes = [start, stop, *shape]
    except (KeyError, TypeError, ValueError):
        raise AdapterError(f"{label}: the header does not describe {name[:80]!r}") from None
    if not all(type(size) is int and 0 <= size < 2**48 for size in sizes) or len(shape) > 8:
        raise AdapterError(f"{label}: the header describes {name[:80]!r} with impossible sizes")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise AdapterError(f"{label}: {name[:80]!r} is {str(dtype)[:20]}, expected one of {', '.join(DTYPES)}")
    expected = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if stop - start != expected:
        raise AdapterError(f"{label}: {name[:80]!r} has {stop - start} bytes, its shape needs {expected}")
    return start, stop, dtype, tuple(shape)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found
