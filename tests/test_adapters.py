"""LangGraph's store, compared with LangGraph's own, and DSPy's tools."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memometer import store as stores
from memometer.serve.dspy_tools import Retriever, tools
from memometer.serve.tenants import TenantMemories
from tests.conftest import HashEncoder, sampled

labels = st.sampled_from(["users", "ada", "bob", "docs"])
namespaces = st.lists(labels, min_size=1, max_size=3).map(tuple)
keys = st.sampled_from(["a", "b", "c"])
values = st.dictionaries(
    st.sampled_from(["text", "n"]), st.one_of(st.integers(0, 3), st.sampled_from(["kayak", "reed", "bowl"]))
)
filters = st.one_of(
    st.none(),
    st.fixed_dictionaries({"n": st.one_of(st.integers(0, 3), st.builds(lambda n: {"$ne": n}, st.integers(0, 3)))}),
)


def contents(items: list[Any]) -> list[Any]:
    return sorted((item.namespace, item.key, sorted(item.value.items(), key=str)) for item in items)


@sampled(20)
@given(puts=st.lists(st.tuples(namespaces, keys, st.one_of(st.none(), values)), max_size=12), wanted=filters)
def test_langgraph_store_behaves_as_langgraphs_own(puts: list[Any], wanted: Any) -> None:
    pytest.importorskip("langgraph.store.base", reason="LangGraph is not here: pip install '.[langgraph]'")
    from langgraph.store.memory import InMemoryStore

    from memometer.serve.langgraph_store import LangGraphStore

    model: Any = InMemoryStore()
    ours: Any = LangGraphStore("memory:", encoder=HashEncoder())
    try:
        for namespace, key, value in puts:
            for store in (ours, model):
                store.put(namespace, key, value) if value is not None else store.delete(namespace, key)
        for namespace, key, _ in puts:
            mine, other = ours.get(namespace, key), model.get(namespace, key)
            assert (mine and mine.value) == (other and other.value)
            for prefix in (namespace, namespace[:1], ()):
                assert contents(ours.search(prefix, filter=wanted, limit=50)) == contents(
                    model.search(prefix, filter=wanted, limit=50)
                )
        held = {
            item.namespace for item in model.search((), limit=50)
        }  # LangGraph's own store also lists empty namespaces
        for how in ({}, {"prefix": ("users",)}, {"suffix": ("ada",)}, {"prefix": ("*", "ada")}, {"max_depth": 1}):
            listed = ours.list_namespaces(**how)
            known = model.list_namespaces(**how)
            depth = how.get("max_depth", 9)
            assert listed == [space for space in known if space in {name[:depth] for name in held}]
    finally:
        stores.close("memory:")


def test_langgraph_store_searches_and_persists(tmp_path: Path) -> None:
    pytest.importorskip("langgraph.store.base", reason="LangGraph is not here: pip install '.[langgraph]'")
    from memometer.serve.langgraph_store import LangGraphStore

    url = f"sqlite:///{tmp_path}/memory.db"
    clock = iter(range(1, 100))
    store: Any = LangGraphStore(url, encoder=HashEncoder(), fields=["text"], now=lambda: float(next(clock)))
    store.put(("users", "ada"), "k", {"text": "sold the blue kayak", "n": 1})
    store.put(("users", "ada"), "r", {"text": "repaired an accordion", "n": 2})
    store.put(("users", "ada"), "x", {"text": "the blue kayak"}, index=False)
    store.put(("users", "bob"), "k", {"text": "the garden"})
    for prefix in (("users", "ada"), ("users",)):
        best, *rest = store.search(prefix, query="sold the blue kayak", limit=3)
        assert (best.key, best.namespace, best.value["n"]) == ("k", ("users", "ada"), 1)
        assert best.score > max(item.score or 0 for item in rest)
    assert [item.key for item in store.search(("users", "ada"), query="kayak", filter={"n": {"$gte": 2}})] == ["r"]
    before = store.get(("users", "ada"), "k")
    store.put(("users", "ada"), "k", {"text": "bought a piano"})
    stores.close(url)
    again: Any = LangGraphStore(url, encoder=HashEncoder())
    after = asyncio.run(again.aget(("users", "ada"), "k"))
    assert (after.value, after.created_at) == ({"text": "bought a piano"}, before.created_at)
    assert after.updated_at > before.updated_at
    with pytest.raises(ValueError, match=r"\$near"):
        again.search((), filter={"n": {"$near": 1}})
    stores.close(url)


def test_dspy_tools(tmp_path: Path) -> None:
    memories = TenantMemories(f"sqlite:///{tmp_path}/memory.db", encoder=HashEncoder())
    remember, recall = tools(memories, "ada", "diary", budget_tokens=50)
    assert "kayak" not in recall(question="kayak")
    id = remember(text="I sold the kayak.", speaker="Nadia")
    assert "Nadia: I sold the kayak." in recall(question="Who sold a kayak?")
    assert set(remember.args) == {"text", "speaker"}
    assert recall.desc
    found = Retriever(memories, "ada", "diary")("kayak")
    assert (found.passages, found.ids) == (["Nadia: I sold the kayak."], [id])
    assert isinstance(dspy.ReAct("question -> answer", tools=[remember, recall]), dspy.Module)
    memories.close()
