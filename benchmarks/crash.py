"""Two processes store episodes and are killed with SIGKILL, again and again: is every acknowledged one there, once?

    python benchmarks/crash.py [--url sqlite:////tmp/crash.db] [--rounds 20] [--episodes 10000]

Each round starts two writers on one store and kills both at a random moment. At the end two more write what is left, so
that every round's resumed writes meet ids that are there already. Then every acknowledged episode is looked up, the
scope is scanned for doubles, and the store checks its index against its texts. Exits 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from stores import open_store
from stores.episode import Episode

SCOPE = "crash"
WORDS = "kayak bowl reed river lamp blue seven harbour violin bread stone winter".split()
VECTOR = 32
WRITER = """
import sys
sys.path.insert(0, {root!r})
from benchmarks.crash import write
write({url!r}, {name!r}, {first}, {last})
"""


def episode(name: str, number: int) -> tuple[Episode, np.ndarray]:
    """Always the same for the same name and number."""
    draw = np.random.Generator(np.random.PCG64([number, *name.encode()]))
    text = " ".join(draw.choice(WORDS, 8)) + f" {name}{number}"
    return Episode(f"{name}-{number}", text, at=float(number)), draw.normal(size=VECTOR).astype(np.float32)


def write(url: str, name: str, first: int, last: int) -> None:
    """Store episodes one by one, and say each number on standard output once it is stored."""
    with open_store(url) as store:
        for number in range(first, last):
            store.store_episode(SCOPE, *episode(name, number))
            print(number, flush=True)


def crash(url: str, *, rounds: int, episodes: int, seed: int = 0, most_seconds: float = 3.0) -> list[str]:
    """What is wrong after so many rounds of kills, in sentences. Each of two writers stores half of `episodes`."""
    draw = random.Random(seed)
    names = ("a", "b")
    acknowledged: dict[str, list[int]] = {name: [] for name in names}
    for number in range(rounds + 1):
        writers = {}
        for name in names:
            # Some of what was acknowledged is written again, as a client does that was not told.
            first = max(0, max(acknowledged[name], default=-1) - 2)
            last = episodes // 2 if number == rounds else min(episodes // 2, first + episodes // rounds)
            code = WRITER.format(root=str(Path(__file__).parent.parent), url=url, name=name, first=first, last=last)
            writers[name] = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        if number < rounds:
            for writer in writers.values():
                assert writer.stdout
                acknowledged_line = writer.stdout.readline()  # both are under way
                acknowledged[next(n for n, w in writers.items() if w is writer)] += map(int, acknowledged_line.split())
            time.sleep(draw.uniform(0, most_seconds))
            for writer in writers.values():
                writer.send_signal(signal.SIGKILL)
        for name, writer in writers.items():
            told, _ = writer.communicate()
            # A line that was cut off acknowledges nothing.
            acknowledged[name] += [int(line) for line in told.splitlines(keepends=True) if line.endswith("\n")]
    return wrong(url, {f"{name}-{number}" for name in names for number in acknowledged[name]}, names, episodes)


def wrong(url: str, acknowledged: set[str], names: tuple[str, ...], episodes: int) -> list[str]:
    with open_store(url) as store:
        found = Counter(known.id for known in store.scan(SCOPE))
        sentences = [f"{len(lost)} acknowledged episodes are lost."] if (lost := acknowledged - set(found)) else []
        if doubles := [id for id, count in found.items() if count > 1]:
            sentences.append(f"{len(doubles)} episodes are there twice.")
        if len(found) != len(names) * (episodes // 2):
            sentences.append(f"{len(found)} episodes are there, and {len(names) * (episodes // 2)} were written.")
        for id in random.Random(0).sample(sorted(acknowledged), min(50, len(acknowledged))):
            asked, vector = episode(*_parsed(id))
            best = store.retrieve_similar(SCOPE, asked.text, vector, 1, at=0.0)
            if not best or best[0].episode.id != id or best[0].episode.text != asked.text:
                sentences.append(f"{id} is not found by its own text and vector.")
        return sentences + store.check()


def _parsed(id: str) -> tuple[str, int]:
    name, _, number = id.partition("-")
    return name, int(number)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", help="a store to write into; default a new SQLite file")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = args.url or f"sqlite:///{folder}/crash.db"
        started = time.perf_counter()
        sentences = crash(url, rounds=args.rounds, episodes=args.episodes)
    seconds = time.perf_counter() - started
    print(f"{args.rounds} rounds of SIGKILL on two writers, {args.episodes:,} episodes, {seconds:.0f} s, {url}")
    for sentence in sentences:
        print(f"WRONG  {sentence}")
    if not sentences:
        print("Every acknowledged episode is there once, and the index agrees with the texts.")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
