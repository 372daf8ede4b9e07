"""The REST service over HTTP: routes, refusals, tenants, durability and concurrent replacement."""

from __future__ import annotations

import base64
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the service is not installed: pip install '.[service]'")
pytest.importorskip("prometheus_client", reason="the service is not installed: pip install '.[service]'")
httpx = pytest.importorskip("httpx", reason="its client is not installed: pip install '.[dev]'")

from memometer.serve import rest  # noqa: E402
from memometer.serve.middleware import MAX_BODY_BYTES, RateLimiter  # noqa: E402
from tests.conftest import completion, failure  # noqa: E402
from tests.serving import in_process, in_thread  # noqa: E402


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Any]:
    with in_thread(f"sqlite:///{tmp_path}/memory.db") as client:
        yield client


def is_problem(response: Any, status: int) -> str:
    """Check that a response is problem+json; return its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (body["status"], body["type"]) == (status, "about:blank")
    assert body["title"]
    return str(body["detail"])


def test_routes_of_the_default_memory(service: Any) -> None:
    turn = {"text": "I sold the kayak.", "speaker": "Nadia", "said_at": "2024-05-08T14:30:00+02:00", "importance": 0.9}
    stored = service.post("/memory/store", json=turn)
    assert stored.status_code == 201
    service.post("/memory/store", json={"text": "The accordion is at the shop."})
    (best, _) = service.get("/memory/retrieve", params={"q": "Who sold a kayak?", "k": 5}).json()["found"]
    assert best["id"] == stored.json()["ids"][0]
    assert {name: best[name] for name in turn} == turn
    assert best["score"] > 0 < best["lexical"]
    assert len(service.get("/memory/retrieve", params={"q": "kayak", "k": 1}).json()["found"]) == 1
    service.post("/memory/store", json={**turn, "text": "I sold the  kayak."})
    merged = service.post("/memory/consolidate", json={}).json()
    assert sum(map(len, merged["merged"].values())) == 1
    assert service.get("/memory/stats").json() == {"memories": 1, "turns": 2, "archived": 1}


def test_life_cycle_of_a_memory(service: Any, sample: Any) -> None:
    path = "/v1/memories/diary"
    assert "'diary'" in is_problem(service.post(f"{path}/recall", json={"question": "Who?"}), 404)
    assert service.put(path, json={}).status_code == 201
    assert service.put(path, json={}).status_code == 200, "creating it again changes nothing"
    assert "episodic" in is_problem(service.put(path, json={"system": "bm25"}), 409)
    turns = [
        {"text": turn.text, "speaker": turn.speaker, "session": turn.session, "said_at": turn.said_at.isoformat(),
         "id": turn.id} for turn in sample.conversations[0].turns
    ]  # fmt: skip
    assert service.post(f"{path}/observe", json={"turns": turns}).json()["ids"] == [turn["id"] for turn in turns]
    question = sample.conversations[0].questions[0].text
    for budget in (40, 400, 4000):
        body = service.post(f"{path}/recall", json={"question": question, "budget_tokens": budget}).json()
        direct = service.memories.recall("local", "diary", question, budget_tokens=budget)
        assert (body["text"], body["tokens"], tuple(body["ids"])) == (direct.text, direct.tokens, direct.turn_ids)
        assert 0 < body["tokens"] <= budget
    assert service.delete(f"{path}/turns/{turns[0]['id']}").status_code == 204
    is_problem(service.delete(f"{path}/turns/{turns[0]['id']}"), 404)
    assert service.get(path).json()["turns"] == len(turns) - 1
    assert service.delete(path).status_code == 204
    is_problem(service.get(path), 404)
    assert service.put(path, json={}).status_code == 201
    assert service.get(path).json()["turns"] == 0, "a new memory of the same name is empty"


def test_pages_show_each_turn_once_during_writes_and_deletions(service: Any) -> None:
    service.put("/v1/memories/diary", json={})
    turns = [{"text": f"turn {n}", "id": f"t{n}", "said_at": f"2024-01-{n // 3 + 1:02}T00:00:00Z"} for n in range(40)]
    service.post("/v1/memories/diary/observe", json={"turns": turns})
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = service.get("/v1/memories/diary/turns", params={"limit": 7, **cursor}).json()
        seen += [turn["id"] for turn in page["turns"]]
        service.delete(f"/v1/memories/diary/turns/{seen[-1]}")  # the turn at the page boundary
        service.post("/v1/memories/diary/observe", json={"turns": [{"text": "late"}]})
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert sorted(seen) == sorted(f"t{n}" for n in range(40))
    for n in range(5):
        service.put(f"/v1/memories/m{n}", json={})
    first = service.get("/v1/memories", params={"limit": 4}).json()
    rest = service.get("/v1/memories", params={"limit": 4, "cursor": first["next"]}).json()
    assert [m["name"] for m in first["memories"] + rest["memories"]] == ["diary", *(f"m{n}" for n in range(5))]
    assert "cursor" in is_problem(service.get("/v1/memories", params={"cursor": "abc"}), 404)
    for place in ('["\\ud800"]', '["a", 1]', f'[{"9" * 400}, "a"]', '[1, "\\ud800"]', '[1, "\\u0000"]', "[" * 740):
        cursor = base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")
        for path in ("/v1/memories", "/v1/memories/diary/turns"):
            is_problem(service.get(path, params={"cursor": cursor}), 404)


def test_times_with_and_without_an_offset_are_sorted(service: Any) -> None:
    turns = [{"text": "b", "said_at": "2024-05-08T14:30:00"}, {"text": "a", "said_at": "2024-05-08T14:30:00+02:00"}]
    service.put("/v1/memories/diary", json={})
    assert service.post("/v1/memories/diary/observe", json={"turns": [*turns, {"text": "now"}]}).status_code == 201
    listed = service.get("/v1/memories/diary/turns").json()["turns"]
    assert [turn["text"] for turn in listed] == ["now", "b", "a"]
    service.put("/v1/memories/ranked", json={"system": "adaptive"})
    assert service.post("/v1/memories/ranked/observe", json={"turns": turns}).status_code == 201
    assert service.post("/v1/memories/ranked/recall", json={"question": "a?"}).status_code == 200


def test_idempotency_key(service: Any) -> None:
    key = {"Idempotency-Key": "order-1"}
    turn = {"text": "I sold the kayak."}
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: service.post("/memory/store", json=turn, headers=key), range(8)))
    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.json()["ids"][0] for reply in replies}) == 1
    assert service.get("/memory/stats").json()["turns"] == 1
    other = service.post("/memory/store", json={"text": "I bought a kayak."}, headers=key)
    assert "key" in is_problem(other, 409)
    dated = {**turn, "said_at": "2024-05-08T14:30:00Z"}
    assert "key" in is_problem(service.post("/memory/store", json=dated, headers=key), 409)
    assert service.post("/memory/store", json=turn).status_code == 201, "a second turn without a key"
    assert service.get("/memory/stats").json()["turns"] == 2


def test_tenants_are_isolated(tmp_path: Path) -> None:
    with in_thread(f"sqlite:///{tmp_path}/memory.db", auth=True) as service:
        ada, bob = ({"Authorization": f"Bearer {service.tokens.issue(name, at=1.0)}"} for name in ("ada", "bob"))
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": ada["Authorization"][:-1]}):
            refused = service.get("/v1/memories", headers=headers)
            is_problem(refused, 401)
            assert refused.headers["www-authenticate"] == "Bearer"
        for headers, text in ((ada, "The safe opens with 1234."), (bob, "The garden needs water.")):
            body = {"text": text, "memory": "diary", "id": "same"}
            assert (
                service.post("/memory/store", json=body, headers={**headers, "Idempotency-Key": "1"}).status_code == 201
            )
        service.put("/v1/memories/secret", json={}, headers=ada)
        replies = [
            service.get("/memory/retrieve", params={"q": "What opens the safe?", "memory": "diary"}, headers=bob),
            service.post("/v1/memories/diary/recall", json={"question": "the safe"}, headers=bob),
            service.get("/v1/memories/diary/turns", headers=bob),
            service.get("/v1/memories", headers=bob),
            service.get("/memory/stats", headers=bob),
            service.get("/metrics", headers=bob),
        ]
        assert all(reply.status_code == 200 for reply in replies)
        assert not [reply.text for reply in replies if "1234" in reply.text or "secret" in reply.text]
        for method, paths, body in (
            ("GET", ("", "/turns", "/cartridge"), None),
            ("DELETE", ("", "/turns/same"), None),
            ("POST", ("/recall", "/answer"), {"question": "What opens the safe?"}),
            ("POST", ("/observe",), {"turns": [{"text": "I was here."}]}),
            ("POST", ("/consolidate",), None),
        ):
            for path in paths:
                is_problem(service.request(method, f"/v1/memories/secret{path}", headers=bob, json=body), 404)
        assert service.delete("/v1/memories/diary", headers=bob).status_code == 204
        assert service.get("/v1/memories/diary/turns", headers=ada).json()["turns"][0]["text"].endswith("1234.")
        service.tokens.revoke("ada")
        is_problem(service.get("/v1/memories", headers=ada), 401)
        assert service.get("/livez").status_code == service.get("/readyz").status_code == 200


def test_closed_store_is_503(tmp_path: Path) -> None:
    with in_thread(f"sqlite:///{tmp_path}/memory.db", auth=True) as service:
        headers = {"Authorization": f"Bearer {service.tokens.issue('ada', at=1.0)}"}
        service.memories.store.close()
        is_problem(service.get("/memory/stats", headers=headers), 503)


def test_malformed_and_excessive_requests_are_refused(tmp_path: Path) -> None:
    rate = RateLimiter(0.001, burst=11)
    with in_thread(f"sqlite:///{tmp_path}/memory.db", rate=rate, hosts=("127.0.0.1",)) as service:
        assert "'evil.example'" in is_problem(service.get("/livez", headers={"host": "evil.example"}), 403)
        big = b'{"text": "' + b"a" * MAX_BODY_BYTES + b'"}'
        is_problem(service.put("/v1/memories/cartridge", content=b"{}" + b" " * MAX_BODY_BYTES), 413)
        json = {"content-type": "application/json"}
        is_problem(service.post("/memory/store", content=big, headers=json), 413)
        is_problem(service.post("/memory/store", content=iter([big[:99], big[99:]]), headers=json), 413)
        for body in (b"{", b"[]", b'{"text": ""}', b'{"text": "a", "said_at": 5}', b'{"text": "a", "more": 1}', b"\xff",
                     b'{"text": "a\\u0000"}', b'{"text": "\\ud800"}'):  # fmt: skip
            is_problem(service.post("/memory/store", content=body, headers=json), 422 if body != b"\xff" else 400)
        is_problem(service.post("/memory/store", content=b'{"text": "a"}', headers={"content-type": "text/plain"}), 422)
        assert "'psychic'" in is_problem(service.put("/v1/memories/a", json={"system": "psychic"}), 422)
        refused = service.get("/memory/stats")
        is_problem(refused, 429)
        assert int(refused.headers["retry-after"]) > 0
        assert service.get("/livez").status_code == 200
        is_problem(service.patch("/livez"), 405)


def test_unknown_method_lists_the_allowed_ones(service: Any) -> None:
    refused = service.patch("/v1/memories/diary")
    is_problem(refused, 405)
    assert refused.headers["allow"] == "DELETE, GET, PUT"


def test_metrics_count_requests(service: Any) -> None:
    service.get("/memory/stats")
    service.get("/v1/memories/nobody")
    service.request("KAYAK", "/v1/memories")
    metrics = service.get("/metrics").text
    assert 'http_requests_total{method="GET",route="/memory/stats",status="200"} 1.0' in metrics
    assert 'http_requests_total{method="GET",route="/v1/memories/{name}",status="404"} 1.0' in metrics
    assert "nobody" not in metrics
    assert "KAYAK" not in metrics, "callers cannot create labels without limit"
    assert "process_resident_memory_bytes" in metrics


def test_every_system_recalls_from_the_same_turns(service: Any, sample: Any) -> None:
    from memometer import systems

    conversation = sample.conversations[0]
    turns = [
        {"text": turn.text, "speaker": turn.speaker, "session": turn.session, "said_at": turn.said_at.isoformat(),
         "id": turn.id, **({"caption": turn.caption} if turn.caption else {})} for turn in conversation.turns
    ]  # fmt: skip
    for system in ("adaptive", "recent", "bm25"):
        service.put(f"/v1/memories/{system}", json={"system": system})
        half = len(turns) // 2
        for part in (turns[:half], turns[half:]):  # a recall after each half updates the cached state
            service.post(f"/v1/memories/{system}/observe", json={"turns": part})
            body = {"question": conversation.questions[0].text, "budget_tokens": 300}
            reply = service.post(f"/v1/memories/{system}/recall", json=body).json()
        memory = systems.load(system)(count=service.memories.count)
        state = memory.new()
        memory.observe(state, conversation.turns)
        assert reply["text"] == memory.recall(state, conversation.questions[0].text, 300).text


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_acknowledged_writes_survive_a_kill(tmp_path: Path, end: signal.Signals) -> None:
    url = f"sqlite:///{tmp_path}/memory.db"
    acknowledged: list[str] = []
    with in_process(url) as (process, address):

        def write(worker: int) -> None:
            with httpx.Client(base_url=address, timeout=30) as client:
                for n in range(10_000):
                    id = f"{worker}-{n}"
                    try:
                        reply = client.post("/memory/store", json={"text": f"turn {id}", "id": id})
                    except httpx.TransportError:
                        return
                    assert reply.status_code == 201
                    acknowledged.append(id)

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(write, worker) for worker in range(4)]
            while len(acknowledged) < 30:
                assert not any(future.done() for future in futures)
                time.sleep(0.01)
            process.send_signal(end)
            for future in futures:
                future.result(30)
            assert process.wait(30) == -end
    with in_thread(url) as service:
        found = [episode.id for episode in service.memories.newest("local", "default", k=100_000)]
        assert len(found) == len(set(found))
        assert set(acknowledged) <= set(found)
        assert len(found) <= len(acknowledged) + 4, "at most one unacknowledged write per worker"
        assert service.memories.store.check() == []


def test_cartridge_moves_a_memory_to_another_service(
    service: Any, tmp_path: Path, sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = sample.conversations[0]
    turns = [{"text": turn.text, "speaker": turn.speaker, "id": turn.id} for turn in conversation.turns]
    with in_thread(f"sqlite:///{tmp_path}/other.db") as other:
        for system in ("episodic", "bm25"):
            path = f"/v1/memories/{system}"
            service.put(path, json={"system": system})
            service.post(f"{path}/observe", json={"turns": turns})
            downloaded = service.get(f"{path}/cartridge")
            put = other.put(f"{path}/cartridge", content=downloaded.content)
            assert (put.status_code, put.json()["system"], put.json()["turns"]) == (200, system, len(turns))
            body = {"question": conversation.questions[0].text, "budget_tokens": 300}
            assert other.post(f"{path}/recall", json=body).json() == service.post(f"{path}/recall", json=body).json()
            assert other.get(f"{path}/turns").json() == service.get(f"{path}/turns").json()
        damaged = downloaded.content[:-200] + b"x" + downloaded.content[-199:]
        detail = is_problem(other.put("/v1/memories/bm25/cartridge", content=damaged), 409)
        assert detail.startswith("The request body")
        monkeypatch.setattr(rest, "MAX_CARTRIDGE_BYTES", 100)
        assert "100" in is_problem(other.put("/v1/memories/bm25/cartridge", content=downloaded.content), 409)
        assert other.get("/v1/memories/bm25").json()["turns"] == len(turns), "the old memory stays"


def test_requests_during_a_replacement_see_one_memory(service: Any) -> None:
    """200 clients at a time, while the memory is replaced twice."""
    cartridges = []
    for word in ("alpha", "beta"):
        service.put(f"/v1/memories/{word}", json={})
        turns = [{"text": f"{word} kayak number {n}", "speaker": word, "id": f"{n}"} for n in range(60)]
        service.post(f"/v1/memories/{word}/observe", json={"turns": turns})
        cartridges.append(service.get(f"/v1/memories/{word}/cartridge").content)
    path = "/v1/memories/shared"
    service.put(f"{path}/cartridge", content=cartridges[0])

    def ask(number: int) -> set[str]:
        if number % 2:
            reply = service.post(f"{path}/recall", json={"question": "which kayak?", "budget_tokens": 400})
            lines = reply.json()["text"].splitlines()
            return {line.split(":")[0] for line in lines if not line.startswith("#")}
        reply = service.get("/memory/retrieve", params={"q": "which kayak?", "k": 30, "memory": "shared"})
        return {turn["speaker"] for turn in reply.json()["found"]}

    finished, seen = threading.Event(), []

    def keep_asking(number: int) -> None:
        while not finished.is_set():
            seen.append(ask(number))

    with ThreadPoolExecutor(200) as pool:
        asked = [pool.submit(keep_asking, number) for number in range(200)]
        with httpx.Client(base_url=service.base_url, timeout=60) as other:
            for turn in range(2):
                swapped = other.put(f"{path}/cartridge", content=cartridges[(turn + 1) % 2])
                assert (swapped.status_code, swapped.json()["turns"]) == (200, 60)
        finished.set()
        for future in asked:
            future.result()
    assert {len(speakers) for speakers in seen} == {1}
    assert set.union(*seen) == {"alpha", "beta"}
    left = [scope for scope in service.memories.store.scopes() if "/shared/" in scope]
    assert len(left) == 1, "replaced turns are deleted"


def test_answers_of_a_language_model(tmp_path: Path, server: Any) -> None:
    how = {"model": "openai/scripted", "api_base": server.url}
    with in_thread(f"sqlite:///{tmp_path}/memory.db", **how) as service:
        service.post("/memory/store", json={"text": "I bake sourdough.", "speaker": "Tom"})
        body = {"question": "What does Tom bake?", "budget_tokens": 100}
        reply = service.post("/v1/memories/default/answer", json=body).json()
        assert reply["answer"] == "Sourdough"
        assert reply["recall"]["text"].endswith("Tom: I bake sourdough.\n")
        assert reply["recall"]["text"] in server.requests[0]["messages"][-1]["content"]
        server.answer = lambda number, body: failure(401)
        is_problem(service.post("/v1/memories/default/answer", json=body), 503)
        service.put("/v1/memories/summarised", json={"system": "summary"})
        service.post("/v1/memories/summarised/observe", json={"turns": [{"text": "I bake."}]})
        is_problem(service.post("/v1/memories/summarised/recall", json=body), 503)
        server.answer = lambda number, body: completion("Tom bakes.")
        reply = service.post("/v1/memories/summarised/recall", json=body).json()
        assert "Tom bakes." in reply["text"]
