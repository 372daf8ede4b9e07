"""MCP server with the tools remember, recall, forget, list and list_memories.

    memometer mcp                 on standard input and output
    memometer serve               over streamable HTTP at /mcp, for the tenant of the bearer token

Needs the extra `mcp`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from memometer.errors import UserError
from memometer.serve.registry import DEFAULT_MEMORY
from memometer.serve.schemas import MemoryOut, StoredOut, Tokens, TurnOut
from memometer.serve.tenants import NewTurn, TenantMemories

INSTRUCTIONS = """Long-term memory. Call recall before you answer a question that may depend on earlier conversations. \
Call remember for facts that will matter later: one fact or utterance per call, with its speaker."""

Memory = Annotated[str, Field(description="Name of the memory.")]


def server(memories: TenantMemories, *, tenant: str) -> MCPServer:
    """Return the MCP server.

    Args:
        memories: the memories of all tenants.
        tenant: the tenant over standard input and output; over HTTP, the request determines it.
    """
    mcp: Any = MCPServer("memometer", instructions=INSTRUCTIONS, log_level="WARNING")

    def tenant_of(context: Context[Any, Any]) -> str:
        request = context.request_context.request
        return tenant if request is None else str(request.state.tenant)

    # Tool functions without `async` run in a thread pool, which keeps encoding and storage off the event loop.

    @mcp.tool()
    def remember(
        text: Annotated[str, Field(min_length=1, description="The fact or utterance to store.")],
        context: Context[Any, Any],
        speaker: Annotated[str, Field(min_length=1, description="Who said it.")] = "user",
        memory: Memory = DEFAULT_MEMORY,
    ) -> StoredOut:
        """Store a fact or utterance. It is durable when this returns."""
        with _user_errors():
            memories.registry.ensure(tenant_of(context), memory)
            ids = memories.observe(tenant_of(context), memory, [NewTurn(text, speaker)])
            return StoredOut(memory=memory, ids=ids)

    @mcp.tool()
    def recall(
        question: Annotated[str, Field(min_length=1, description="The question to search for.")],
        context: Context[Any, Any],
        budget_tokens: Annotated[Tokens, Field(description="Maximum length of the result.")] = 1000,
        memory: Memory = DEFAULT_MEMORY,
    ) -> str:
        """Search for what was said about a question. Returns dated lines; empty if nothing matches."""
        with _user_errors():
            return memories.recall(tenant_of(context), memory, question, budget_tokens=budget_tokens).text

    @mcp.tool()
    def forget(
        ids: Annotated[list[str], Field(min_length=1, description="Ids from `list` or `remember`.")],
        context: Context[Any, Any],
        memory: Memory = DEFAULT_MEMORY,
    ) -> list[str]:
        """Exclude turns from recall. They are archived, not deleted. Returns the ids that existed."""
        with _user_errors():
            return memories.forget(tenant_of(context), memory, ids)

    @mcp.tool(name="list")
    def list_turns(
        context: Context[Any, Any],
        limit: Annotated[int, Field(ge=1, le=1000, description="Maximum number of turns.")] = 20,
        memory: Memory = DEFAULT_MEMORY,
    ) -> list[TurnOut]:
        """List the newest turns with their ids, newest first."""
        with _user_errors():
            return [TurnOut.of(episode) for episode in memories.newest(tenant_of(context), memory, k=limit)]

    @mcp.tool()
    def list_memories(context: Context[Any, Any]) -> list[MemoryOut]:
        """List the memories."""
        entries = memories.registry.entries(tenant_of(context))
        return [MemoryOut.of(entry, memories.store.size(entry.scope)) for entry in entries]

    server: MCPServer = mcp
    return server


@contextmanager
def _user_errors() -> Iterator[None]:
    """Report errors that the caller can correct as tool errors."""
    try:
        yield
    except UserError as error:
        raise ToolError(str(error)) from error
