"""`memometer mcp`: serve memories over MCP on standard input and output."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from memometer.commands.memory import open_memories, store_options
from memometer.serve import LOCAL_TENANT


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    return store_options("Serve memories over MCP on standard input and output.")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until standard input is closed."""
    args = parser().parse_args(argv)
    from memometer.serve.mcp_server import serve_stdio, server

    with open_memories(args, create=True) as memories:
        serve_stdio(server(memories, tenant=LOCAL_TENANT))
    return 0
