"""Arrays in the format of safetensors, written and read one by one from the first to the last.

    writer = Writer(spool)                       reader = Reader(stream)
    writer.add("lengths", np.arange(3))          reader.take("lengths")       # in the order of writing

The header stands before the data and says how much there is, so the data waits in a spool until all is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import numpy as np

from memometer.cartridge.container import BLOCK, CartridgeError, Spool

KINDS = {"U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
OTHER_KINDS = {"BOOL": 1, "I16": 2, "U16": 2, "U32": 4, "U64": 8, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
MOST_HEADER_BYTES = 16 << 20

_NAMES = {np.dtype(kind): name for name, kind in KINDS.items()}


class Source(Protocol):
    """What is read from."""

    def read(self, size: int = -1, /) -> bytes: ...


class Writer:
    """Collects arrays in `data`; `into` writes them behind their header."""

    def __init__(self, data: Spool) -> None:
        self._data = data
        self._header: dict[str, Any] = {}

    def add(self, name: str, array: np.ndarray) -> None:
        """An array of one of `KINDS`, under a name of its own."""
        self.add_parts(name, [array.reshape(-1)], array.dtype, array.shape)

    def add_parts(
        self, name: str, parts: Iterable[np.ndarray | bytes], kind: Any, shape: Sequence[int] | None = None
    ) -> None:
        """An array given in parts, which are written at once; one dimension, unless there is a shape."""
        start, kind = self._data.size, np.dtype(kind)
        for part in parts:
            self._data.write(part if isinstance(part, bytes) else np.ascontiguousarray(part, kind).tobytes())
        count = (self._data.size - start) // kind.itemsize
        self._header[name] = {
            "dtype": _NAMES[kind.newbyteorder("<")],
            "shape": [count] if shape is None else list(shape),
            "data_offsets": [start, self._data.size],
        }

    def __len__(self) -> int:
        return len(self._header)

    def into(self, spool: Spool) -> None:
        header = json.dumps(self._header, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        spool.write(len(header).to_bytes(8, "little") + header)
        for block in self._data.blocks():
            spool.write(block)


class Reader:
    """Hands out the arrays of a source in their order. Raises CartridgeError for anything that is not so."""

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self.header = read_header(source, size)
        self._left = list(self.header)

    def next_is(self, name: str) -> bool:
        return bool(self._left) and self._left[0] == name

    def take(self, name: str, kind: str) -> np.ndarray:
        """The array, one of `KINDS`."""
        dtype, shape = self._start(name, kind)
        return np.frombuffer(self._exactly(prod(shape) * dtype.itemsize), dtype).reshape(shape)

    def kind_of(self, name: str) -> str:
        return str(self.header[name]["dtype"]) if name in self.header else ""

    def items(self, name: str, lengths: np.ndarray) -> Iterator[bytes]:
        """An array of bytes, as items of these lengths."""
        _, shape = self._start(name, "U8")
        if (len(lengths) and int(lengths.min()) < 0) or sum(lengths.tolist()) != prod(shape):
            raise damaged(name)
        return self._cut(lengths)

    def rows(self, name: str, kind: str) -> tuple[int, Iterator[bytes]]:
        """How many rows an array of two dimensions has, and the bytes of each."""
        dtype, shape = self._start(name, kind)
        if len(shape) != 2 or (shape[0] and not shape[1]):
            raise damaged(name)
        return shape[0], self._cut(np.full(shape[0], shape[1] * dtype.itemsize))

    def _cut(self, lengths: np.ndarray) -> Iterator[bytes]:
        first = 0
        while first < len(lengths):  # many small items from one read
            ends = np.cumsum(lengths[first : first + 65_536])
            last = max(1, int(np.searchsorted(ends, BLOCK, side="right")))
            block = self._exactly(int(ends[last - 1]))
            starts = [0, *ends[:last].tolist()]
            yield from (block[start:end] for start, end in pairwise(starts))
            first += last

    def finish(self) -> None:
        """Raises CartridgeError where something is left."""
        if self._left:
            raise damaged(self._left[0])

    def _start(self, name: str, kind: str) -> tuple[np.dtype[Any], list[int]]:
        if not self.next_is(name) or self.header[name]["dtype"] != kind:
            raise damaged(name)
        self._left.pop(0)
        return np.dtype(KINDS[kind]), self.header[name]["shape"]

    def _exactly(self, size: int) -> bytes:
        data = self._source.read(size) if size else b""
        if len(data) != size:
            raise CartridgeError("its arrays are cut off")
        return data


def read_header(source: Source, size: int) -> dict[str, Any]:
    """The header of arrays that fill `size` bytes without a gap. Raises CartridgeError for any other."""
    length = int.from_bytes(source.read(8), "little")
    if length > min(MOST_HEADER_BYTES, size - 8):
        raise CartridgeError("its arrays have a header that is too long")
    try:
        header = json.loads(source.read(length))
        header.pop("__metadata__", None)
        place = 0
        header = dict(sorted(header.items(), key=lambda named: named[1]["data_offsets"]))
        for about in header.values():
            items = KINDS.get(about["dtype"])
            width = np.dtype(items).itemsize if items else OTHER_KINDS[about["dtype"]]
            shape = about["shape"]
            if not all(isinstance(n, int) and n >= 0 for n in shape):
                raise ValueError("a shape is of whole numbers")
            if about["data_offsets"] != [place, place + width * prod(shape)]:
                raise ValueError("arrays overlap, or leave gaps")
            place = about["data_offsets"][1]
        if place != size - 8 - length:
            raise ValueError("arrays do not fill the file")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CartridgeError(f"its arrays have no header that can be read ({error!r})") from error
    return dict(header)


def damaged(name: str) -> CartridgeError:
    return CartridgeError(f"its part {name} is not what this system keeps")
