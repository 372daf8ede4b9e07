"""Durability of a store: two processes store episodes and are killed with SIGKILL in repeated rounds (tests/crash.py).

    python benchmarks/store_durability.py [--url sqlite:////tmp/crash.db] [--rounds 20] [--episodes 10000]

At the end every acknowledged episode must exist once and be found, without gaps, and the index must match the texts.
Exit codes: 0 no problem, 1 problems.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.crash import crash


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", help="store to write (default: a new SQLite file)")
    parser.add_argument("--rounds", type=int, default=20, help="number of kills (default: 20)")
    parser.add_argument("--episodes", type=int, default=10_000, help="number of episodes to store (default: 10,000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = args.url or f"sqlite:///{folder}/crash.db"
        started = time.perf_counter()
        problems = crash(url, rounds=args.rounds, episodes=args.episodes)
    seconds = time.perf_counter() - started
    print(f"{args.rounds} rounds, {args.episodes:,} episodes, {seconds:.0f} s, {url}")
    print("\n".join(problems) or "Every acknowledged episode is stored once, and the index matches the texts.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
