"""What every store must keep to. The one in this process is the model of the others: they find what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from memometer.store import open_store
from memometer.store.episode import Conflict, Episode, StoreError
from memometer.store.hybrid_scoring import DAY, DEFAULT, SEED, Weights
from memometer.store.migrate import migrate
from memometer.store.protocol import Store
from tests import servers
from tests.conftest import HashEncoder
from tests.crash import crash

Open = Callable[[], Store]

WORDS = (
    "kayak bowl reed river lamp blue Straße naïve 音楽 🎹 seven harbour running the of 42 İstanbul e\u0301tude".split()
)
DIMENSIONS = 24
NOW = 100 * DAY

WEIGHTS = [
    DEFAULT,
    SEED,
    Weights(lexical=1.0, dense=0.0),
    Weights(lexical=0.2, dense=0.3, recency=0.2, importance=0.2, decay=0.9, use=0.5),
]


@pytest.fixture
def opened(store_url: str) -> Iterator[Open]:
    """Opens one and the same store, as often as it is called; what is open at the end is closed."""
    stores: list[Store] = []

    def again() -> Store:
        if store_url != "memory:" or not stores:
            stores.append(open_store(store_url))
        return stores[-1]

    yield again
    for store in stores:
        store.close()


def episodes(seed: int, count: int) -> tuple[list[Episode], np.ndarray]:
    """Random ones, of few words, so that scores tie; some texts and vectors are there twice, some are empty."""
    draw = np.random.default_rng(seed)
    made = [
        Episode(
            f"e{draw.integers(10**6)}.{n}",
            " ".join(draw.choice(WORDS, draw.integers(0, 9))),
            at=float(draw.integers(0, 90)) * DAY,
            importance=float(draw.choice([0.0, 0.05, 0.5, 1.0])),
            uses=int(draw.integers(0, 4)),
            details={"session": n} if n % 3 else {},
        )
        for n in range(count)
    ]
    vectors = draw.normal(size=(count, DIMENSIONS)).astype(np.float32)
    twice = draw.integers(0, count, (2, count // 4))
    vectors[twice[0]] = vectors[twice[1]]
    for a, b in twice.T:
        made[a] = replace(made[a], text=made[b].text, at=made[b].at)
    return made, vectors


def questions(seed: int, count: int) -> list[tuple[str, np.ndarray]]:
    draw = np.random.default_rng(1000 + seed)
    return [(" ".join(draw.choice(WORDS, 3)), draw.normal(size=DIMENSIONS)) for _ in range(count)]


def results(store: Store, scope: str, seed: int, *, k: int = 12) -> list[object]:
    return [
        store.retrieve_similar(scope, text, vector, k, at=NOW, weights=weights)
        for text, vector in questions(seed, 6)
        for weights in WEIGHTS
    ]


def test_every_store_finds_the_same_to_the_last_bit(opened: Open) -> None:
    """More episodes than are weighed for a question, in two scopes, with archived and used ones among them."""
    store, model = opened(), open_store("memory:")
    for each in (store, model):
        for seed, scope in enumerate(("one", "two / zwei")):
            made, vectors = episodes(seed, 230)
            assert all(each.store_episodes(scope, made, vectors))
            each.record_uses(scope, [made[3].id, made[5].id, made[3].id])
            each.change(scope, archive=[made[7].id, made[8].id])
    for seed, scope in enumerate(("one", "two / zwei")):
        found = results(store, scope, seed)
        assert found == results(model, scope, seed)
        assert found != results(model, scope, seed + 1)
        assert replace(store.size(scope), changes=0) == replace(model.size(scope), changes=0)
        changes = store.size(scope).changes
        store.record_uses(scope, [])
        assert store.size(scope).changes != changes
        assert list(store.scan(scope)) == list(model.scan(scope))
    assert store.scopes() == ["one", "two / zwei"]
    assert store.check() == []


def test_every_store_finds_the_same_in_locomo(opened: Open, locomo: object) -> None:
    encoder = HashEncoder()
    conversation = locomo.conversations[0]  # type: ignore[attr-defined]
    made = [Episode(turn.id, turn.line, turn.said_at.timestamp()) for turn in conversation.turns]
    vectors = encoder([episode.text for episode in made])
    store, model = opened(), open_store("memory:")
    for each in (store, model):
        each.store_episodes("conversation", made, vectors)
    for question in conversation.questions[:40]:
        vector = encoder([question.text])[0]
        found, expected = (
            each.retrieve_similar("conversation", question.text, vector, 20, at=NOW) for each in (store, model)
        )
        assert found == expected, question.id


def test_of_many_equal_ones_every_store_finds_those_of_the_smaller_ids(opened: Open) -> None:
    made = [Episode(f"{n:03}", "", at=0.0) for n in reversed(range(250))]
    store = opened()
    store.store_episodes("agent", made, np.ones((250, DIMENSIONS)))
    found = store.retrieve_similar("agent", "", np.ones(DIMENSIONS), 5, at=NOW, weights=Weights(neighbours=0.0))
    assert [hit.episode.id for hit in found] == ["000", "001", "002", "003", "004"]


@pytest.mark.parametrize(
    "word", ["\U00020000" * 10_000, "a" * 900_000, "\u0e01\u0e34" * 20_000], ids=["han", "a", "thai"]
)
def test_a_word_of_any_length_is_stored_and_found(opened: Open, word: str) -> None:
    """An index entry of a database has a limit: SQLite cuts longer ones, and PostgreSQL refuses them."""
    store = opened()
    store.store_episode("s", Episode("long", word, 1.0))
    store.store_episode("s", Episode("short", "the kayak", 2.0))
    best = store.retrieve_similar("s", word, None, 1, at=NOW, weights=WEIGHTS[0])
    assert [found.episode.id for found in best] == ["long"]
    assert store.check() == []


def test_what_is_stored_is_there_after_a_restart(opened: Open) -> None:
    made, vectors = episodes(3, 60)
    store = opened()
    store.store_episodes("agent", made, vectors, encoder="hash")
    before, kind = results(store, "agent", 3), store.vector_format()
    if not isinstance(store, type(open_store("memory:"))):
        store.close()
    again = opened()
    assert results(again, "agent", 3) == before
    assert again.vector_format() == kind
    assert [replace(e, codes=b"") for e in again.get("agent", [made[9].id, "?", made[2].id])] == [made[9], made[2]]


@pytest.mark.parametrize("store_url", ["sqlite", "postgresql", "redis"], indirect=True)  # Chroma takes one writer
def test_nothing_acknowledged_is_lost_when_writers_are_killed(store_url: str) -> None:
    assert crash(store_url, rounds=2, episodes=160) == []


def test_a_migration_into_a_store_and_out_of_it_changes_nothing(opened: Open) -> None:
    made, vectors = episodes(11, 60)
    source, store, back = open_store("memory:"), opened(), open_store("memory:")
    source.store_episodes("agent", made, vectors, encoder="hash")
    ids = [episode.id for episode in made]
    source.change("agent", archive=ids[:2], merge={ids[5]: ids[6:9]}, uses={ids[5]: 2})
    assert migrate(source, store, progress=False) == migrate(store, back, progress=False) == 60
    assert list(source.scan("agent")) == list(store.scan("agent")) == list(back.scan("agent"))
    assert results(source, "agent", 11) == results(store, "agent", 11) == results(back, "agent", 11)
    assert store.check() == []


def test_two_handles_see_each_other(opened: Open) -> None:
    made, vectors = episodes(4, 40)
    one, other = opened(), opened()
    one.store_episodes("agent", made[:20], vectors[:20])
    assert len(other.retrieve_similar("agent", "kayak", vectors[0], 40, at=NOW)) == 20
    other.store_episodes("agent", made[20:], vectors[20:])
    other.change("agent", archive=[made[0].id])
    assert {f.episode.id for f in one.retrieve_similar("agent", "kayak", vectors[0], 40, at=NOW)} == {
        episode.id for episode in made[1:]
    }
    assert one.check() == []


def test_an_episode_is_stored_once(opened: Open) -> None:
    store = opened()
    episode, vector = Episode("1", "the blue kayak", at=5.0), np.ones(4)
    assert store.store_episode("agent", episode, vector)
    assert not store.store_episode("agent", episode, vector)
    assert store.store_episode("another", episode, vector)
    assert store.size("agent").episodes == 1


def test_another_text_under_a_known_id_is_refused_and_nothing_is_written(opened: Open) -> None:
    store = opened()
    store.store_episode("agent", Episode("1", "the blue kayak", at=5.0), np.ones(4))
    batch = [Episode("2", "a lamp", at=6.0), Episode("1", "the red kayak", at=5.0)]
    with pytest.raises(Conflict, match="'1'"):
        store.store_episodes("agent", batch, np.ones((2, 4)))
    assert [episode.id for episode in store.scan("agent")] == ["1"]
    assert store.check() == []


def test_scopes_share_nothing(opened: Open) -> None:
    """What others store changes neither what is found nor the scores."""
    made, vectors = episodes(5, 50)
    store = opened()
    store.store_episodes("agent", made, vectors)
    before = results(store, "agent", 5)
    others, other_vectors = episodes(6, 50)
    store.store_episodes("agent ", others, other_vectors)
    store.store_episodes("Agent", made, vectors)
    assert results(store, "agent", 5) == before
    assert store.retrieve_similar("unknown", "kayak", vectors[0], 5, at=NOW) == []


def test_vectors_of_another_encoder_are_refused(opened: Open) -> None:
    store = opened()
    store.store_episodes("agent", [Episode("1", "a", 0.0)], np.ones((1, 8)), encoder="one")
    with pytest.raises(StoreError, match=r"one \(8 dimensions, 2 bits\).* two \(8 dimensions"):
        store.store_episodes("agent", [Episode("2", "b", 0.0)], np.ones((1, 8)), encoder="two")
    with pytest.raises(StoreError, match="9 dimensions"):
        store.store_episodes("agent", [Episode("2", "b", 0.0)], np.ones((1, 9)), encoder="one")
    assert store.size("agent").episodes == 1


def test_a_store_without_vectors_finds_by_words(opened: Open) -> None:
    store = opened()
    store.store_episodes("agent", [Episode("1", "a lamp", 0.0), Episode("2", "the blue kayak", 0.0)])
    assert [found.episode.id for found in store.retrieve_similar("agent", "kayaks", None, 1, at=0.0)] == ["2"]
    store.store_episode("agent", Episode("3", "a violin", 0.0), np.ones(4))  # and with some, by both
    assert [f.episode.id for f in store.retrieve_similar("agent", "lamps", np.ones(4), 3, at=0.0)] == ["3", "1", "2"]


def test_near_duplicates_become_one_with_links_to_its_sources(opened: Open) -> None:
    store = opened()
    vector, other = np.random.default_rng(0).normal(size=(2, 32))
    store.store_episodes(
        "agent",
        [
            Episode("1", "I sold the kayak", 10.0, uses=2),
            Episode("2", "I sold the blue kayak", 20.0, importance=0.9, uses=3),
            Episode("3", "A lamp", 30.0),
        ],
        np.array([vector, 1.01 * vector, other]),
    )
    done = store.consolidate("agent", at=NOW)
    assert (done.merged, done.forgotten) == ({"2": ("1",)}, ())
    one, two, three = store.get("agent", ["1", "2", "3"])
    assert (two.text, two.at, two.importance, two.uses, two.sources) == ("I sold the blue kayak", 20.0, 0.9, 5, ("1",))
    assert (one.archived, one.uses, three.archived) == (True, 2, False), "kept, and not found"
    assert [f.episode for f in store.retrieve_similar("agent", "kayak", vector, 5, at=NOW)] == [two, three]
    assert store.consolidate("agent", at=NOW) == type(done)(), "once is enough"
    assert store.size("agent").archived == 1
    assert store.check() == []
    store.store_episode("agent", Episode("4", "I did sell the old blue kayak", 40.0), vector)
    assert store.consolidate("agent", at=NOW).merged == {"4": ("2",)}
    assert store.get("agent", ["4"])[0].sources == ("2", "1"), "sources of sources"
    store.change("agent", merge={"1": ["4"], "?": ["4"], "3": ["?", "2"]})
    assert [e.archived for e in store.get("agent", ["1", "2", "3", "4"])] == [True, True, False, False]


def test_what_is_deleted_is_gone(opened: Open) -> None:
    """A scope that was emptied and filled again finds nothing of what it held."""
    store, other = opened(), opened()
    made, vectors = episodes(9, 30)
    store.store_episodes("agent", made, vectors)
    store.store_episodes("another", made, vectors)
    store.change("agent", archive=[made[0].id])
    assert results(other, "agent", 9) == results(store, "agent", 9)
    assert store.delete("agent", [made[0].id, made[1].id, "?"]) == 2
    assert [episode.id for episode in other.scan("agent")] == [episode.id for episode in made[2:]]
    assert made[1].id not in {f.episode.id for f in other.retrieve_similar("agent", "kayak", vectors[1], 50, at=NOW)}
    assert store.check() == []
    assert store.delete("agent") == 28
    assert store.delete("agent") == store.delete("unknown") == 0
    assert (other.scopes(), other.size("agent").episodes, other.size("agent").archived) == (["another"], 0, 0)
    fresh, fresh_vectors = episodes(10, 30)
    store.store_episodes("agent", fresh, fresh_vectors)
    model = open_store("memory:")
    model.store_episodes("agent", fresh, fresh_vectors)
    assert results(other, "agent", 9) == results(store, "agent", 9) == results(model, "agent", 9)
    assert store.check() == []


def test_the_order_of_arrival_outlives_removals_and_a_restart(opened: Open) -> None:
    store, model = opened(), open_store("memory:")
    for each in (store, model):
        each.change("agent", add=[Episode(f"e{n}", "a kayak", 0.0) for n in range(4)])
        each.delete("agent", ["e0"])
        each.change("agent", add=[Episode("b", "a bowl", 0.0), Episode("a", "a lamp", 0.0)], uses={"e3": 1})
        each.replace("agent", Episode("e1", "a reed", 0.0))
    expected = [episode.id for episode in model.scan("agent")]
    assert [episode.id for episode in store.scan("agent")] == expected == ["e2", "e3", "b", "a", "e1"]
    assert [episode.id for episode in opened().scan("agent")] == expected


def test_forgetting_archives_by_the_time_it_is_given(opened: Open) -> None:
    store = opened()
    store.store_episodes(
        "agent",
        [
            Episode("old", "a", 0.0),
            Episode("used", "b", 0.0, uses=2),
            Episode("important", "c", 0.0, importance=500.0),
            Episode("new", "d", 90 * DAY),
        ],
        np.eye(4),
    )
    assert store.consolidate("agent", at=29 * DAY, weights=SEED).forgotten == (), "not before thirty days"
    assert store.consolidate("agent", at=NOW, weights=DEFAULT).forgotten == (), "not unless asked for"
    assert store.consolidate("agent", at=NOW, weights=SEED).forgotten == ("old",)
    assert {episode.id for episode in store.scan("agent") if episode.archived} == {"old"}


def test_the_seed_counts_as_it_says() -> None:
    store = open_store("memory:")
    store.store_episode("agent", Episode("1", "kayak", at=0.0, importance=0.8), np.ones(4))
    (found,) = store.retrieve_similar("agent", "lamp", np.ones(4), 1, at=10 * DAY, weights=SEED)
    assert found.dense == pytest.approx(1, abs=0.01)
    assert found.score == pytest.approx(0.5 * found.dense + 0.3 * np.exp(-1) + 0.2 * 0.8 * 0.95**10)


def test_redis_answers_what_was_asked_before_and_is_never_needed(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, vectors = episodes(7, 60)
    behind = f"sqlite:///{tmp_path}/memory.db"
    with open_store(f"{redis_url}?behind={quote(behind, safe='')}") as hot:
        hot.store_episodes("agent", made, vectors)
        before = results(hot, "agent", 7)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(hot._behind), "nearest", None)  # type: ignore[attr-defined]  # nobody is to ask it
            assert results(hot, "agent", 7) == before
        with open_store(behind) as other:  # a change by another process, which knows of no Redis
            other.change("agent", archive=[made[0].id])
            assert results(hot, "agent", 7) == results(other, "agent", 7) != before
    gone = f"redis://127.0.0.1:1/0?behind={quote(behind, safe='')}"
    with open_store(gone) as cold, open_store(behind) as other:
        assert results(cold, "agent", 7) == results(other, "agent", 7)
    assert capsys.readouterr().err.count("Redis failed") == 1
    with pytest.raises(StoreError, match="behind=URL"):
        open_store("redis://127.0.0.1/0")


def test_redis_never_answers_for_another_store(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{redis_url}?behind={quote('sqlite:///memory.db', safe='')}"  # the same text in two folders
    for name in ("ada", "bob"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with open_store(url) as store:
            store.store_episode("s", Episode("1", f"the kayak of {name}", 1.0))
            (found,) = store.retrieve_similar("s", "kayak", None, 1, at=NOW)
            assert found.episode.text == f"the kayak of {name}"
    backup = (tmp_path / "bob" / "memory.db").read_bytes()
    for text in ("the kayak is red", "the kayak is blue"):  # the second time in a backup that was restored
        (tmp_path / "bob" / "memory.db").write_bytes(backup)
        with open_store(url) as store:
            store.store_episode("s", Episode("2", text, 2.0))
            found = store.retrieve_similar("s", "kayak", None, 2, at=NOW)
            assert text in {each.episode.text for each in found}


def test_redis_refuses_a_store_that_other_processes_cannot_see(redis_url: str) -> None:
    with pytest.raises(StoreError, match="needs a store behind it"):
        open_store(f"{redis_url}?behind=memory:")


def test_redis_knows_a_question_that_is_asked_again_later(redis_url: str, tmp_path: Path) -> None:
    with open_store(f"{redis_url}?behind={quote(f'sqlite:///{tmp_path}/memory.db', safe='')}") as store:
        store.store_episode("s", Episode("1", "the kayak", 1.0))
        first = store.retrieve_similar("s", "kayak", None, 1, at=NOW)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(store._behind), "postings", None)  # type: ignore[attr-defined]  # not called again
            (later,) = store.retrieve_similar("s", "kayak", None, 1, at=NOW + DAY)
        assert later.score == first[0].score
        assert later.recency < first[0].recency


def test_an_approximate_index_finds_the_nearest_in_postgresql(postgres_url: str) -> None:
    url = servers.fresh_schema(postgres_url)
    made, vectors = episodes(8, 300)
    with open_store(f"{url}&hnsw=yes") as store, open_store("memory:") as model:
        for each in (store, model):
            each.store_episodes("agent", made, vectors)
        for vector in vectors[:20]:
            best, expected = (
                each.retrieve_similar("agent", "", vector, 1, at=NOW, weights=Weights(lexical=0, neighbours=0))
                for each in (store, model)
            )
            assert best == expected


def test_a_server_that_is_not_there_is_told_in_a_sentence() -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL's client is not here: pip install '.[stores]'")
    with pytest.raises(StoreError, match="PostgreSQL"):
        open_store("postgresql://nobody@127.0.0.1:1/none")


def test_a_url_that_names_no_store_is_answered_with_what_may_be() -> None:
    with pytest.raises(StoreError, match="mysql.*memory:, sqlite:"):
        open_store("mysql://somewhere")


def test_pages_and_replacements_are_the_same_in_every_store(opened: Open) -> None:
    store, model = opened(), open_store("memory:")
    made, vectors = episodes(3, 60)
    for each in (store, model):
        each.store_episodes("one", made, vectors)
        each.change("one", archive=[made[4].id])
        old = each.replace("one", Episode(made[9].id, "another text", at=3.0, details={"value": "1"}))
        assert old is not None
        assert (old.text, old.at) == (made[9].text, made[9].at)
        assert each.replace("one", Episode("new", "a kayak", at=4.0)) is None
    assert replace(store.size("one"), changes=0) == replace(model.size("one"), changes=0)
    assert store.check() == []
    listed = model.ids("one", model.newest("one", 100))
    seen: list[str] = []
    before: tuple[float, str] | None = None
    while page := store.newest("one", 7, before):
        seen += store.ids("one", page)
        before = store.get("one", seen[-1:])[0].at, seen[-1]
    assert seen == listed
    assert len(set(seen)) == store.size("one").episodes


def test_an_archived_episode_is_restored_and_found_again(opened: Open) -> None:
    store, model = opened(), open_store("memory:")
    made, vectors = episodes(13, 80)
    for each in (store, model):
        each.store_episodes("agent", made, vectors)
        each.change("agent", archive=[episode.id for episode in made[10:30]])
        each.change("agent", restore=[episode.id for episode in made[12:20]])
        assert each.store_episodes("agent", made[24:26], vectors[24:26]) == [False, False], "stored again"
    assert list(store.scan("agent")) == list(model.scan("agent"))
    assert results(store, "agent", 13) == results(model, "agent", 13)
    assert replace(store.size("agent"), changes=0) == replace(model.size("agent"), changes=0)
    assert store.size("agent").archived == 10
    assert store.check() == []


def test_deleted_texts_are_not_in_the_cache(redis_url: str, tmp_path: Path) -> None:
    import redis

    url = f"{redis_url}?behind={quote(f'sqlite:///{tmp_path}/memory.db', safe='')}"
    with open_store(url) as store:
        store.store_episodes("agent", [Episode("1", "the secret kayak", 1.0), Episode("2", "a bowl", 2.0)])
        assert store.get("agent", ["1"])[0].text == "the secret kayak"
        assert store.retrieve_similar("agent", "kayak", None, 2, at=0.0)
        store.delete("agent", ["1"])
        store.erase()
        client = redis.Redis(unix_socket_path=redis_url.removeprefix("redis+unix://"))
        assert not [key for key in client.keys("memory:*") if b"secret" in client.get(key)]
        assert store.get("agent", ["1"]) == []


def test_a_question_of_another_encoder_is_refused(opened: Open) -> None:
    store = opened()
    store.store_episodes("agent", [Episode("1", "a kayak", 0.0)], np.ones((1, 8)), encoder="one")
    assert store.retrieve_similar("agent", "kayak", np.ones(8), 1, at=0.0, encoder="one")
    for vector, encoder in ((np.ones(9), ""), (np.ones(9), "one"), (np.ones(8), "two")):
        with pytest.raises(StoreError, match=r"one \(8 dimensions.*cannot be searched"):
            store.retrieve_similar("agent", "kayak", vector, 1, at=0.0, encoder=encoder)
    with pytest.raises(StoreError, match="2 vectors for 1 texts"):
        store.store_episodes("agent", [Episode("2", "a bowl", 0.0)], np.ones((2, 8)), encoder="one")
    assert store.size("agent").episodes == 1
