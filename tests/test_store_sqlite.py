"""The SQLite store: small, whole after a kill, and found out where it is damaged."""

from __future__ import annotations

import multiprocessing
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memometer.retrieval.tokenize import terms
from memometer.store import open_store, scan_cache, sqlite
from memometer.store.compression import MAX_BYTES, Codec, train
from memometer.store.episode import Episode, StoreError
from memometer.store.hybrid_scoring import DAY
from memometer.store.sqlite import SQLite
from tests.conftest import sampled

NOW = 9 * DAY


def filled(path: Path, count: int = 300, *, options: str = "", dimensions: int = 64) -> SQLite:
    store = open_store(f"sqlite:///{path}{options}")
    assert isinstance(store, SQLite)
    draw = np.random.default_rng(0)
    words = "kayak bowl reed river lamp blue seven harbour violin bread".split()
    made = [Episode(f"D1:{n}", f"Nadia: {' '.join(draw.choice(words, 12))} {n}", float(n)) for n in range(count)]
    store.store_episodes("agent", made, draw.normal(size=(count, dimensions)))
    return store


def found(store: SQLite) -> list[object]:
    vectors = np.random.default_rng(1).normal(size=(8, 64))
    return [store.retrieve_similar("agent", "blue kayak 17", vector, 5, at=NOW) for vector in vectors]


def test_compacting_makes_it_smaller_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    filled(path, 3000).close()
    written = path.stat().st_size
    with filled(path, 0) as store, filled(path, 0) as reader:
        before = found(store)
        assert found(reader) == before
        store.compact()
        assert path.stat().st_size < 0.8 * written
        assert found(store) == before
        assert found(reader) == before, "another handle takes up the dictionary"
        reader.store_episode("agent", Episode("new", "Nadia: a blue kayak in the river", 0.0), np.ones(64))
        assert store.get("agent", ["new"])[0].text == "Nadia: a blue kayak in the river"
        store.compact()
        assert store.check() == []


def test_only_the_owner_reads_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cache, "SIDECAR_FROM", 10)
    folder = tmp_path / "new" / "folder"
    with open_store(f"sqlite:///{folder}/memory.db") as store:
        made = [Episode(str(n), f"kayak {n}", float(n)) for n in range(20)]
        store.store_episodes("s", made, np.eye(20, 8, dtype=np.float32) + 0.1)
        store.retrieve_similar("s", "kayak", np.ones(8), 3, at=0.0)
        files = list(folder.iterdir())
        assert {path.suffix for path in files} >= {".db", ".db-wal", ".vectors"}
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_large_scope_is_read_from_a_sidecar_that_can_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memory.db"
    with filled(path) as store:
        expected = found(store)
    assert not list(tmp_path.glob("*.vectors"))
    monkeypatch.setattr(scan_cache, "SIDECAR_FROM", 200)
    monkeypatch.setattr(scan_cache, "_BATCH", 50)
    with filled(path, 0) as store:
        assert found(store) == expected
        (sidecar,) = tmp_path.glob("*.vectors")
        whole = sidecar.read_bytes()
        assert len(whole) > 200 * 16
    for damaged in (whole[:-1], whole + b"x", bytes([*whole[:-90], whole[-90] ^ 1, *whole[-89:]]), b"", b"{}\n"):
        sidecar.write_bytes(damaged)
        with filled(path, 0) as store:
            assert found(store) == expected, "a damaged one is not believed"
        assert sidecar.read_bytes() == whole, "and written again"
    with filled(path, 0) as store:  # what comes later is found beside what is in the file
        store.store_episode("agent", Episode("late", "Nadia: blue kayak 17", 0.0), np.ones(64))
        best = store.retrieve_similar("agent", "blue kayak 17", np.ones(64), 1, at=NOW)
        assert best[0].episode.id == "late"
        store.change("agent", archive=["late", "D1:3"])
        alone = open_store("memory:")
        alone.store_episodes("agent", [e for e in store.scan("agent") if not e.archived])
        alone.set_vector_format(store.vector_format())  # type: ignore[arg-type]
        assert found(store) == found(alone), "archived ones are gone from it"  # type: ignore[arg-type]
        store.delete("agent", ["D1:4"])
        assert not sidecar.exists(), "what is deleted stays nowhere"


def test_what_is_kept_of_scopes_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cache, "MAX_SCOPES", 3)
    with filled(tmp_path / "memory.db", 30) as store:
        before = found(store)
        for n in range(9):
            store.store_episode(f"scope {n}", Episode("1", "kayak", 1.0), np.ones(64))
            assert len(store.retrieve_similar(f"scope {n}", "kayak", np.ones(64), 5, at=NOW)) == 1
        assert list(store._caches) == ["scope 6", "scope 7", "scope 8"]
        assert found(store) == before
    monkeypatch.setattr(scan_cache, "MAX_ROWS", 20)
    with filled(tmp_path / "memory.db", 0) as store:
        store.retrieve_similar("scope 1", "kayak", np.ones(64), 5, at=NOW)
        assert found(store) == before
        assert list(store._caches) == ["agent"], "the one that is asked stays, however large"


def test_two_episodes_score_differently(tmp_path: Path) -> None:
    """BM25 is of our own making, because FTS5's says 0 without positions; repetition and length count."""
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        store.store_episodes("a", [Episode("1", "kayak " * 12 + "lamp", 0.0), Episode("2", "kayak lamp bowl", 0.0)])
        one, two = store.retrieve_similar("a", "kayak", None, 2, at=0.0)
        assert (one.episode.id, two.episode.id) == ("1", "2")
        assert one.lexical > two.lexical > 0


def test_an_index_that_disagrees_is_found_out(tmp_path: Path) -> None:
    with filled(tmp_path / "memory.db", 20) as store:
        assert store.check() == []
        with store.transaction():
            store.file.execute("UPDATE episodes SET length = 99 WHERE id = 'D1:3'")
            store.file.execute("INSERT INTO postings VALUES (1, 'ghost', 777, x'000001')")
            store.file.execute("UPDATE scopes SET live = 7")
        assert "'D1:3'" in store.check()[0]
        store.file.execute("UPDATE episodes SET length = 14 WHERE id = 'D1:3'")
        rows, counts = store.check()
        assert "1 rows" in rows
        assert "[7, 0, " in counts


def test_a_damaged_text_is_told_in_a_sentence(tmp_path: Path) -> None:
    with filled(tmp_path / "memory.db", 1500) as store:
        store.compact()
        store.file.execute("UPDATE episodes SET payload = x'00ff00ff' WHERE id = 'D1:7'")
        with pytest.raises(StoreError, match="memory.db"):
            store.get("agent", ["D1:7"])
        assert "restore the file from a copy" in store.check()[0]
        store.file.execute("UPDATE episodes SET kind = 99 WHERE id = 'D1:7'")
        with pytest.raises(StoreError, match="damaged"):
            store.get("agent", ["D1:7"])


def test_terms_taken_apart_in_another_way_are_indexed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with filled(tmp_path / "memory.db", 20) as store:
        before = found(store)
        store.file.set_meta("terms", "an older way")
        store.file.execute("DELETE FROM postings")
    with filled(tmp_path / "memory.db", 0) as store:
        assert found(store) == before
        assert store.check() == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://memory.db", "sqlite:///relative.db"),
        ("sqlite:///{}/x.db?bits=3", "bits=3.*bits=2 or 4"),
        ("sqlite:///{}/x.db?speed=9", "speed=9.*bits"),
        ("sqlite:///{}/other.db", "not a memometer store"),
        ("sqlite:///{}/text", "file is not a database"),
        ("sqlite:///{}", "cannot open store"),
    ],
)
def test_what_is_no_store_is_refused_with_a_sentence(tmp_path: Path, url: str, said: str) -> None:
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    (tmp_path / "text").write_text("no database" * 1000)
    with pytest.raises(StoreError, match=said):
        open_store(url.format(tmp_path))


def _use(store: SQLite, outcome: multiprocessing.Queue[str]) -> None:
    try:
        store.size("agent")
    except StoreError as error:
        outcome.put(str(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_is_told_to_open_its_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    outcome = context.Queue()
    with filled(tmp_path / "memory.db", 5) as store:
        process = context.Process(target=_use, args=(store, outcome))
        process.start()
        assert "forked process" in outcome.get(timeout=20)
        process.join()


@sampled(20)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])), max_size=8))
def test_any_text_comes_back(texts: list[str]) -> None:
    path = sqlite.Path(":memory:")
    with SQLite(path) as store:
        made = [Episode(f"{n}", text, 0.5, details={"as": text}) for n, text in enumerate(texts)]
        store.store_episodes("", made)
        assert list(store.scan("")) == made
        assert store.check() == []
        for text in texts:
            if terms(text):
                found = store.retrieve_similar("", text, None, len(texts), at=0.0)
                assert max(each.lexical for each in found) == 1.0, "what stands beside may rank another first"


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_texts_come_back_from_every_way_of_writing_them(compression: str) -> None:
    if compression == "lz4":
        pytest.importorskip("lz4", reason="pip install lz4")
    texts = [f"Nadia: the {n}th kayak was blue, and the lamp stood by the harbour.".encode() for n in range(2000)]
    plain = Codec({}, compression)
    dictionary = train(texts[:1000])
    assert dictionary
    trained = Codec({1: dictionary}, compression)
    for text in (*texts[1000:1100], b"", b"x", bytes(range(256)) * 100):
        for codec in (plain, trained):
            assert codec.unpack(*codec.pack(text)) == text
    if compression == "zstd":
        assert sum(len(trained.pack(text)[1]) for text in texts[1000:]) < 0.5 * sum(map(len, texts[1000:]))
    assert train(texts[:3]) is None


def test_a_text_that_would_fill_the_memory_is_refused() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(
            3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=True
        )
    ).compress(bytes(MAX_BYTES + 1))
    with pytest.raises(ValueError, match=f"{MAX_BYTES:,}"):
        Codec({}).unpack(-1, bomb)
    with pytest.raises(ValueError, match=f"{MAX_BYTES:,}"):
        Codec({}).pack(bytes(MAX_BYTES + 1))


def test_several_make_one_file_at_the_same_time(tmp_path: Path) -> None:
    for number in range(20):
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(SQLite, [tmp_path / f"{number}.db"] * 8))
        for store in made:
            store.close()
