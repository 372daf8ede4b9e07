"""`memometer mcp`: serve memories over MCP on standard input and output."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from memometer.commands.memory import open_memories, store_options
from memometer.errors import UserError
from memometer.serve import LOCAL_TENANT


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    return store_options("Serve memories over MCP on standard input and output.")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until standard input is closed."""
    args = parser().parse_args(argv)
    try:
        import anyio

        from memometer.serve.mcp_server import server
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run: pip install 'memometer[mcp]'") from error
    with open_memories(args, create=True) as memories:
        anyio.run(server(memories, tenant=LOCAL_TENANT).run_stdio_async)
    return 0
