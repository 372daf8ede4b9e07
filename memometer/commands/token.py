"""`memometer token`: create, list or revoke access tokens of tenants."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from memometer.commands.memory import limit, open_memories, print_result, store_options
from memometer.errors import UserError

if TYPE_CHECKING:
    from memometer.serve.tenants import TenantMemories


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    from memometer.serve.auth import RIGHTS

    p = store_options("Create an access token of a tenant. Without a tenant, list the tokens.")
    p.add_argument(
        "tenant", nargs="?", metavar="TENANT", help="requests with the token see this tenant's memories only"
    )
    p.add_argument(
        "--right", choices=RIGHTS, default="admin",
        help="what the token allows; admin also deletes and replaces memories (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--days", type=limit, metavar="N", help="days after which the token expires (default: never)")
    p.add_argument(
        "--keep-memories", action="store_true", help="give a tenant without tokens the memories that its name has"
    )
    p.add_argument("--rotate", metavar="ID", help="replace the token with this id by a new one")
    p.add_argument(
        "--export-tenant", nargs=2, metavar=("NAME", "FOLDER"),
        help="write a cartridge of each memory of a tenant, archived turns included, into a folder",
    )  # fmt: skip
    p.add_argument("--delete-tenant", metavar="NAME", help="delete a tenant's tokens, memories and turns permanently")
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
        if args.rotate:
            rotated = tokens.rotate(args.rotate, at=memories.now())
            if rotated is None:
                raise UserError(f"there is no token {args.rotate}; `memometer token` lists the tokens.")
            print_result(args, {"tenant": rotated[0].tenant, "token": rotated[1]}, rotated[1])
            return 0
        if args.export_tenant:
            return _export(memories, args)
        if args.delete_tenant:
            revoked, count = tokens.revoke(args.delete_tenant), memories.delete_tenant(args.delete_tenant)
            memories.store.erase()
            data = {"revoked": revoked, "removed": count}
            print_result(args, data, f"Deleted tenant {args.delete_tenant} with {count:,} turns and {revoked} tokens.")
            return 0
        if args.tenant:
            check_name("tenant", args.tenant)
            has_tokens = any(token.tenant == args.tenant for token in tokens.issued())
            if not (has_tokens or args.keep_memories) and memories.registry.entries(args.tenant):
                raise UserError(
                    f"tenant {args.tenant} has no token but has memories, perhaps of an earlier holder of the name; "
                    f"give --keep-memories, or delete them with: memometer token --delete-tenant {args.tenant}"
                )
            expires_at = memories.now() + 86_400 * args.days if args.days else None
            token = tokens.issue(args.tenant, at=memories.now(), right=args.right, expires_at=expires_at)
            print_result(args, {"tenant": args.tenant, "token": token}, token)
            return 0
        issued = tokens.issued()
    lines = [
        f"{t.id}  {t.tenant:<20} {t.right:<6} {_day(t.created_at)}  "
        f"expires {_day(t.expires_at)}  used {_day(t.used_at)}"
        for t in issued
    ]
    print_result(args, [vars(token) for token in issued], "\n".join(lines) or "No tokens.")
    return 0


def _export(memories: TenantMemories, args: argparse.Namespace) -> int:
    """Write the memories of a tenant into a folder: 1 if it has none."""
    from memometer.serve.cartridge_io import export_cartridge

    tenant, folder = args.export_tenant[0], Path(args.export_tenant[1])
    names = [entry.name for entry in memories.registry.entries(tenant)]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder} ({error.strerror}); name another folder.") from error
    for name in names:
        export_cartridge(memories, tenant, name, folder / f"{name}.cartridge", archived=True)
    data = {"tenant": tenant, "memories": names}
    print_result(args, data, f"Exported memories of tenant {tenant} to {folder}: {len(names)}.")
    return 0 if names else 1


def _day(at: float | None) -> str:
    return "never" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
