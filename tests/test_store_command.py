"""The command line of the stores: migration, and what else they need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memometer import cli
from memometer.serve.auth import AccessTokens
from memometer.serve.cartridge_io import export_cartridge, import_cartridge
from memometer.serve.new_turns import NewTurn
from memometer.serve.tenants import TenantMemories
from memometer.store import open_store
from memometer.store.episode import Conflict, Episode
from memometer.store.migrate import MIGRATIONS, migrate
from memometer.store.protocol import Store
from memometer.store.url import without_password
from tests.conftest import HashEncoder


def store_command(*words: str) -> int:
    return cli.main(["store", *words])


def filled(url: str, count: int = 40) -> Store:
    store = open_store(url)
    draw = np.random.default_rng(0)
    for scope in ("one", "two"):
        made = [Episode(f"{n}", f"the {n}th kayak in {scope}", float(n), uses=n % 3) for n in range(count)]
        store.store_episodes(scope, made, draw.normal(size=(count, 16)), encoder="hash")
    store.change("one", archive=["3"], merge={"5": ["6", "7"]}, uses={"8": 4})
    return store


def everything(store: Store) -> dict[str, list[Episode]]:
    return {
        scope: sorted(store.scan(scope), key=lambda episode: episode.id)
        for scope in store.scopes()
        if scope != MIGRATIONS
    }


def test_a_migration_leaves_nothing_behind(tmp_path: Path) -> None:
    with filled(f"sqlite:///{tmp_path}/a.db") as source, open_store("memory:") as target:
        assert migrate(source, target, progress=False) == 80
        assert everything(target) == everything(source)
        assert target.vector_format() == source.vector_format()
        question = np.ones(16)
        assert target.retrieve_similar("two", "kayak", question, 9, at=0.0) == source.retrieve_similar(
            "two", "kayak", question, 9, at=0.0
        )


def test_a_migration_takes_up_what_has_changed_and_leaves_the_rest(tmp_path: Path) -> None:
    """Stopped and started again, with changes in between, and with more in the target than in the source."""
    with filled(f"sqlite:///{tmp_path}/a.db") as source, open_store(f"sqlite:///{tmp_path}/b.db") as target:
        migrate(source, target, progress=False)
        source.change("one", merge={"20": ["5", "21"]}, uses={"9": 2}, archive=["30"])
        source.store_episode("one", Episode("new", "a bowl", 0.0))
        target.store_episode("three", Episode("own", "a lamp", 0.0))
        target.record_uses("two", ["1"])
        migrate(source, target, progress=False)
        assert everything(target)["one"] == everything(source)["one"]
        assert everything(target).keys() == {"one", "two", "three"}
        assert target.get("two", ["1"])[0].uses == source.get("two", ["1"])[0].uses + 1
        assert target.check() == []


@pytest.mark.parametrize("first", ["1", "2"])
def test_a_migration_that_goes_on_after_a_consolidation_counts_nothing_twice(first: str) -> None:
    """What stands for the other was copied before it, or after."""
    made = {"1": Episode("1", "I sold the kayak", 1.0, uses=2), "2": Episode("2", "I sold the blue kayak", 2.0, uses=3)}
    source, target, vector = open_store("memory:"), open_store("memory:"), np.ones(16)
    source.store_episode("one", made.pop(first), vector)
    migrate(source, target, progress=False)
    source.store_episode("one", *made.values(), vector)
    source.consolidate("one", at=3.0)
    migrate(source, target, progress=False)
    assert list(target.scan("one")) == list(source.scan("one"))
    assert target.get("one", ["2"])[0].uses == 5


def test_a_migration_ends_where_the_target_has_merged_by_itself() -> None:
    source, target, vector = open_store("memory:"), open_store("memory:"), np.ones(16)
    for each in (source, target):
        each.store_episodes(
            "one", [Episode("1", "a kayak", 1.0), Episode("2", "a kayak!", 2.0)], np.stack([vector] * 2)
        )
    target.store_episode("one", Episode("3", "the blue kayak", 3.0), vector)
    for each in (source, target):
        each.consolidate("one", at=4.0)
    kept = list(target.scan("one"))
    migrate(source, target, progress=False)
    assert list(target.scan("one")) == kept


def test_a_migration_into_another_text_is_refused(tmp_path: Path) -> None:
    with filled(f"sqlite:///{tmp_path}/a.db") as source, open_store("memory:") as target:
        target.store_episode("one", Episode("3", "another text", 3.0))
        with pytest.raises(Conflict, match="'3'"):
            migrate(source, target, progress=False)


def test_the_commands_say_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, other = f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db"
    filled(url).close()
    assert store_command("migrate", url, other) == 0
    assert capsys.readouterr().out == f"80 episodes are in {other}.\n"
    assert store_command("check", other) == 0
    assert store_command("compact", other) == 0
    assert store_command("consolidate", other, "--weights", "seed", "--at", str(60 * 86_400.0), "--scope", "one") == 0
    assert "forgotten" in capsys.readouterr().out
    with open_store(other) as store:
        assert store.size("one").archived > 10
        store.file.execute("UPDATE scopes SET live = 1000")  # type: ignore[attr-defined]
    assert store_command("check", other) == 1
    assert "The counts of scope 'one'" in capsys.readouterr().out
    assert store_command("migrate", f"sqlite:///{tmp_path}/typo.db", other) == 2
    assert f"{tmp_path}/typo.db" in capsys.readouterr().err
    assert not (tmp_path / "typo.db").exists()
    assert store_command("migrate", url, url) == 2
    assert "TO_URL" in capsys.readouterr().err
    assert store_command("check", "mysql://x") == 2
    assert "mysql://x" in capsys.readouterr().err


def test_a_password_is_not_said() -> None:
    assert without_password("postgresql://me:secret@host/name") == "postgresql://me:…@host/name"
    assert without_password("postgresql://me@host/name") == "postgresql://me@host/name"
    assert without_password("sqlite:///a.db") == "sqlite:///a.db"
    for hidden in (
        "redis://h:6379/0?behind=postgresql%3A%2F%2Fme%3Asecret%40host%2Fname", "redis://:secret@h/0",
        "postgresql://host/name?password=secret&user=me",
    ):  # fmt: skip
        assert "secret" not in without_password(hidden)
        assert without_password(hidden).startswith(hidden[:8])


def test_a_repeated_migration_carries_deletions_and_revocations(tmp_path: Path) -> None:
    """Into a store with a memory of the same name; with a replaced memory, a deleted one and a revoked token."""
    source_url, target_url = f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db"
    source, target = (TenantMemories(url, encoder=HashEncoder()) for url in (source_url, target_url))
    tokens = AccessTokens(source.store)
    kept, revoked = (tokens.issue("ada", at=1.0) for _ in range(2))
    target.observe("local", "default", [NewTurn("I own a lamp.", id="own")])
    for name in ("default", "diary", "old"):
        source.registry.ensure("local", name)
        source.observe("local", name, [NewTurn(f"{name} kayak", id="1"), NewTurn(f"{name} bowl", id="2")])
    migrate(source.store, target.store, progress=False)
    assert {e.id for e in target.newest("local", "default", k=9)} == {"own", "1", "2"}

    tokens.revoke(next(t.id for t in tokens.issued() if tokens.find(revoked) == t))
    source.forget("local", "default", ["1"], permanent=True)
    source.registry.delete("local", "old")
    cartridge = tmp_path / "diary.cartridge"
    export_cartridge(source, "local", "default", cartridge)
    import_cartridge(source, "local", "diary", cartridge)
    source.update("local", "default", "2", "default vase")
    migrate(source.store, target.store, progress=False)

    there = AccessTokens(target.store)
    assert there.tenant_of(kept) == "ada"
    assert there.tenant_of(revoked) is None
    assert {e.id for e in target.newest("local", "default", k=9)} == {"own", "2"}
    assert [e.text for e in target.newest("local", "diary", k=9)] == ["user: default bowl"], "as exported"
    assert target.get("local", "default", "2").text == "user: default vase"
    assert [entry.name for entry in target.registry.entries("local")] == ["default", "diary"]
    scopes = {entry.scope for entry in target.registry.entries("local")}
    assert {scope for scope in target.store.scopes() if "/" in scope} == scopes
    source.close()
    target.close()
