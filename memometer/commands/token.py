"""`memometer token`: create, list or revoke access tokens of tenants."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from memometer.commands.memory import open_memories, print_result, store_options


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = store_options("Create an access token of a tenant. Without a tenant, list the tokens.")
    p.add_argument(
        "tenant", nargs="?", metavar="TENANT", help="requests with the token see this tenant's memories only"
    )
    p.add_argument("--revoke", metavar="ID", help="revoke the token with this id, or all tokens of a tenant")
    p.add_argument("--json", action="store_true", help="print JSON")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Create, list or revoke tokens.

    Returns:
        0, or 1 if there was no token to revoke.
    """
    from memometer.serve.auth import AccessTokens
    from memometer.serve.registry import check_name

    args = parser().parse_args(argv)
    with open_memories(args, create=True) as memories:
        tokens = AccessTokens(memories.store)
        if args.revoke:
            count = tokens.revoke(args.revoke)
            print_result(args, {"revoked": count}, f"Revoked tokens: {count}.")
            return 0 if count else 1
        if args.tenant:
            check_name("tenant", args.tenant)
            token = tokens.issue(args.tenant, at=memories.now())
            print_result(args, {"tenant": args.tenant, "token": token}, token)
            return 0
        issued = tokens.issued()
    lines = [f"{t.id}  {t.tenant:<20} {datetime.fromtimestamp(t.created_at, UTC):%Y-%m-%d %H:%M}" for t in issued]
    print_result(args, [vars(token) for token in issued], "\n".join(lines) or "No tokens.")
    return 0
