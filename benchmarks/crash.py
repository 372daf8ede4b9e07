"""Two processes store episodes and are killed with SIGKILL, again and again: is every acknowledged one there, once?

    python benchmarks/crash.py [--url sqlite:////tmp/crash.db] [--rounds 20] [--episodes 10000]

Each round starts two writers on one store and kills both in the middle of their inserts, at a random one. At the end
two more write what is left, so that every round's resumed writes meet ids that are there already. Then every
acknowledged episode is looked up, the scope is scanned for doubles and gaps, and the store checks its index against its
texts. Exits 1 where anything is wrong.
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

from memometer.store import open_store
from memometer.store.episode import Episode

SCOPE = "crash"
NAMES = ("a", "b")
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


def crash(url: str, *, rounds: int, episodes: int, seed: int = 0) -> list[str]:
    """What is wrong after so many rounds of kills, in sentences. Two writers store at least `episodes` in all."""
    draw = random.Random(seed)
    acknowledged: dict[str, list[int]] = {name: [] for name in NAMES}
    sentences = []
    for number in range(rounds + 1):
        killed = number < rounds
        writers = {}
        for name in NAMES:
            # Some of what was acknowledged is written again, as a client does that was not told.
            first = max(0, max(acknowledged[name], default=-1) - 2)
            last = sys.maxsize if killed else episodes // 2  # who has finished cannot be killed
            code = WRITER.format(root=str(Path(__file__).parent.parent), url=url, name=name, first=first, last=last)
            writers[name] = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        if killed:
            for name in (*NAMES, *draw.randint(0, episodes // rounds) * [NAMES[number % 2]]):  # both are under way
                stdout = writers[name].stdout
                assert stdout
                acknowledged[name] += map(int, stdout.readline().split())
            for writer in writers.values():
                writer.send_signal(signal.SIGKILL)
        for name, writer in writers.items():
            told, _ = writer.communicate()
            # A line that was cut off acknowledges nothing.
            acknowledged[name] += [int(line) for line in told.splitlines(keepends=True) if line.endswith("\n")]
            if writer.returncode != (-signal.SIGKILL if killed else 0):
                sentences.append(f"A writer of round {number + 1} ended by itself, with {writer.returncode}.")
    return sentences + wrong(url, {f"{name}-{number}" for name in NAMES for number in acknowledged[name]}, episodes)


def wrong(url: str, acknowledged: set[str], episodes: int) -> list[str]:
    with open_store(url) as store:
        found = Counter(known.id for known in store.scan(SCOPE))
        sentences = [f"{len(lost)} acknowledged episodes are lost."] if (lost := acknowledged - set(found)) else []
        if doubles := [id for id, count in found.items() if count > 1]:
            sentences.append(f"{len(doubles)} episodes are there twice.")
        for name in NAMES:
            numbers = sorted(number for of, number in map(_parsed, found) if of == name)
            if len(numbers) < episodes // 2 or numbers != list(range(len(numbers))):
                sentences.append(f"Of the episodes of writer {name}, some in between or at the end are not there.")
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
