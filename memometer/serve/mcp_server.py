"""Named memories for agents that speak MCP: remember, recall, forget and list, over stdio or streamable HTTP.

    memometer mcp                 over stdio, on the memories of the command line
    memometer serve                      also over HTTP, at /mcp, for the tenant of the bearer token

Needs the extra `mcp`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from memometer.serve import TENANT, default_url
from memometer.serve.schemas import MemoryOut, StoredOut, Tokens, TurnOut
from memometer.serve.tenants import DEFAULT_NAME, TOLD, NamedMemories, Said

INSTRUCTIONS = """Long-term memory. Recall before answering what may have been said before; remember what will matter \
later, one fact or utterance at a time, with who said it."""

Memory = Annotated[str, Field(description="Which memory.")]


def server(memories: NamedMemories, *, tenant: str) -> MCPServer:
    """The tools, on the memories of the tenant that the service's guard found, or over stdio of `tenant`."""
    mcp: Any = MCPServer("memometer", instructions=INSTRUCTIONS, log_level="WARNING")

    def whose(context: Context[Any, Any]) -> str:
        request = context.request_context.request
        return tenant if request is None else str(request.state.tenant)

    # Functions without `async` run in a pool of threads: nothing is encoded or stored on the event loop.

    @mcp.tool()
    def remember(
        text: Annotated[str, Field(min_length=1, description="What to remember, in a sentence or as it was said.")],
        context: Context[Any, Any],
        speaker: Annotated[str, Field(min_length=1, description="Who said it.")] = "user",
        memory: Memory = DEFAULT_NAME,
    ) -> StoredOut:
        """Remember something. It is kept when this returns."""
        with _told():
            memories.ensure(whose(context), memory)
            return StoredOut(memory=memory, ids=memories.observe(whose(context), memory, [Said(text, speaker)]))

    @mcp.tool()
    def recall(
        question: Annotated[str, Field(min_length=1, description="What is to be known.")],
        context: Context[Any, Any],
        budget_tokens: Annotated[Tokens, Field(description="How long the reply may be.")] = 1000,
        memory: Memory = DEFAULT_NAME,
    ) -> str:
        """What was said that fits a question, under the days on which it was said; empty where nothing was."""
        with _told():
            return memories.recall(whose(context), memory, question, budget_tokens=budget_tokens).text

    @mcp.tool()
    def forget(
        ids: Annotated[list[str], Field(min_length=1, description="As `list` and `remember` tell them.")],
        context: Context[Any, Any],
        memory: Memory = DEFAULT_NAME,
    ) -> list[str]:
        """Let nothing find these again. They are archived, not destroyed. Returns those that there were."""
        with _told():
            return memories.forget(whose(context), memory, ids)

    @mcp.tool(name="list")
    def list_turns(
        context: Context[Any, Any],
        limit: Annotated[int, Field(ge=1, le=1000, description="How many, the latest first.")] = 20,
        memory: Memory = DEFAULT_NAME,
    ) -> list[TurnOut]:
        """What was remembered last, with ids."""
        with _told():
            return [TurnOut.of(episode) for episode in memories.newest(whose(context), memory, k=limit)]

    @mcp.tool()
    def list_memories(context: Context[Any, Any]) -> list[MemoryOut]:
        """The memories that there are."""
        found = memories.all(whose(context))
        return [MemoryOut.of(named, memories.store.size(named.scope)) for named in found]

    made: MCPServer = mcp
    return made


@contextmanager
def _told() -> Iterator[None]:
    """What a caller can mend is said to it in our sentence."""
    try:
        yield
    except TOLD as error:
        raise ToolError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    import anyio

    parser = argparse.ArgumentParser(prog="memometer mcp", description="Memories over MCP's stdio.")
    parser.add_argument("--memory-url", metavar="URL", help="of the store; default MEMOMETER_URL, or one file")
    parser.add_argument("--encoder", metavar="NAME", help="makes the vectors; default minilm")
    args = parser.parse_args(argv)
    try:
        memories = NamedMemories(args.memory_url or default_url(), encoder=args.encoder)
    except TOLD as error:
        print(f"memometer mcp: {error}", file=sys.stderr)
        return 2
    try:
        anyio.run(server(memories, tenant=TENANT).run_stdio_async)
    except KeyboardInterrupt:
        pass
    finally:
        memories.close()
    return 0
