"""Texts in few bytes: zstd with a dictionary that is trained on the store's own episodes, or LZ4.

One turn is too short to compress by itself: without a dictionary zstd saves a fifth, and LZ4 makes it longer. A
dictionary holds text of those it was trained on, so it stays in the store that it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

RAW, ZSTD, LZ4 = 0, -1, -2
"""How a text is written, beside the numbers of dictionaries, from 1."""

MOST_BYTES = 16 * 2**20
"""Of one text."""

DICTIONARY_BYTES = 112 * 1024
_LEVEL = 12


class Codec:
    """Compresses with the newest of some dictionaries, and reads what any of them wrote.

    Args:
        dictionaries: by number.
        compression: zstd or lz4; for lz4 the package of that name is needed.
    """

    def __init__(self, dictionaries: Mapping[int, bytes], compression: str = "zstd") -> None:
        self.newest = max(dictionaries, default=ZSTD) if compression == "zstd" else LZ4
        self._dictionaries = dict(dictionaries)
        self._readers: dict[int, Callable[[bytes], bytes]] = {RAW: bytes}
        self._writer = self._open(self.newest)[0]

    def pack(self, text: bytes) -> tuple[int, bytes]:
        """How it is written, and what; as it is where nothing is shorter."""
        if len(text) > MOST_BYTES:
            raise ValueError(f"a text of {len(text):,} bytes cannot be stored; the most is {MOST_BYTES:,}.")
        packed = self._writer(text)
        return (self.newest, packed) if len(packed) < len(text) else (RAW, text)

    def knows(self, kind: int) -> bool:
        """Whether it can read what was written so."""
        return kind <= RAW or kind in self._dictionaries

    def unpack(self, kind: int, packed: bytes) -> bytes:
        if kind not in self._readers:
            self._readers[kind] = self._open(kind)[1]
        return self._readers[kind](packed)

    def _open(self, kind: int) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
        if kind == LZ4:
            try:
                import lz4.block
            except ImportError as error:
                raise ValueError("compression=lz4 needs the lz4 package: pip install lz4.") from error
            return lz4.block.compress, lambda packed: bytes(lz4.block.decompress(packed))
        import zstandard

        known = zstandard.ZstdCompressionDict(self._dictionaries[kind]) if kind > 0 else None
        # What every frame would repeat is left out: magic number, sizes, checksum, the dictionary's number.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL,
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=False,
            write_checksum=False,
            write_dict_id=False,
        )
        writer: Any = zstandard.ZstdCompressor(dict_data=known, compression_params=parameters)
        reader: Any = zstandard.ZstdDecompressor(dict_data=known, format=zstandard.FORMAT_ZSTD1_MAGICLESS)

        def read(packed: bytes) -> bytes:
            # As a stream: what a frame claims of its size is not believed.
            try:
                text = bytes(reader.stream_reader(packed).read(MOST_BYTES + 1))
            except zstandard.ZstdError as error:
                raise ValueError(f"it is damaged: {error}") from error
            if len(text) > MOST_BYTES:
                raise ValueError(f"it is longer than {MOST_BYTES:,} bytes")
            return text

        return writer.compress, read


def train(texts: Sequence[bytes]) -> bytes | None:
    """A dictionary for texts like these; None where there are too few to learn from."""
    import zstandard

    size = min(DICTIONARY_BYTES, sum(map(len, texts)) // 10)
    try:
        return zstandard.train_dictionary(size, list(texts), level=_LEVEL).as_bytes() if size >= 1024 else None
    except zstandard.ZstdError:  # few or uniform texts
        return None
