"""Whatever is done to a cartridge, it is refused in one sentence, and by nothing but a CartridgeError."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from memometer import cli
from memometer.cartridge import container
from memometer.cartridge.container import (
    MANIFEST,
    MIMETYPE,
    RECORDS,
    STATE,
    TENSORS,
    VECTORS,
    CartridgeError,
    Container,
)
from memometer.cartridge.load import load_cartridge
from memometer.cartridge.save import save_cartridge
from memometer.memory import Turn
from tests.conftest import ROOT, HashEncoder, sampled
from tests.test_memory_contract import build, observed

TURNS = [
    Turn(f"D{1 + n // 2}:{n}", "Nadia", f"A blue bowl, {n}.", 1 + n // 2, datetime(2024, 1, 1 + n // 2))
    for n in range(4)
]
SYSTEMS = ("vector", "episodic", "adaptive", "entity", "codebook")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A cartridge of each kind of state."""
    path, found = tmp_path_factory.mktemp("whole") / "one", {}
    for name in SYSTEMS:
        memory = build(name)
        save_cartridge(path, memory, observed(memory, TURNS))
        found[name] = path.read_bytes()
    found["written by 0.1.0"] = (ROOT / "tests/fixtures/formats/cartridges/bm25.cartridge").read_bytes()
    return found


def load(path: Path, content: bytes, name: str = "vector") -> Any:
    path.write_bytes(content)
    encoder = {"encoder": HashEncoder()} if name in ("vector", "episodic", "codebook") else {}
    return load_cartridge(path, **encoder)


def refused(path: Path, content: bytes, name: str = "vector") -> str:
    with pytest.raises(CartridgeError) as refusal:
        load(path, content, name)
    told = str(refusal.value)
    assert told.startswith(f"{path} is refused: ")
    assert told.endswith(".")
    assert "\n" not in told
    return told


def entries(content: bytes, folder: Path) -> dict[str, bytes]:
    (folder / "read").write_bytes(content)
    with Container(folder / "read") as file:
        return {name: file.read(name, limit=1 << 30) for name in container.NAMES if name in file}


def made_anew(content: bytes, folder: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> bytes:
    """A cartridge whose sums are all right, of what `change` makes of its manifest and entries."""
    files = entries(content, folder)
    manifest = json.loads(files[MANIFEST])
    change(manifest, files)
    parts = {name: folder / f"part-{number}" for number, name in enumerate(files) if name not in (MIMETYPE, MANIFEST)}
    for name, part in parts.items():
        part.write_bytes(files[name])
    container.write(folder / "anew", manifest, parts, folder=folder)
    return (folder / "anew").read_bytes()


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [*SYSTEMS, "written by 0.1.0"])
def test_no_flipped_bit_goes_unseen(name: str, whole: dict[str, bytes], thorough: bool, tmp_path: Path) -> None:
    content = whole[name]
    draw = np.random.default_rng(0)
    zip_bytes = [*range(200), *range(len(content) - 300, len(content))]  # headers and directory are the ZIP's own
    places = set(draw.choice(zip_bytes, 60, replace=False)) | set(draw.integers(0, len(content), 40))
    for place in range(len(content)) if thorough else sorted(places):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(draw.integers(8))
        refused(tmp_path / "one", bytes(flipped), name)


@pytest.mark.parametrize("name", [*SYSTEMS, "written by 0.1.0"])
def test_no_truncated_or_longer_file_is_taken(
    name: str, whole: dict[str, bytes], thorough: bool, tmp_path: Path
) -> None:
    content = whole[name]
    for length in {0, 1, 29, 30, 31, len(content) - 1, *range(2, len(content), 97 if thorough else 397)}:
        refused(tmp_path / "one", content[:length], name)
    for other in (content + b"\0", b"\0" + content, content + content, b"PK\3\4" + content, content[1:]):
        refused(tmp_path / "one", other, name)


@sampled(60)
@given(content=st.binary(max_size=300), head=st.sampled_from([b"", b"PK\3\4", b"PK\5\6" + 18 * b"\0"]))
def test_no_other_file_is_taken(content: bytes, head: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "one", head + content)


def test_a_folder_or_nothing_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CartridgeError, match=r"cannot read .* \(.*\); name a cartridge"):
            load_cartridge(path)


# ---------------------------------------------------------------- tricks of ZIP


def zipped(files: dict[str, bytes], **how: Any) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", how.pop("compression", zipfile.ZIP_STORED)) as file:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = file.compression
            for attribute, value in how.items():
                setattr(info, attribute, value)
            file.writestr(info, content)
    return target.getvalue()


def test_what_zip_allows_and_we_do_not(whole: dict[str, bytes], tmp_path: Path) -> None:
    files = entries(whole["vector"], tmp_path)
    evil = b"cos\nsystem\n(S'true'\ntR."
    tricks = {
        "deflated": zipped(files, compression=zipfile.ZIP_DEFLATED),
        "commented": zipped(files, comment=b"hello"),
        "with extra fields": zipped(files, extra=struct.pack("<HH4s", 0x7075, 4, b"evil")),
        "a path that escapes": zipped({**files, "../../evil": b""}),
        "an absolute path": zipped({**files, "/etc/evil": b""}),
        "a pickle": zipped({**files, "state/state.pkl": evil}),
        "nothing": zipped({}),
        "no manifest": zipped({name: content for name, content in files.items() if name != MANIFEST}),
    }
    for what, content in tricks.items():
        assert refused(tmp_path / "one", content), what


def archived(parts: Sequence[tuple[str, bytes]], listed: Sequence[int] | None = None) -> bytes:
    """A ZIP of these entries as a cartridge has them, whose directory lists those of these numbers."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        for name, content in parts:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o600 << 16
            with warnings.catch_warnings(action="ignore"):
                file.writestr(info, content)
        written = list(file.filelist)
        file.filelist[:] = [written[n] for n in range(len(written)) if listed is None] + [
            written[n] for n in listed or ()
        ]
    return target.getvalue()


def test_entries_may_not_be_doubled_hidden_missing_or_moved(whole: dict[str, bytes], tmp_path: Path) -> None:
    content = whole["vector"]
    parts = list(entries(content, tmp_path).items())
    every = list(range(len(parts)))
    assert archived(parts) == content
    more, moved = [*every, every[-1]], [0, 1, *reversed(every[2:])]
    wrong = [(more, more), (every, more), (more, every), (every, every[:-1]), (moved, None), (every, moved)]
    wrong += [(every[1:], None), (every[:-1], None)]
    for order, listed in wrong:
        refused(tmp_path / "one", archived([parts[n] for n in order], listed))


# ---------------------------------------------------------------- sums made anew


def test_other_versions_are_refused_before_anything_else(whole: dict[str, bytes], tmp_path: Path) -> None:
    told_of: dict[Any, str] = {
        2: "its version is 2; supported is version 1",
        0: "version is 0",
        "1": "version is '1'",
        None: "version is None",
        1.0: "version is 1.0",
    }
    for version, told in told_of.items():
        files = entries(whole["vector"], tmp_path)
        manifest = container.canonical({**json.loads(files[MANIFEST]), "version": version})
        parts = [(MIMETYPE, files[MIMETYPE]), (MANIFEST, manifest), ("state/of-the-future.bin", b"new")]
        assert told in refused(tmp_path / "one", archived(parts))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"system": "mem1"}, "'mem1' is unknown; known systems: adaptive"),
        ({"system": "os:system"}, "os:system"),
        ({"system": "episodic"}, "episodic does not hold state"),
        ({"holds": "code"}, "fields of its manifest"),
        ({"more": 1}, "fields of its manifest"),
        ({"parameters": {"rounds": "many"}}, "parameter rounds has the invalid value 'many'"),
        ({"parameters": {"rounds": 1}}, "parameters do not fit Vector"),
        ({"weights": ["count"]}, "cannot be loaded"),
        ({"records": {"count": 5, "bytes": 10}}, "longer than its manifest"),
        ({"records": {"count": 4, "bytes": 1 << 40}}, "1,099,511,627,776 bytes"),
        ({"records": {"count": 3, "bytes": None}}, "cannot be loaded"),
        ({"tokenizer": {"name": "guess"}}, "'guess' is unknown"),
        ({"tokenizer": 7}, "cannot be loaded"),
        ({"embedding": {"model": "other", "dimensions": 4}}, "its encoder is other instead of hash"),
    ],
)
def test_a_manifest_that_lies_is_refused(
    change: dict[str, Any], told: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    content = made_anew(whole["vector"], tmp_path, lambda manifest, files: manifest.update(change))
    assert told in refused(tmp_path / "one", content)


def test_a_bomb_does_not_go_off(whole: dict[str, bytes], tmp_path: Path) -> None:
    """A few kilobytes that unpack to a gigabyte, whatever the frame or the manifest say of their size."""
    block, blocks = bytes(1 << 20), 1 << 10
    unsaid = zstandard.ZstdCompressor().compressobj()
    said = zstandard.ZstdCompressor().compressobj(size=blocks << 20)
    bombs = [b"".join([*(packer.compress(block) for _ in range(blocks)), packer.flush()]) for packer in (unsaid, said)]
    assert max(map(len, bombs)) < 1 << 18
    for bomb in bombs:
        for size in (100, (1 << 30) + 1, 1 << 30):

            def change(manifest: dict[str, Any], files: dict[str, bytes], bomb: bytes = bomb, size: int = size) -> None:
                files[RECORDS] = bomb
                manifest["records"] = {"count": 4, "bytes": size}

            refused(tmp_path / "one", made_anew(whole["vector"], tmp_path, change))


def test_an_array_may_not_be_larger_than_its_file(whole: dict[str, bytes], tmp_path: Path) -> None:
    lies: list[tuple[Any, Any]] = [
        ([1 << 40, 0], [0, 0]), ([1 << 40, 16], [0, 1 << 46]), ([-1, -64], [0, 256]), ([4, 16.0], [0, 256]),
        ([4, 16], [8, 264]), ([4, 16], [0, 255]),
    ]  # fmt: skip
    for shape, offsets in lies:

        def change(
            manifest: dict[str, Any], files: dict[str, bytes], shape: Any = shape, offsets: Any = offsets
        ) -> None:
            header = json.dumps({"vectors": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
            files[VECTORS] = len(header).to_bytes(8, "little") + header + files[VECTORS][-256:]

        refused(tmp_path / "one", made_anew(whole["vector"], tmp_path, change))


@pytest.mark.parametrize("name", SYSTEMS)
@sampled(30)
@given(data=st.data())
def test_forged_content_is_refused_or_read(
    name: str, data: st.DataObject, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """With sums made anew only a signature tells; but nothing else than a refusal may come of it."""
    where = data.draw(st.sampled_from([RECORDS, VECTORS, STATE, TENSORS]))

    def change(manifest: dict[str, Any], files: dict[str, bytes]) -> None:
        if where not in files:
            return
        content = bytearray(files[where])
        if where == RECORDS:
            content = bytearray(zstandard.ZstdDecompressor().decompressobj().decompress(files[where]))
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, max(0, len(content) - 1)))
            content[place : place + data.draw(st.integers(0, 9))] = data.draw(
                st.sampled_from(
                    [b"", b"9", b"\xff", b"null", b'"', b"[", b"-1", b"1e999", b"\0\0\0\0\0\0\0\x7f", b"NaN"]
                )
            )
        files[where] = bytes(content)
        if where == RECORDS:
            files[where] = zstandard.ZstdCompressor().compress(bytes(content))
            manifest["records"]["bytes"] = len(content)

    with suppress(CartridgeError):
        load(tmp_path / "one", made_anew(whole[name], tmp_path, change), name)


@pytest.mark.parametrize(
    "forged",
    [{"at": float("nan")}, {"at": 1e300}, {"importance": float("inf")}, {"uses": -1}, {"details": {"offset": 1e9}},
     {"details": {"session": "x"}}],
)  # fmt: skip
def test_an_episode_that_could_never_be_shown_is_refused(
    forged: dict[str, Any], whole: dict[str, bytes], tmp_path: Path
) -> None:
    def change(manifest: dict[str, Any], files: dict[str, bytes]) -> None:
        first, *rest = zstandard.ZstdDecompressor().decompressobj().decompress(files[RECORDS]).splitlines()
        content = b"\n".join([json.dumps({**json.loads(first), **forged}).encode(), *rest, b""])
        files[RECORDS] = zstandard.ZstdCompressor().compress(content)
        manifest["records"]["bytes"] = len(content)

    refused(tmp_path / "one", made_anew(whole["episodic"], tmp_path, change), "episodic")


@pytest.mark.parametrize("records", [7, {"count": "x", "bytes": 1}, {}])
def test_the_commands_refuse_what_is_made_to_be_none(
    records: Any, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "forged"
    path.write_bytes(made_anew(whole["vector"], tmp_path, lambda manifest, files: manifest.update(records=records)))
    for argv in (["inspect"], ["inspect", "--records"], ["verify"], ["diff", str(path)]):
        assert cli.main(["cartridge", *argv, str(path)]) == 3
        assert capsys.readouterr().err.count("is refused: ") == 1


def test_deep_json_is_refused(whole: dict[str, bytes], tmp_path: Path) -> None:
    def change(manifest: dict[str, Any], files: dict[str, bytes]) -> None:
        files[STATE] = b'{"persona":' + 100_000 * b"[" + b"}"

    refused(tmp_path / "one", made_anew(whole["vector"], tmp_path, change))
