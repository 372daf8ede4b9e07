"""The file format of a cartridge: a ZIP archive of uncompressed entries with a manifest.

The entry names are a closed list in a fixed order and the dates are fixed, so that equal content gives an equal file.
The manifest holds size and SHA-256 of every other entry. The reader accepts only archives that this module could have
written: every header byte is compared, and every entry's content is verified. Entries are never extracted under their
names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
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
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = (1 << 31) - 1  # the limit of a ZIP archive without extensions in `zipfile`
MAX_ENTRIES = 100
BLOCK = 1 << 20

_END = struct.Struct("<4s4H2LH")
_DATE = (1980, 1, 1, 0, 0, 0)
_PERMISSIONS = 0o600 << 16
# (system, flags, permissions) of an entry as this version writes it, and as version 0.1.0 did
_LAYOUTS = {(3, 0, _PERMISSIONS), (0, 0x800, 0)}


class CartridgeError(UserError, ValueError):
    """A cartridge cannot be read or written. The message is meant for the user."""


class NotWritten(CartridgeError):
    """The cartridge was not written. An existing file is unchanged."""


def write(
    path: Path,
    manifest: Mapping[str, Any],
    entries: Mapping[str, Path],
    sign: Callable[[bytes], bytes] | None = None,
    *,
    folder: Path,
) -> None:
    """Write a cartridge completely or not at all.

    Args:
        path: file to write.
        manifest: content of the manifest; version, sizes and digests are added.
        entries: file with the content of each entry.
        sign: returns the signature of a manifest.
        folder: an empty folder on the same file system, for the unfinished file.

    Raises:
        CartridgeError: the content is too large or the manifest is not JSON.
        OSError: the file cannot be written.
    """
    files: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        with entry.open("rb") as source:
            files[name] = {"bytes": entry.stat().st_size, "sha256": hashlib.file_digest(source, "sha256").hexdigest()}
    content = canonical({**manifest, "version": VERSION, "files": files})
    small = {MIMETYPE: MEDIA_TYPE, MANIFEST: content}
    if sign:
        small[SIGNATURE] = sign(content)
    if sum(about["bytes"] for about in files.values()) + len(content) + 4096 > MAX_FILE_BYTES:
        raise CartridgeError("it would exceed 2 GiB, the limit of a cartridge; save fewer memories in one file")
    if path.exists() and not path.is_file():
        raise CartridgeError("it exists and is not a regular file; name another file")
    part = folder / "unfinished.cartridge"
    part.touch(mode=0o600)
    with part.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name in NAMES:
            if name in small or name in entries:
                info = zipfile.ZipInfo(name, _DATE)
                info.create_system, info.external_attr = 3, _PERMISSIONS
                with archive.open(info, "w") as target:
                    if name in small:
                        target.write(small[name])
                    else:
                        with entries[name].open("rb") as source:
                            shutil.copyfileobj(source, target, BLOCK)
        archive.close()
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _sync_folder(path.parent)


def canonical(value: Any) -> bytes:
    """Encode a manifest as JSON with sorted keys, without spaces and without NaN."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as error:
        raise CartridgeError(f"a manifest cannot hold this value ({error})") from error


class Container:
    """An open cartridge file. Call `verify` before using its content.

    Args:
        path: file to open.

    Raises:
        CartridgeError: the file is not a cartridge of this version.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not (path.is_file() or path.is_dir()):  # opening a FIFO would wait for ever
            raise CartridgeError("it is not a regular file")
        self._file: IO[bytes] = path.open("rb")
        try:
            self._open()
        except BaseException as error:  # the file is closed after any exception, KeyboardInterrupt included
            self._file.close()
            if isinstance(error, CartridgeError) or not isinstance(error, Exception):
                raise
            # zipfile raises half a dozen types for damaged archives
            raise CartridgeError(f"it is damaged or not a cartridge ({str(error).rstrip('.') or error!r})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._archive.close()
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, equal for cartridges with equal content."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()

    def verify(self) -> None:
        """Read every entry and compare it with the manifest. Raises CartridgeError for a difference."""
        listed = self.manifest.get("files")
        if not isinstance(listed, dict) or set(listed) != set(self._entries) - {MIMETYPE, MANIFEST, SIGNATURE}:
            raise CartridgeError("its manifest does not list its entries")
        for name in self._entries:
            with self.open(name) as stream:
                try:
                    sha256 = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
                except zipfile.BadZipFile as error:
                    raise CartridgeError(f"{name} is damaged") from error
            if name in listed and listed[name] != {"bytes": self._entries[name].file_size, "sha256": sha256}:
                raise CartridgeError(f"{name} does not match the manifest")

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the content of an entry of at most `limit` bytes."""
        with self.open(name) as stream:
            if (size := self._entries[name].file_size) > limit:
                raise CartridgeError(f"{name} has {size:,} bytes; the limit is {limit:,} bytes")
            return stream.read()

    def open(self, name: str) -> IO[bytes]:
        """Open an entry for reading."""
        if name not in self._entries:
            raise CartridgeError(f"{name} is missing")
        return self._archive.open(self._entries[name])

    def copy(self, name: str, path: Path) -> None:
        """Write the content of an entry to a file."""
        with self.open(name) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, BLOCK)

    def _open(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        self._file.seek(max(0, size - _END.size))
        end = self._file.read()
        signature, disk, first_disk, count, total, length, start, comment = _END.unpack(end)
        if (signature, disk, first_disk, comment) != (b"PK\5\6", 0, 0, 0) or count != total or total > MAX_ENTRIES:
            raise CartridgeError("it is damaged or not a cartridge")
        self._archive = zipfile.ZipFile(self._file)
        entries = self._archive.infolist()
        names = [entry.filename for entry in entries]
        if names[:2] != [MIMETYPE, MANIFEST] or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CartridgeError("it is damaged or not a cartridge")
        self._entries = dict(zip(names, entries, strict=True))
        self._read_manifest()  # first, because another version may have other entries
        for name in names:
            if name not in NAMES:
                raise CartridgeError(f"its entry {name[:60]!r} is not allowed")
        if names != [name for name in NAMES if name in self._entries] or len(names) != total:
            raise CartridgeError("its entries are duplicated or out of order")
        self._check_headers(entries, start=start, length=length, size=size)

    def _check_headers(self, entries: list[zipfile.ZipInfo], *, start: int, length: int, size: int) -> None:
        """Compare every header byte with what `write` produces, so that no byte of the file is unchecked."""
        place = directory = 0
        for entry in entries:
            header = entry.FileHeader(zip64=False)
            self._file.seek(start + directory + 28)  # the lengths of name, extra field and comment
            lengths = self._file.read(6)
            self._file.seek(place)
            if (
                entry.header_offset != place
                or self._file.read(len(header)) != header
                or lengths != struct.pack("<3H", len(entry.filename), 0, 0)
                or (entry.create_system, entry.flag_bits, entry.external_attr) not in _LAYOUTS
                or (entry.create_version, entry.extract_version, entry.reserved) != (20, 20, 0)
                or (entry.date_time, entry.extra, entry.comment) != (_DATE, b"", b"")
                or (entry.volume, entry.internal_attr, entry.compress_size) != (0, 0, entry.file_size)
            ):
                raise CartridgeError(f"the header of {entry.filename} is damaged")
            place += len(header) + entry.file_size
            directory += zipfile.sizeCentralDir + len(entry.filename)  # type: ignore[attr-defined]
        if (place, directory, start + length + _END.size) != (start, length, size):
            raise CartridgeError("it holds data outside its entries")

    def _read_manifest(self) -> None:
        if self.read(MIMETYPE, limit=100) != MEDIA_TYPE:
            raise CartridgeError("its media type is unknown")
        self.manifest_bytes = self.read(MANIFEST, limit=MAX_MANIFEST_BYTES)
        try:
            manifest = json.loads(self.manifest_bytes)
            is_canonical = isinstance(manifest, dict) and canonical(manifest) == self.manifest_bytes
        except (ValueError, RecursionError) as error:
            raise CartridgeError("its manifest is not valid JSON") from error
        if not is_canonical:
            raise CartridgeError("its manifest is not a canonical JSON object")
        found = manifest.get("version")
        if type(found) is not int or found != VERSION:
            is_newer = type(found) is int and found > VERSION
            advice = "update memometer" if is_newer else "this version never existed"
            raise CartridgeError(f"its version is {found!r:.40}; supported is version {VERSION}; {advice}")
        self.manifest: dict[str, Any] = manifest


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power failure, on systems that can sync folders."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
