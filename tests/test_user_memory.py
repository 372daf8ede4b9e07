"""UserMemory, and the versions of turns over REST."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from memometer import UserMemory
from memometer.serve.registry import InvalidRequest, NotFound
from tests.conftest import HashEncoder


def test_the_methods_that_users_of_mem0_know(tmp_path: Path) -> None:
    with UserMemory("ada", tmp_path / "a.db", encoder=HashEncoder()) as memory:
        messages = [{"role": "user", "content": "I sold the kayak."}, {"role": "assistant", "content": "To whom?"}]
        first, second = (r["id"] for r in memory.add(messages, metadata={"topic": "boats"})["results"])
        (best, *_) = memory.search("Who sold a kayak?")["results"]
        assert (best["id"], best["memory"], best["role"]) == (first, "I sold the kayak.", "user")
        assert best["metadata"] == {"topic": "boats"}
        memory.update(first, "I sold the canoe.")
        memory.update(first, "I sold the raft.")
        assert [r["memory"] for r in memory.get_all()["results"]].count("I sold the raft.") == 1
        assert len(memory.get_all()["results"]) == 2
        changes = memory.history(first)
        assert [c["new_memory"] for c in changes] == ["I sold the kayak.", "I sold the canoe.", "I sold the raft."]
        assert [c["old_memory"] for c in changes] == [None, "I sold the kayak.", "I sold the canoe."]
        assert all(hit["id"] == first for hit in memory.search("raft", limit=1)["results"])
        with UserMemory("grace", tmp_path / "a.db", encoder=HashEncoder()) as other:
            assert other.search("raft")["results"] == other.get_all()["results"] == []
            assert other.get(first) is None
        memory.delete(first)
        assert memory.get(first) is None
        assert memory.history(first) == []
        assert second in {r["id"] for r in memory.get_all()["results"]}
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not [word for word in (b"kayak", b"canoe", b"raft") if word in raw], "all versions are gone"


def test_what_a_user_memory_refuses(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="user_id"):
        UserMemory("a/b", tmp_path / "a.db")
    with UserMemory("ada", tmp_path / "a.db", encoder=HashEncoder()) as memory:
        for wrong in ("", {"role": "user"}, [{"role": "user", "content": 3}]):
            with pytest.raises(InvalidRequest):
                memory.add(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="limit"):
            memory.search("x", limit=0)
        for change in (lambda: memory.update("none", "x"), lambda: memory.delete("none")):
            with pytest.raises(NotFound):
                change()


def test_a_turn_is_changed_only_as_it_was_read(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from tests.serving import in_thread

    with in_thread(f"sqlite:///{tmp_path}/a.db") as client:
        body = {"text": "I sold the kayak.", "speaker": "Nadia", "id": "a", "said_at": "2024-05-08T14:30:00Z"}
        client.post("/memory/store", json=body)
        address = "/v1/memories/default/turns/a"
        tag = client.get(address).headers["ETag"]
        assert client.get(address, headers={"If-None-Match": tag}).status_code == 304
        changed = client.patch(address, json={"text": "I sold the raft."}, headers={"If-Match": tag})
        assert changed.status_code == 200
        assert changed.json()["said_at"] == "2024-05-08T14:30:00Z"
        late = client.patch(address, json={"text": "I sold a tent."}, headers={"If-Match": tag})
        assert late.status_code == 412
        assert client.get(address).json()["text"] == "I sold the raft."
        assert [t["text"] for t in client.get(f"{address}/history").json()["turns"]] == [
            body["text"],
            "I sold the raft.",
        ]
        assert client.get("/v1/memories/default/archived").json()["turns"] == []
        found = client.post("/v1/memories/default/search", json={"question": "raft", "k": 1}).json()["found"]
        assert found[0]["id"] == "a"
        assert client.post("/memory/store", json=body).status_code == 409, "the id belongs to another text now"

        started = client.post("/v1/memories/default/consolidations", json={"dry_run": True})
        assert started.status_code == 202
        end = time.monotonic() + 30
        while (job := client.get(started.headers["Location"]).json())["status"] == "running":
            assert time.monotonic() < end
            time.sleep(0.02)
        assert job["status"] == "done"
        assert job["result"]["merged"] == {}
        assert client.get(f"/v1/jobs/{'0' * 32}").status_code == 404
