"""The files of a SQLite store: what deletion leaves, upgrades, readers and writers, and files that are gone."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from memometer.store import deadline, inverted_index, open_store, sqlite_schema
from memometer.store.deadline import DeadlineExceeded
from memometer.store.episode import Episode, StoreError
from memometer.store.sqlite import SQLite
from tests.conftest import ROOT

COMMON = "the kayak was blue and we went to the harbour with a lamp reed bowl".split()


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of common words with two of their own."""
    draw = random.Random(seed)
    own = ("".join(draw.choices("bcdfghjklmnpqrstvwxz", k=12)) for _ in range(2 * count))
    return [
        f"Ann: {' '.join(draw.choices(COMMON, k=draw.randint(3, 30)))} {next(own)} {next(own)}" for _ in range(count)
    ]


def files_with(folder: Path, words: list[str]) -> list[str]:
    raw = b"".join(path.read_bytes() for path in folder.iterdir())
    return [word for word in words if word.encode() in raw]


@pytest.mark.parametrize("is_compacted", [False, True])
def test_a_deleted_text_leaves_nothing_in_the_files(tmp_path: Path, is_compacted: bool) -> None:
    made = texts(2000)
    url = f"sqlite:///{tmp_path}/memory.db"
    with open_store(url) as store, open_store(url) as reader:
        for start in range(0, len(made), 50):
            part = [Episode(f"{n}", made[n], float(n)) for n in range(start, start + 50)]
            store.store_episodes("one" if start % 100 else "two", part)
        if is_compacted:
            store.compact()
        words = [word for text in made[::2] for word in text.split()[-2:]]
        assert len(files_with(tmp_path, words)) > 1500, "the index holds the words"
        reader.retrieve_similar("one", made[1], None, 3, at=0.0)
        for scope in ("one", "two"):
            store.delete(scope, [f"{n}" for n in range(0, len(made), 2)])
        store.erase()
        assert files_with(tmp_path, words) == []
        assert (store.check(), store.size("one").episodes, store.size("two").episodes) == ([], 500, 500)
        assert reader.get("two", ["1"])[0].text == made[1]


def test_the_index_holds_what_was_added_and_not_what_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(3)
    for size in (3, 30, 1200):
        monkeypatch.setattr(inverted_index, "MAX_BLOCK_BYTES", size)
        model: dict[str, dict[int, int]] = {term: {} for term in "abc"}
        with SQLite(tmp_path / f"{size}.db") as store, store.transaction():
            last = 0
            for _ in range(40):
                occurrences: dict[str, inverted_index.Places] = defaultdict(list)
                for _ in range(draw.randint(1, 20)):
                    last += draw.choice([1, 2, 30_000, 70_000])
                    for term in draw.sample("abc", draw.randint(1, 3)):
                        occurrences[term].append((last, draw.choice([1, 2, 255, 256, 600])))
                inverted_index.add(store.file, 1, occurrences)
                for term, places in occurrences.items():
                    model[term] |= dict(places)
                row = draw.choice([row for rows in model.values() for row in rows])
                gone = {term: rows.pop(row) for term, rows in model.items() if row in rows}
                inverted_index.remove(store.file, 1, row, gone)
                if draw.random() < 0.5:  # an archived row that is restored
                    inverted_index.add(store.file, 1, {term: [(row, count)] for term, count in gone.items()})
                    for term, count in gone.items():
                        model[term][row] = count
                for term, rows in model.items():
                    found, counts = inverted_index.rows_with(store.file, 1, term)
                    assert list(zip(found.tolist(), counts.tolist(), strict=True)) == sorted(rows.items())


def test_readers_wait_for_no_writer_and_see_a_snapshot(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        store.store_episodes("one", [Episode(f"{n}", f"kayak {n}", float(n)) for n in range(20)], np.eye(20) + 0.1)
        seen: list[int] = []

        def read() -> None:
            seen.append(len(store.retrieve_similar("one", "kayak", np.ones(20), 50, at=0.0)))

        with store.transaction():
            store.store_episode("one", Episode("new", "kayak", 0.0), np.ones(20))
            thread = threading.Thread(target=read)
            thread.start()
            thread.join(20)
            assert seen == [20], "the reader has finished, without the new episode"
            read()
        read()
        assert seen == [20, 21, 21]


def test_many_threads_read_while_others_write(tmp_path: Path) -> None:
    """Each reader's result is that of one moment: all episodes of a batch, or none."""
    failures: list[object] = []
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        store.store_episodes("one", [Episode("0", "kayak", 0.0)], np.ones((1, 16)))
        finished = threading.Event()

        def read() -> None:
            while not finished.is_set():
                count = len(store.retrieve_similar("one", "kayak", np.ones(16), 1000, at=0.0))
                if count % 10 != 1:
                    failures.append(count)

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        for batch in range(20):
            part = [Episode(f"{batch}.{n}", "a blue kayak", float(n)) for n in range(10)]
            store.store_episodes("one", part, np.ones((10, 16)))
            if batch % 4 == 3:
                store.delete("one", [f"{batch - 1}.{n}" for n in range(10)])
        finished.set()
        for reader in readers:
            reader.join()
        assert failures == []
        assert store.check() == []


def test_a_deadline_ends_a_search_and_a_deletion(store_url: str) -> None:
    with open_store(store_url) as store:
        store.store_episodes("one", [Episode(f"{n}", f"kayak {n}", float(n)) for n in range(50)])
        if store_url.startswith(("sqlite", "postgresql")):
            with deadline.deadline(-1.0), pytest.raises(DeadlineExceeded):
                store.delete("one")
        assert len(store.retrieve_similar("one", "kayak", None, 50, at=0.0)) == 50
        assert store.check() == []


def old_store(folder: Path) -> Path:
    with zipfile.ZipFile(ROOT / "tests" / "fixtures" / "formats" / "stores" / "store.zip") as file:
        file.extractall(folder)
    return folder / "store.db"


@pytest.mark.parametrize("missing", [(), ("changes",), ("changes", "rewrites")])
def test_an_old_store_is_upgraded_and_a_copy_kept(tmp_path: Path, missing: tuple[str, ...]) -> None:
    path = old_store(tmp_path)
    with sqlite3.connect(path) as file:
        for column in missing:  # the first stores had none
            file.execute(f"ALTER TABLE scopes DROP COLUMN {column}")
    file.close()
    with open_store(f"sqlite:///{path}") as store:
        assert store.check() == []
        scope = store.scopes()[0]
        assert store.size(scope).changes > 1000, "a random mark"
        assert store.store_episode(scope, Episode("new", "a kayak", 1.0))
    copy = tmp_path / "store.db.format-1"
    assert copy.stat().st_mode & 0o777 == 0o600
    shutil.copy(copy, tmp_path / "again.db")
    with open_store(f"sqlite:///{tmp_path}/again.db") as store:
        assert store.check() == []
        assert not store.get(scope, ["new"])


def test_a_failed_upgrade_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_store(tmp_path)
    before = path.read_bytes()

    def fail(file: object) -> None:
        sqlite_schema._to_format_2(file)  # type: ignore[arg-type]
        raise StoreError("the disk is full")

    monkeypatch.setattr(sqlite_schema, "UPGRADES", (fail,))
    with pytest.raises(StoreError, match="the disk is full"):
        open_store(f"sqlite:///{path}")
    assert path.read_bytes()[100:] == before[100:], "except for SQLite's counters in the header"


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        store.file.set_meta("format", "99")  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"format 99.*upgrade memometer"):
        open_store(f"sqlite:///{tmp_path}/memory.db")


@pytest.mark.parametrize("is_replaced", [False, True])
def test_nothing_is_stored_in_a_file_that_was_deleted(tmp_path: Path, is_replaced: bool) -> None:
    path = tmp_path / "memory.db"
    with open_store(f"sqlite:///{path}") as store:
        store.store_episode("one", Episode("1", "a kayak", 1.0))
        if is_replaced:
            shutil.copy(path, tmp_path / "other.db")
            (tmp_path / "other.db").replace(path)
        else:
            path.unlink()
        with pytest.raises(StoreError, match="deleted or replaced"):
            store.store_episode("one", Episode("2", "a bowl", 2.0))
        assert not store.get("one", ["2"])


def test_a_damaged_row_is_found_by_its_checksum(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        assert isinstance(store, SQLite)
        store.store_episodes("one", [Episode(f"{n}", f"kayak {n}", 1.0) for n in range(3)], np.ones((3, 16)))
        for column, value in (("at", 5.0), ("codes", b"1234"), ("id", "9")):
            with store.transaction():
                (before,) = store.file.one(f"SELECT {column} FROM episodes WHERE row = 2")
                store.file.execute(f"UPDATE episodes SET {column} = ? WHERE row = 2", value)
            assert len(store.check()) == 1
            with store.transaction():
                store.file.execute(f"UPDATE episodes SET {column} = ? WHERE row = 2", before)
        assert store.check() == []
