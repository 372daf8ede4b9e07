"""The MCP server with the official client, over standard input and output and over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp", reason="MCP is not installed: pip install '.[mcp]'")
pytest.importorskip("prometheus_client", reason="the service is not installed: pip install '.[service]'")

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests.conftest import ROOT
from tests.serving import ENCODER, in_thread


async def use_all_tools(client: Client) -> None:
    """Call all tools as an agent does."""
    assert {tool.name for tool in (await client.list_tools()).tools} == {
        "remember", "recall", "forget", "list", "list_memories"
    }  # fmt: skip

    async def call(name: str, **arguments: Any) -> Any:
        result = await client.call_tool(name, arguments)
        assert not result.is_error, result.content
        content = result.structured_content
        return content["result"] if set(content) == {"result"} else content

    kayak = await call("remember", text="I sold the kayak to Oskar.", speaker="Nadia")
    await call("remember", text="The accordion is at the shop.")
    recalled = await call("recall", question="Who bought the kayak?", budget_tokens=60)
    assert "Nadia: I sold the kayak to Oskar." in recalled
    assert next(turn["text"] for turn in await call("list")) == "The accordion is at the shop."
    assert await call("forget", ids=kayak["ids"]) == kayak["ids"]
    assert "kayak" not in await call("recall", question="Who bought the kayak?")
    (memory,) = await call("list_memories")
    assert (memory["name"], memory["turns"], memory["archived"]) == ("default", 1, 1)
    for arguments in ({"question": "kayak", "memory": "nobody"}, {"question": "kayak", "budget_tokens": 0}):
        assert (await client.call_tool("recall", arguments)).is_error
    refused = await client.call_tool("recall", {"question": "kayak", "memory": "nobody"})
    assert "'nobody'" in refused.content[0].text  # type: ignore[union-attr]


def test_over_stdio(tmp_path: Path) -> None:
    async def talk() -> None:
        arguments = ["-m", "memometer", "mcp", "--memory-url", f"sqlite:///{tmp_path}/memory.db", "--encoder", ENCODER]
        async with Client(StdioServerParameters(command=sys.executable, args=arguments, cwd=ROOT)) as client:
            await use_all_tools(client)

    anyio.run(talk)


def test_over_http_per_tenant(tmp_path: Path) -> None:
    with in_thread(f"sqlite:///{tmp_path}/memory.db", auth=True) as service:

        async def talk(tenant: str) -> None:
            headers = {"Authorization": f"Bearer {service.tokens.issue(tenant, at=0.0)}"}
            async with httpx2.AsyncClient(headers=headers) as http:
                transport = streamable_http_client(f"{service.base_url}/mcp", http_client=http)
                async with Client(transport) as client:
                    await use_all_tools(client)

        anyio.run(talk, "ada")
        anyio.run(talk, "bob")
        headers = {"Authorization": f"Bearer {service.tokens.issue('eve', at=0.0)}", "Accept": "text/event-stream"}
        with service.stream("GET", "/mcp", headers=headers) as reply:  # a GET would never end
            assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
            assert reply.headers["content-type"] == "application/problem+json"
        refused = service.post("/mcp", content=json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}))
        assert refused.status_code == 401


def test_arguments_are_strict_and_tools_annotated(tmp_path: Path) -> None:
    from memometer.serve.mcp_server import server
    from memometer.serve.tenants import TenantMemories
    from tests.conftest import HashEncoder

    memories = TenantMemories("memory:", encoder=HashEncoder())

    async def talk() -> None:
        async with Client(server(memories, tenant="ada")) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            hints = {name: tool.annotations for name, tool in tools.items()}
            assert [name for name, hint in hints.items() if hint and hint.read_only_hint] == [
                "recall", "list", "list_memories"
            ]  # fmt: skip
            assert hints["forget"]
            assert hints["forget"].destructive_hint
            assert all(tool.input_schema["additionalProperties"] is False for tool in tools.values())
            for name, arguments in (
                ("remember", {"text": "kayak", "speakr": "Ada"}),
                ("remember", {"text": "a" * 10_001}),
                ("remember", {"text": "kayak", "speaker": "a" * 201}),
                ("recall", {"question": "kayak", "budget_tokens": "60"}),
                ("recall", {"question": "a" * 10_001}),
                ("list", {"limit": "5"}),
                ("list", {"limit": True}),
                ("forget", {"ids": ["x" * 200]}),
            ):
                assert (await client.call_tool(name, arguments)).is_error, (name, arguments)
            assert not (await client.call_tool("remember", {"text": "a" * 10_000})).is_error

    anyio.run(talk)


def test_every_line_gets_an_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memometer", "mcp", "--memory-url", f"sqlite:///{tmp_path}/memory.db", "--encoder"]
    call = '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"remember","arguments":{"text":"\\ud83d"}}}'
    lines = [call, "no json", "[1]", '{"jsonrpc":"2.0","id":8,"method":"ping"}']
    done = subprocess.run(
        [*command, ENCODER], input="\n".join(lines) + "\n", capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    errors = [(reply["id"], reply["error"]["code"]) for reply in replies if reply["id"] != 8]
    assert errors == [(7, -32600), (None, -32700), (None, -32600)]
    assert [reply["id"] for reply in replies].count(8) == 1
