"""Backups of stores in use, their restoration, and what is saved of a damaged file."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from memometer import cli
from memometer.store import open_store
from memometer.store.backup import backup, digest, restore, salvage
from memometer.store.episode import Episode, StoreError
from memometer.store.protocol import Store


def fill(store: Store, count: int = 60) -> None:
    made = [Episode(f"{n}", f"the {n}th kayak", float(n), uses=n % 3, details={"n": n}) for n in range(count)]
    store.store_episodes("one", made, np.random.default_rng(0).normal(size=(count, 16)), encoder="hash")
    store.store_episode("two", Episode("1", "a bowl", 1.0))
    store.change("one", archive=["3", "4"], merge={"5": ["6"]})


def test_a_backup_of_every_store_is_restored_into_every_store(store_url: str, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    with open_store(store_url) as store:
        fill(store)
        content = backup(store, file)
        assert content == digest(store)
        assert file.stat().st_mode & 0o777 == 0o600
        with pytest.raises(StoreError, match="exists"):
            backup(store, file)
        with pytest.raises(StoreError, match="not empty"):
            restore(file, store)
        for scope in store.scopes():
            store.delete(scope)
        assert restore(file, store) == content == digest(store)
        assert store.check() == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".backup")]


def test_a_backup_while_others_write_is_one_moment(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        finished = threading.Event()

        def write() -> None:
            number = 0
            while not finished.is_set():
                store.store_episodes("one", [Episode(f"{number}.{n}", f"kayak {n}", float(n)) for n in range(10)])
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        for number in range(3):
            backup(store, tmp_path / f"{number}.db")
        finished.set()
        writer.join()
    for number in range(3):
        with open_store(f"sqlite:///{tmp_path}/{number}.db") as copy:
            assert copy.check() == []
            assert copy.size("one").episodes % 10 == 0, "whole transactions"


def test_a_damaged_store_is_reported_and_salvaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory.db"
    with open_store(f"sqlite:///{path}") as store:
        fill(store, 2000)
        store.compact()
    raw = bytearray(path.read_bytes())
    for start in range(len(raw) // 2, len(raw) // 2 + 3 * 8192):
        raw[start] = 0xAA
    path.write_bytes(raw)
    assert cli.main(["store", "check", f"sqlite:///{path}"]) in (1, 2)
    assert cli.main(["store", "backup", f"sqlite:///{path}", str(tmp_path / "backup.db")]) == 2
    with open_store("memory:") as target:
        saved, _ = salvage(path, target)
        assert saved > 1000
        assert {e.text for e in target.scan("one")} <= {f"the {n}th kayak" for n in range(2000)}
    assert cli.main(["store", "salvage", str(path), f"sqlite:///{tmp_path}/new.db"]) in (0, 1)
    assert "Saved" in capsys.readouterr().out
    with open_store(f"sqlite:///{tmp_path}/new.db") as store:
        assert store.check() == []
    (tmp_path / "nonsense").write_bytes(b"no database" * 1000)
    assert cli.main(["store", "salvage", str(tmp_path / "nonsense"), f"sqlite:///{tmp_path}/none.db"]) == 2


def test_damaged_details_do_not_end_a_check(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        fill(store)
        with store.transaction():
            store.file.execute("UPDATE episodes SET kind = 0, payload = 'kayak' || x'00' || '{' WHERE row = 5")  # type: ignore[attr-defined]
        assert any("'4'" in problem for problem in store.check())
