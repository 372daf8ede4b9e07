"""Compression of texts, by zstd with a dictionary trained on the store's own episodes, or by LZ4.

A single turn is too short to compress well: without a dictionary zstd saves a fifth and LZ4 nothing. A dictionary
contains parts of its training texts, so it never leaves its store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

RAW, ZSTD, LZ4 = 0, -1, -2
"""Encodings of a text. Positive numbers are zstd with the dictionary of that number."""

MAX_BYTES = 16 * 2**20
"""Limit for one text."""

DICTIONARY_BYTES = 112 * 1024
_LEVEL = 12

PART_BYTES = 6
"""Length of the parts of a deleted text that are searched for in dictionaries."""


_USUAL_BYTES = 8192
"""A read allocates all that it may return, so most texts are read with a small limit."""


class Codec:
    """Compresses with the newest dictionary and decompresses with any of them.

    Args:
        dictionaries: dictionaries by number.
        compression: `zstd` or `lz4`; the latter needs the package lz4.
    """

    def __init__(self, dictionaries: Mapping[int, bytes], compression: str = "zstd") -> None:
        self.newest = max(dictionaries, default=ZSTD) if compression == "zstd" else LZ4
        self._dictionaries = dict(dictionaries)
        self._readers: dict[int, Callable[[bytes], bytes]] = {RAW: bytes}
        self._lock = threading.Lock()  # zstandard's objects serve one thread at a time
        self._writer = self._open(self.newest)[0]

    def pack(self, text: bytes) -> tuple[int, bytes]:
        """Return the encoding and the bytes; the text itself if compression does not shorten it."""
        if len(text) > MAX_BYTES:
            raise ValueError(f"cannot store a text of {len(text):,} bytes; the limit is {MAX_BYTES:,} bytes.")
        with self._lock:
            packed = self._writer(text)
        return (self.newest, packed) if len(packed) < len(text) else (RAW, text)

    def knows(self, kind: int) -> bool:
        """Return True if `unpack` supports this encoding."""
        return kind <= RAW or kind in self._dictionaries

    def unpack(self, kind: int, packed: bytes) -> bytes:
        with self._lock:
            if kind not in self._readers:
                self._readers[kind] = self._open(kind)[1]
            return self._readers[kind](packed)

    def contains_part_of(self, text: bytes) -> bool:
        """Return True if a dictionary contains a part of a text that is longer than most phrases."""
        parts = {text[start : start + PART_BYTES] for start in range(max(1, len(text) - PART_BYTES + 1))}
        return any(part in dictionary for dictionary in self._dictionaries.values() for part in parts)

    def _open(self, kind: int) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
        if kind == LZ4:
            try:
                import lz4.block
            except ImportError as error:
                raise ValueError("compression=lz4 needs the package lz4; run pip install lz4.") from error
            return lz4.block.compress, lambda packed: bytes(lz4.block.decompress(packed))
        import zstandard

        dictionary = zstandard.ZstdCompressionDict(self._dictionaries[kind]) if kind > 0 else None
        # Short frames: no magic number, size, checksum or dictionary number.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL,
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=False,
            write_checksum=False,
            write_dict_id=False,
        )
        writer: Any = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)
        reader: Any = zstandard.ZstdDecompressor(dict_data=dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS)

        def read(packed: bytes) -> bytes:
            # As a stream, because the size that a frame declares is not trusted.
            try:
                stream = reader.stream_reader(packed)
                text = bytes(stream.read(_USUAL_BYTES))
                if len(text) == _USUAL_BYTES:
                    text += stream.read(MAX_BYTES + 1 - _USUAL_BYTES)
            except zstandard.ZstdError as error:
                raise ValueError(f"damaged data: {error}") from error
            if len(text) > MAX_BYTES:
                raise ValueError(f"longer than {MAX_BYTES:,} bytes")
            return text

        return writer.compress, read


def train(texts: Sequence[bytes]) -> bytes | None:
    """Train a dictionary on texts; return None if there are too few."""
    import zstandard

    size = min(DICTIONARY_BYTES, sum(map(len, texts)) // 10)
    try:
        return zstandard.train_dictionary(size, list(texts), level=_LEVEL).as_bytes() if size >= 1024 else None
    except zstandard.ZstdError:  # few or uniform texts
        return None
