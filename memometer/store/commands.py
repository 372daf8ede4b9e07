"""Look after stores from the command line.

    memometer store migrate sqlite:///memory.db postgresql://user@host/name     copy all, while both are in use
    memometer store consolidate sqlite:///memory.db --scope agent-1             merge near-duplicates
    memometer store compact sqlite:///memory.db                                 give back space
    memometer store check sqlite:///memory.db                                   does the index agree with the texts?

Exit codes: 0 done, 1 failed or found wrong, 2 usage, 4 stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from memometer.store import open_store
from memometer.store.episode import StoreError
from memometer.store.hybrid_scoring import NAMED
from memometer.store.migrate import migrate
from memometer.store.url import must_be_there, without_password


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="memometer store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("migrate", help="copy all episodes into another store")
    verb.add_argument("source", metavar="FROM_URL")
    verb.add_argument("target", metavar="TO_URL")
    verb = verbs.add_parser("consolidate", help="merge near-duplicates, archive what is forgotten")
    verb.add_argument("source", metavar="URL")
    verb.add_argument("--scope", help="default: all")
    verb.add_argument("--weights", choices=sorted(NAMED), default="default", help="by which to merge and forget")
    verb.add_argument("--at", type=float, metavar="SECONDS", help="as if it were then (Unix time; default now)")
    for name, what in (("compact", "give back space"), ("check", "compare the index with the texts")):
        verbs.add_parser(name, help=what).add_argument("source", metavar="URL")
    args = parser.parse_args(argv)
    try:
        must_be_there(args.source)
        with open_store(args.source) as store:
            if args.verb == "migrate":
                if args.target == args.source:
                    raise StoreError("a store cannot be copied into itself; name another one to copy it to.")
                with open_store(args.target) as target:
                    print(f"{migrate(store, target):,} episodes are in {without_password(args.target)}.")
            elif args.verb == "consolidate":
                at = time.time() if args.at is None else args.at
                for scope in [args.scope] if args.scope else store.scopes():
                    done = store.consolidate(scope, at=at, weights=NAMED[args.weights])
                    merged = sum(map(len, done.merged.values()))
                    print(f"{scope}: {merged} merged into {len(done.merged)}, {len(done.forgotten)} forgotten.")
            elif args.verb == "compact":
                store.compact()
            elif wrong := store.check():
                print("\n".join(wrong))
                return 1
            else:
                print("The index agrees with the texts.")
    except StoreError as error:
        print(f"memometer store: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "; the same command goes on where it was" if args.verb == "migrate" else ""
        print(f"memometer store: stopped{again}.", file=sys.stderr)
        return 4
    return 0
