"""`memometer serve`: serve memories over REST and MCP."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from memometer.commands.memory import limit, model_options, open_memories, store_options
from memometer.serve import LOCAL_TENANT


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = store_options("Serve memories over REST, and over MCP at /mcp. The API reference is at /docs.")
    p.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s); others require tokens")
    p.add_argument("--port", type=limit, default=8765, help="default: %(default)s")
    p.add_argument(
        "--auth",
        action=argparse.BooleanOptionalAction,
        help="require bearer tokens (default: on unless bound to localhost)",
    )
    p.add_argument(
        "--rate",
        type=_rate,
        default=100.0,
        metavar="N",
        help="requests per second and tenant; 0 for no limit (default: %(default)g)",
    )
    p.add_argument(
        "--consolidate-after",
        type=limit,
        default=0,
        metavar="SECONDS",
        help="consolidate a memory after this time without new turns (default: never)",
    )
    p.add_argument(
        "--proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address of a proxy whose X-Forwarded-For header names the caller; may be repeated (default: none)",
    )
    p.add_argument(
        "--max-turns", type=limit, default=0, metavar="N", help="turns that each tenant may store (default: no limit)"
    )
    p.add_argument(
        "--max-model-tokens",
        type=_tokens,
        default=0,
        metavar="N",
        help="tokens of recalled text that each tenant may show to the model per day (default: no limit)",
    )
    p.add_argument("--systems", nargs="+", metavar="NAME", help="memory systems that tenants may create (default: all)")
    p.add_argument(
        "--answers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let tenants use the language model, at your cost",
    )
    for name, content in (("access", "every request"), ("audit", "requests that store, change, export or delete")):
        p.add_argument(
            f"--{name}-log", metavar="FILE", help=f"add a JSON line to FILE for {content}; - for standard error"
        )
    model_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    args = parser().parse_args(argv)
    from memometer.serve.server import serve
    from memometer.serve.tenant_limits import TenantLimits

    with open_memories(args, create=True) as memories:
        serve(
            memories,
            tenant=LOCAL_TENANT,
            host=args.host,
            port=args.port,
            auth=args.auth,
            per_second=args.rate,
            consolidate_after_seconds=args.consolidate_after,
            proxies=args.proxy,
            limits=TenantLimits(
                args.max_turns,
                frozenset(args.systems) if args.systems else None,
                args.answers,
                args.max_model_tokens,
            ),
            access_log=args.access_log,
            audit_log=args.audit_log,
        )
    return 0


def _tokens(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of tokens, 0 or more")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of requests, 0 or more")
    return rate
