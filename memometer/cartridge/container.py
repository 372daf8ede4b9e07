"""The file itself: a ZIP of stored entries, read more strictly than ZIP asks, so that no byte of it goes unchecked.

Names come from a closed list, in its order, each at most once, and dates are fixed: the same content gives the same
file. The manifest says the size and sha256 of every other entry. Nothing is ever extracted: names are compared, and no
path is made of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from memometer.errors import UserError

MIMETYPE, MANIFEST, SIGNATURE = "mimetype", "manifest.json", "manifest.sig"
RECORDS, VECTORS = "memory/records.jsonl.zst", "memory/vectors.safetensors"
STATE, TENSORS = "state/state.json", "state/state.safetensors"
ADAPTER_CONFIG, ADAPTER = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
PROGRAM, TOKENIZER = "program/program.json", "tokenizer/tokenizer.json"

NAMES = (
    MIMETYPE, MANIFEST, SIGNATURE, RECORDS, VECTORS, STATE, TENSORS, ADAPTER_CONFIG, ADAPTER, PROGRAM, TOKENIZER,
)  # fmt: skip
VERSION = 1
MEDIA_TYPE = b"application/vnd.adaptive-memory.cartridge"
MOST_MANIFEST_BYTES = 1 << 20
MOST_FILE_BYTES = (1 << 32) - 1  # a ZIP without extensions counts to here
BLOCK = 1 << 20

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION, _DAY, _UTF8 = 20, 0x21, 0x800  # ZIP 2.0; 1 January 1980, the first day that ZIP knows; names in UTF-8


class CartridgeError(UserError, ValueError):
    """The file cannot be used, or what was to be written into one cannot be; the message is one sentence."""


class NotWritten(CartridgeError):
    """There is no file, or the one that was there before."""


class Spool:
    """An entry being made: on disk beside its target, so that no entry is ever whole in memory."""

    def __init__(self, folder: Path) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self.file.write(data)
        self.size += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing: what writes here may ask for it."""

    def blocks(self) -> Iterator[bytes]:
        self.file.seek(0)
        while block := self.file.read(BLOCK):
            yield block

    def close(self) -> None:
        self.file.close()


def write(
    path: Path, manifest: Mapping[str, Any], spools: Mapping[str, Spool], sign: Callable[[bytes], bytes] | None = None
) -> None:
    """Write the file whole or not at all. Its manifest is `manifest` with the size and sha256 of every entry.

    `sign` makes the content of the signature from the manifest. Raises CartridgeError, OSError.
    """
    sums = {name: _sums(spool.blocks()) for name, spool in spools.items()}
    files = {name: {"bytes": spool.size, "sha256": sums[name][0]} for name, spool in spools.items()}
    written = canonical({**manifest, "version": VERSION, "files": files})
    small = {MIMETYPE: MEDIA_TYPE, MANIFEST: written}
    if sign:
        small[SIGNATURE] = sign(written)
    sizes = {name: len(content) for name, content in small.items()} | {n: s.size for n, s in spools.items()}
    checks = {name: zlib.crc32(content) for name, content in small.items()} | {n: crc for n, (_, crc) in sums.items()}
    entries = [_Entry(name, sizes[name], checks[name]) for name in NAMES if name in sizes]
    if sum(entry.length for entry in entries) > MOST_FILE_BYTES:
        raise CartridgeError("it would pass 4 GiB, which a cartridge cannot; save fewer memories in one")
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        with part.open("wb") as file:
            for entry in entries:
                file.write(entry.local())
                for block in [small[entry.name]] if entry.name in small else spools[entry.name].blocks():
                    file.write(block)
            file.write(_directory(entries))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def canonical(value: Any) -> bytes:
    """JSON in the one way that a manifest is written: keys sorted, no spaces, no NaN."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as error:
        raise CartridgeError(f"a manifest cannot hold this ({error})") from error


class Container:
    """A file that has the form of a cartridge and, once `verify` has returned, the content that its manifest says.

    Raises CartridgeError for any other file, with the reason; OSError where it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("rb")
        self._entries: dict[str, tuple[_Entry, int]] = {}
        self.manifest: dict[str, Any] = {}
        self.written = b""
        try:
            self._read_entries()
        except BaseException:  # nobody else closes a file that was refused
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def digest(self) -> str:
        """The sha256 of the manifest, which names all else by its own: two cartridges of one digest are equal."""
        return hashlib.sha256(self.written).hexdigest()

    def verify(self) -> None:
        """Read every entry, and compare it with what the manifest says."""
        listed = self.manifest.get("files")
        if not isinstance(listed, dict):
            raise CartridgeError("its manifest lists no files")
        if set(listed) != set(self._entries) - {MIMETYPE, MANIFEST, SIGNATURE}:
            raise CartridgeError("its manifest lists other files than it holds")
        for name, (entry, _) in self._entries.items():
            sha256, crc = _sums(self._blocks(name))
            if crc != entry.crc:
                raise CartridgeError(f"{name} is damaged")
            if name in listed and listed[name] != {"bytes": entry.size, "sha256": sha256}:
                raise CartridgeError(f"{name} is not what its manifest says")

    def read(self, name: str, *, most: int) -> bytes:
        """The content of an entry of at most so many bytes."""
        if name not in self._entries:
            raise CartridgeError(f"it has no {name}")
        if (size := self.size(name)) > most:
            raise CartridgeError(f"its {name} has {size:,} bytes, and may have {most:,}")
        return b"".join(self._blocks(name))

    def size(self, name: str) -> int:
        return self._entries[name][0].size

    def stream(self, name: str) -> Stream:
        """The content of an entry, to be read once from its beginning."""
        if name not in self._entries:
            raise CartridgeError(f"it has no {name}")
        entry, start = self._entries[name]
        return Stream(self._file, start, entry.size)

    def _blocks(self, name: str) -> Iterator[bytes]:
        stream = self.stream(name)
        while block := stream.read(BLOCK):
            yield block

    def _read_entries(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        place = 0
        while True:
            self._file.seek(place)
            header = self._file.read(_LOCAL.size)
            if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
                break
            *_, crc, _, length, name_bytes, _ = _LOCAL.unpack(header)
            name = self._file.read(min(name_bytes, 100)).decode("ascii", errors="replace")
            entry = _Entry(name, length, crc)
            if not self._may_follow(name):
                raise CartridgeError(f"it holds {name[:60]!r}, which does not belong there")
            if header + name.encode() != entry.local() or place + entry.length > size:
                raise CartridgeError(f"its {name} is cut off, or not stored as it should be")
            self._entries[name] = entry, place + len(entry.local())
            place += entry.length
            if name == MANIFEST:  # before anything that another version may have
                self._read_manifest()
        self._file.seek(place)
        directory = _directory([entry for entry, _ in self._entries.values()])
        if not self.manifest or self._file.read(len(directory) + 1) != directory:
            raise CartridgeError("it is cut off, or no cartridge")

    def _may_follow(self, name: str) -> bool:
        """Whether an entry may come next: the first two always are there, the others in their order."""
        at = len(self._entries)
        if at < 2 or name not in NAMES:
            return name == NAMES[at] if at < 2 else False
        return NAMES.index(name) > NAMES.index(list(self._entries)[-1])

    def _read_manifest(self) -> None:
        if self.read(MIMETYPE, most=100) != MEDIA_TYPE:
            raise CartridgeError("it is of another type")
        self.written = self.read(MANIFEST, most=MOST_MANIFEST_BYTES)
        try:
            manifest = json.loads(self.written)
            is_canonical = isinstance(manifest, dict) and canonical(manifest) == self.written
        except (ValueError, RecursionError) as error:
            raise CartridgeError("its manifest cannot be read") from error
        if not is_canonical:
            raise CartridgeError("its manifest is no canonical JSON object")
        found = manifest.get("version")
        if type(found) is not int or found != VERSION:
            newer = type(found) is int and found > VERSION
            hint = "update this package" if newer else "no such version was ever written"
            raise CartridgeError(f"it is of version {found!r:.40}, and version {VERSION} is read here; {hint}")
        self.manifest = manifest


class Stream:
    """Part of a file, read in one go from its beginning; two of them may be read by turns."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._place, self.left = file, start, size

    def read(self, size: int = -1) -> bytes:
        size = self.left if size < 0 else min(size, self.left)
        self._file.seek(self._place)
        data = self._file.read(size)
        self._place += len(data)
        self.left = self.left - len(data) if data else 0
        return data


@dataclass(frozen=True)
class _Entry:
    name: str
    size: int
    crc: int

    @property
    def length(self) -> int:
        """Of the entry in the file, with its header."""
        return _LOCAL.size + len(self.name) + self.size

    def _fields(self) -> tuple[int, ...]:
        return (_VERSION, _UTF8, 0, 0, _DAY, self.crc, self.size, self.size, len(self.name), 0)

    def local(self) -> bytes:
        return _LOCAL.pack(b"PK\3\4", *self._fields()) + self.name.encode()

    def central(self, start: int) -> bytes:
        return _CENTRAL.pack(b"PK\1\2", _VERSION, *self._fields(), 0, 0, 0, 0, start) + self.name.encode()


def _directory(entries: list[_Entry]) -> bytes:
    """What stands at the end of a ZIP of these entries."""
    listed, start = b"", 0
    for entry in entries:
        listed += entry.central(start)
        start += entry.length
    return listed + _END.pack(b"PK\5\6", 0, 0, len(entries), len(entries), len(listed), start, 0)


def _sums(blocks: Iterator[bytes]) -> tuple[str, int]:
    sha256, crc = hashlib.sha256(), 0
    for block in blocks:
        sha256.update(block)
        crc = zlib.crc32(block, crc)
    return sha256.hexdigest(), crc


def _sync_folder(folder: Path) -> None:
    """So that the new name outlives a power cut; folders cannot be synchronised everywhere."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
