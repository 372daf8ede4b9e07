"""The service under requests that would stop others: slow models, many requests, late and half-sent ones."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("prometheus_client", reason="the service is not installed: pip install '.[service]'")

from memometer.serve import middleware
from memometer.serve.admission import BULK, MCP, MODEL, SEARCH, Admission, Pool, TooManyRequests
from tests.conftest import completion
from tests.serving import in_thread

POOLS = {
    SEARCH: Pool(slots=4, per_tenant=2, waiting=50, seconds=30),
    MODEL: Pool(slots=4, per_tenant=2, waiting=4, seconds=30),
    BULK: Pool(slots=2, per_tenant=1, waiting=5, seconds=30),
    MCP: Pool(slots=2, per_tenant=1, waiting=5, seconds=30),
}


def test_a_tenant_waits_for_few_requests_of_another() -> None:
    """Twenty requests of one tenant are there first; another tenant's request is the third or fourth to run."""
    order: list[str] = []

    async def request(admission: Admission, tenant: str, number: int) -> None:
        release = await admission.acquire(SEARCH, tenant)
        await anyio.sleep(0.001)
        order.append(f"{tenant}{number}")
        release()
        release()  # again; it must not free another request's slot

    async def run() -> None:
        admission = Admission({SEARCH: Pool(slots=2, per_tenant=2, waiting=50, seconds=1)})
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(request, admission, "noisy", number)
            await anyio.sleep(0)
            for number in range(3):
                group.start_soon(request, admission, "quiet", number)
        assert [order.index(f"quiet{number}") < 10 for number in range(3)] == [True] * 3
        assert admission.waiting(SEARCH) == 0
        assert not admission._places

    anyio.run(run)


def test_too_many_waiting_requests_are_refused_and_leave_no_slot_behind() -> None:
    async def run() -> None:
        admission = Admission({SEARCH: Pool(slots=1, per_tenant=1, waiting=1, seconds=1)})
        release = await admission.acquire(SEARCH, "ada")
        with anyio.move_on_after(0.01):
            await admission.acquire(SEARCH, "ada")  # given up while it waits
        async with anyio.create_task_group() as group:
            group.start_soon(admission.acquire, SEARCH, "ada")
            await anyio.sleep(0)
            with pytest.raises(TooManyRequests):
                await admission.acquire(SEARCH, "ada")
            release()
        assert admission.waiting(SEARCH) == 0

    anyio.run(run)


@pytest.fixture
def blocked(server: Any) -> Iterator[threading.Event]:
    """A model that does not answer until the event is set."""
    event = threading.Event()

    def answer(number: int, body: Any) -> Any:
        event.wait(60)
        return completion("Sourdough")

    server.answer = answer
    yield event
    event.set()


def test_a_slow_model_stops_neither_other_tenants_nor_health_checks(
    tmp_path: Path, server: Any, blocked: threading.Event
) -> None:
    how = {"model": "openai/scripted", "api_base": server.url, "auth": True, "pools": POOLS}
    with in_thread(f"sqlite:///{tmp_path}/memory.db", **how) as service:
        noisy, quiet = ({"Authorization": f"Bearer {service.tokens.issue(name, at=1.0)}"} for name in ("ada", "bob"))
        body = {"question": "What does Tom bake?", "budget_tokens": 100}
        for headers in (noisy, quiet):
            service.post("/memory/store", json={"text": "I bake sourdough."}, headers=headers)
        with ThreadPoolExecutor(20) as pool:
            calls = [
                pool.submit(service.post, "/v1/memories/default/answer", json=body, headers=noisy, timeout=60)
                for _ in range(20)
            ]
            while sum(call.done() for call in calls) < 14:  # two run, four wait
                pass
            for headers in (noisy, quiet):
                assert service.post("/v1/memories/default/recall", json=body, headers=headers).status_code == 200
                assert service.post("/memory/store", json={"text": "kayak"}, headers=headers).status_code == 201
            assert service.get("/readyz").status_code == service.get("/livez").status_code == 200
            blocked.set()
            assert service.post("/v1/memories/default/answer", json=body, headers=quiet).status_code == 200
            codes = [call.result().status_code for call in calls]
        assert (codes.count(200), codes.count(429)) == (6, 14)


def test_a_late_request_is_answered(tmp_path: Path, server: Any, blocked: threading.Event) -> None:
    pools = {**POOLS, MODEL: Pool(slots=1, per_tenant=1, waiting=4, seconds=0.3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(middleware, "GRACE_SECONDS", 0)
        how = {"model": "openai/scripted", "api_base": server.url, "pools": pools}
        with in_thread(f"sqlite:///{tmp_path}/memory.db", **how) as service:
            service.post("/memory/store", json={"text": "I bake sourdough."})
            body = {"question": "What does Tom bake?", "budget_tokens": 100}
            for _ in range(2):  # the second one finds the slot taken, because the thread still waits
                late = service.post("/v1/memories/default/answer", json=body)
                assert late.status_code == 503
                assert late.headers["retry-after"]
            blocked.set()
            assert service.get("/memory/stats").status_code == 200


def test_a_body_that_does_not_arrive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.2)
    with in_thread(f"sqlite:///{tmp_path}/memory.db", pools=POOLS) as service:
        for method, path in (("POST", "/memory/store"), ("PUT", "/v1/memories/a/cartridge")):
            with socket.create_connection((service.base_url.host, service.base_url.port), timeout=20) as connection:
                head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
                connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
                assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_requests_of_other_sites_are_refused(tmp_path: Path) -> None:
    with in_thread(f"sqlite:///{tmp_path}/memory.db", hosts=("127.0.0.1", "localhost", "::1")) as service:
        own = f"{service.base_url.host}:{service.base_url.port}"
        for path in ("/v1/memories/default/consolidate", "/mcp", "/memory/store"):
            assert service.post(path, headers={"Origin": "http://evil.example"}).status_code == 403
            assert service.post(path, headers={"Origin": f"http://{own}"}).status_code != 403
        for host, status in (("LOCALHOST", 200), ("[::1]", 200), ("[::1]:8765", 200), ("evil", 403), ("[x", 403)):
            assert service.get("/memory/stats", headers={"Host": host}).status_code == status, host
