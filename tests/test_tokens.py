"""Access tokens: rights, expiry, rotation and last use; tenants; and what a tenant may do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the service is not installed: pip install '.[service]'")

from memometer import cli
from memometer.serve.auth import AccessTokens, InvalidToken
from memometer.serve.new_turns import NewTurn
from memometer.serve.tenant_limits import TenantLimits
from memometer.serve.tenants import TenantMemories
from memometer.store import open_store
from tests.conftest import HashEncoder
from tests.serving import in_thread


def test_a_token_allows_what_its_right_says(tmp_path: Path) -> None:
    with in_thread(f"sqlite:///{tmp_path}/memory.db", auth=True) as service:
        tokens = {right: service.tokens.issue("ada", at=1.0, right=right) for right in ("read", "write", "admin")}

        def status(right: str, method: str, path: str, **body: Any) -> int:
            headers = {"Authorization": f"Bearer {tokens[right]}"}
            return int(service.request(method, path, headers=headers, **body).status_code)

        question = {"json": {"question": "kayak"}}
        for right, allowed in (("read", 1), ("write", 2), ("admin", 3)):
            wanted = [
                ("GET", "/memory/stats", {}), ("POST", "/v1/memories/default/recall", question),
                ("POST", "/memory/store", {"json": {"text": "a kayak"}}), ("POST", "/mcp", {"json": {}}),
                ("POST", "/v1/memories/default/consolidate", {}),
                ("PUT", "/v1/memories/default/cartridge", {"content": b"x"}), ("DELETE", "/v1/memories/default", {}),
            ]  # fmt: skip
            needs = [1, 1, 2, 2, 2, 3, 3]
            for (method, path, body), need in zip(wanted, needs, strict=True):
                assert (status(right, method, path, **body) == 403) == (need > allowed), (right, path)


def test_tokens_expire_are_rotated_and_note_their_use() -> None:
    with open_store("memory:") as store:
        tokens = AccessTokens(store)
        token = tokens.issue("ada", at=10.0, right="write", expires_at=20.0)
        assert tokens.find(token, at=19.0)
        assert tokens.find(token, at=20.0) is None
        assert tokens.find(token + "x", at=1.0) is None
        (issued,) = tokens.issued()
        assert issued.used_at is None
        tokens.flush_uses()
        (issued,) = tokens.issued()
        assert (issued.used_at, issued.right, issued.expires_at) == (19.0, "write", 20.0)
        rotated = tokens.rotate(issued.id, at=15.0)
        assert rotated
        assert tokens.find(token, at=15.0) is None
        found = tokens.find(rotated[1], at=15.0)
        assert found
        assert (found.tenant, found.right, found.expires_at) == ("ada", "write", 20.0)
        assert tokens.rotate("unknown", at=15.0) is None
        with pytest.raises(InvalidToken, match="command line"):
            tokens.issue("local", at=1.0)


def test_a_new_holder_of_a_name_does_not_see_the_former_ones_memories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/memory.db"

    def token(*words: str) -> Any:
        code = cli.main(["token", *words, "--memory-url", url, "--json"])
        printed = capsys.readouterr()
        return json.loads(printed.out) if code == 0 else (code, printed.err)

    token("ada")
    memories = TenantMemories(url, encoder=HashEncoder())
    for tenant in ("ada", "bob"):
        memories.registry.ensure(tenant, "diary")
        memories.observe(tenant, "diary", [NewTurn(f"the secret of {tenant}")])
    memories.close()
    assert "token" in token("ada"), "a second token of the same holder"
    token("--revoke", "ada")
    code, error = token("ada")
    assert code == 2
    assert "--delete-tenant ada" in error
    assert "token" in token("ada", "--keep-memories")
    assert token("--delete-tenant", "ada") == {"revoked": 1, "removed": 1}
    assert token() == []
    assert "token" in token("ada")
    memories = TenantMemories(url, encoder=HashEncoder())
    assert memories.registry.entries("ada") == []
    assert len(memories.newest("bob", "diary", k=9)) == 1
    memories.close()
    assert b"secret of ada" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token("local")[0] == 2


def test_the_operator_limits_what_tenants_do(tmp_path: Path) -> None:
    with in_thread(f"sqlite:///{tmp_path}/memory.db") as service:
        service.memories.limits = TenantLimits(turns=2, systems=frozenset({"episodic", "summary"}), answers=False)
        for text, status in (("a kayak", 201), ("a bowl", 201), ("a lamp", 403)):
            assert service.post("/memory/store", json={"text": text}).status_code == status
        for system, status in (("episodic", 201), ("adaptive", 403), ("summary", 403)):
            assert service.put(f"/v1/memories/{system}", json={"system": system}).status_code == status
        assert service.post("/v1/memories/default/answer", json={"question": "kayak?"}).status_code == 403
        assert service.get("/memory/stats").json()["turns"] == 2
