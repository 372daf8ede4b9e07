"""Migrate, back up, restore, consolidate, compact, check or salvage a store.

    memometer store migrate sqlite:///memory.db postgresql://user@host/name     copy all episodes; both may be in use
    memometer store consolidate sqlite:///memory.db --scope agent-1             merge near-duplicates
    memometer store compact sqlite:///memory.db                                 reduce disk use
    memometer store backup postgresql://user@host/name backup.db                one moment of a store, as one file
    memometer store restore backup.db sqlite:///new.db                          into an empty store
    memometer store salvage damaged.db sqlite:///new.db                         what can be read of a damaged file
    memometer store check sqlite:///memory.db                                   compare the index with the texts

An interrupted migration continues when the command is repeated.

Exit codes: 0 done, 1 problems found, 2 usage or store error, 130 interrupted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memometer.commands.help_formatter import HelpFormatter

if TYPE_CHECKING:
    from memometer.store.protocol import Store


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    verbs = made.add_subparsers(dest="verb", required=True, metavar="ACTION")
    verb = verbs.add_parser("migrate", help="copy all episodes to another store")
    verb.add_argument("source", metavar="FROM_URL")
    verb.add_argument("target", metavar="TO_URL")
    verb = verbs.add_parser("backup", help="write one moment of a store to a file, and verify it")
    verb.add_argument("source", metavar="URL")
    verb.add_argument("file", type=Path)
    for name, help in (
        ("restore", "copy a backup into an empty store, and verify it"),
        ("salvage", "copy what can be read of a damaged SQLite file into an empty store"),
    ):
        verb = verbs.add_parser(name, help=help)
        verb.add_argument("file", type=Path)
        verb.add_argument("target", metavar="URL")
    verb = verbs.add_parser("consolidate", help="merge near-duplicates and archive forgotten episodes")
    verb.add_argument("source", metavar="URL")
    verb.add_argument("--scope", help="scope to consolidate (default: all)")
    verb.add_argument(
        "--weights", choices=["default", "seed"], default="default", help="parameters of merging and forgetting"
    )
    verb.add_argument("--at", type=float, metavar="SECONDS", help="present time in Unix seconds (default: now)")
    verb.add_argument("--dry-run", action="store_true", help="print what would be merged and forgotten")
    verb.add_argument("--undo", action="store_true", help="restore what the last consolidation archived")
    for name, help in (("compact", "reduce disk use"), ("check", "compare the index with the texts")):
        verbs.add_parser(name, help=help).add_argument("source", metavar="URL")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from memometer.store import open_store
    from memometer.store.url import check_exists

    if args.verb in ("restore", "salvage"):
        return _restore(args)
    check_exists(args.source)
    with open_store(args.source) as store:
        if args.verb == "migrate":
            return _migrate(store, args)
        if args.verb == "backup":
            from memometer.store.backup import backup

            print(f"{args.file} holds the store; SHA-256 of its content: {backup(store, args.file)}.")
            return 0
        if args.verb == "consolidate":
            return _consolidate(store, args)
        if args.verb == "compact":
            store.compact()
            return 0
        problems = store.check()
        print("\n".join(problems) or "The index matches the texts.")
        return 1 if problems else 0


def _restore(args: argparse.Namespace) -> int:
    """Restore a backup, or salvage a damaged file: 1 if something was lost."""
    from memometer.store import open_store
    from memometer.store.backup import restore, salvage
    from memometer.store.episode import StoreError
    from memometer.store.url import without_password

    if not args.file.is_file():
        raise StoreError(f"{args.file} is not a file; name a backup or a SQLite store.")
    with open_store(args.target) as target:
        if args.verb == "restore":
            print(f"{without_password(args.target)} is restored; SHA-256 of its content: {restore(args.file, target)}.")
            return 0
        saved, lost = salvage(args.file, target)
    print(f"Saved {saved:,} episodes; lost {lost:,}.")
    return 1 if lost else 0


def _migrate(store: Store, args: argparse.Namespace) -> int:
    from memometer.store import open_store
    from memometer.store.episode import StoreError
    from memometer.store.migrate import migrate
    from memometer.store.url import without_password

    if args.target == args.source:
        raise StoreError("cannot copy a store to itself; name another store as TO_URL.")
    with open_store(args.target) as target:
        count = migrate(store, target)
        target.erase()  # what was deleted in the source since an earlier migration
        print(f"{count:,} episodes are in {without_password(args.target)}.")
    return 0


def _consolidate(store: Store, args: argparse.Namespace) -> int:
    from memometer.store.hybrid_scoring import NAMED
    from memometer.store.migrate import OWN_SCOPES

    at = time.time() if args.at is None else args.at
    for scope in [args.scope] if args.scope else [s for s in store.scopes() if s not in OWN_SCOPES]:
        if args.undo:
            print(f"{scope}: {len(store.undo_consolidation(scope))} restored.")
            continue
        done = store.consolidate(scope, at=at, weights=NAMED[args.weights], dry_run=args.dry_run)
        merged = sum(map(len, done.merged.values()))
        would = " (dry run; nothing was changed)" if args.dry_run else ""
        print(f"{scope}: {merged} merged into {len(done.merged)}, {len(done.forgotten)} forgotten{would}.")
        if args.dry_run:
            for first, others in done.merged.items():
                print(f"  {first} <- {', '.join(others)}")
            for id in done.forgotten:
                print(f"  {id} forgotten")
    return 0
