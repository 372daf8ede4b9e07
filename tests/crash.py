"""Two processes store episodes and are killed in repeated rounds; all acknowledged episodes must survive."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from memometer.store import open_store
from memometer.store.episode import Episode

SCOPE = "crash"
WRITERS = ("a", "b")
WORDS = "kayak bowl reed river lamp blue seven harbour violin bread stone winter".split()
DIMENSIONS = 32
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.crash import write
write({url!r}, {name!r}, {first}, {last})
"""


def episode(name: str, number: int) -> tuple[Episode, np.ndarray]:
    """Return the same episode and vector for the same name and number."""
    draw = np.random.Generator(np.random.PCG64([number, *name.encode()]))
    text = " ".join(draw.choice(WORDS, 8)) + f" {name}{number}"
    return Episode(f"{name}-{number}", text, at=float(number)), draw.normal(size=DIMENSIONS).astype(np.float32)


def write(url: str, name: str, first: int, last: int) -> None:
    """Store episodes one by one and print the number of each after it is stored."""
    with open_store(url) as store:
        for number in range(first, last):
            store.store_episode(SCOPE, *episode(name, number))
            print(number, flush=True)


def crash(url: str, *, rounds: int, episodes: int, seed: int = 0) -> list[str]:
    """Kill two writers in each round and return the problems found afterwards.

    In each round both writers are killed at a random moment. The next round repeats the last acknowledged writes, like
    a client that missed the reply. A last round without a kill stores the rest.

    Args:
        url: store to write.
        rounds: number of rounds with a kill.
        episodes: least number of episodes to store in total.
        seed: seed of the random moments.
    """
    draw = random.Random(seed)
    acknowledged: dict[str, list[int]] = {name: [] for name in WRITERS}
    problems = []
    for number in range(rounds + 1):
        is_killed = number < rounds
        processes = {}
        for name in WRITERS:
            first = max(0, max(acknowledged[name], default=-1) - 2)
            last = sys.maxsize if is_killed else episodes // 2  # a finished writer could not be killed
            script = SCRIPT.format(root=str(ROOT), url=url, name=name, first=first, last=last)
            processes[name] = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        if is_killed:
            # One line of each shows that both have begun.
            for name in (*WRITERS, *draw.randint(0, episodes // rounds) * [WRITERS[number % 2]]):
                stdout = processes[name].stdout
                assert stdout
                acknowledged[name] += map(int, stdout.readline().split())
            for process in processes.values():
                process.send_signal(signal.SIGKILL)
        for name, process in processes.items():
            rest, _ = process.communicate()
            # An incomplete line acknowledges nothing.
            acknowledged[name] += [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
            if process.returncode != (-signal.SIGKILL if is_killed else 0):
                problems.append(f"A writer of round {number + 1} ended with code {process.returncode}.")
    ids = {f"{name}-{number}" for name in WRITERS for number in acknowledged[name]}
    return problems + problems_of(url, ids, episodes)


def problems_of(url: str, acknowledged: set[str], episodes: int) -> list[str]:
    """Return lost, duplicate, missing and unsearchable episodes, and what the store's own check finds."""
    with open_store(url) as store:
        stored = Counter(known.id for known in store.scan(SCOPE))
        problems = [f"{len(lost)} acknowledged episodes are lost."] if (lost := acknowledged - set(stored)) else []
        if duplicates := [id for id, count in stored.items() if count > 1]:
            problems.append(f"{len(duplicates)} episodes are stored twice.")
        for name in WRITERS:
            numbers = sorted(number for of, number in map(_parsed, stored) if of == name)
            if len(numbers) < episodes // 2 or numbers != list(range(len(numbers))):
                problems.append(f"Writer {name} has gaps in its episodes.")
        for id in random.Random(0).sample(sorted(acknowledged), min(50, len(acknowledged))):
            expected, vector = episode(*_parsed(id))
            best = store.retrieve_similar(SCOPE, expected.text, vector, 1, at=0.0)
            if not best or best[0].episode.id != id or best[0].episode.text != expected.text:
                problems.append(f"{id} is not found by its own text and vector.")
        return problems + store.check()


def _parsed(id: str) -> tuple[str, int]:
    name, _, number = id.partition("-")
    return name, int(number)
