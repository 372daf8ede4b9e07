"""Cost of a SQLite store: disk use, memory, search time, and evidence recall with quantised vectors.

    python benchmarks/stores.py [--episodes 100000] [--bits 2] [--quick] [--out runs/stores]

The episodes are chains of word pairs from LOCOMO's turns (or the sample's), with the same lengths and random vectors,
in one scope. A new process opens the store with the NumPy encoder and asks 200 questions on one core. Evidence recall
is measured on LOCOMO, with float32 and with quantised vectors.

Targets: 40 MB on disk, 200 MB of resident memory and a p95 of 50 ms at 100,000 episodes; 250 MB of resident memory at
1,000,000; records at least six times smaller than text with float32 vectors, and nine times smaller when archived.
Exit codes: 0 all targets are met, 1 one is missed.
"""

from __future__ import annotations

import os

# Set before NumPy is imported. A service has one core per request.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import json
import multiprocessing
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from memometer.store import hybrid_scoring, open_store
from memometer.store.episode import Columns, Episode, SearchResult
from memometer.store.hybrid_scoring import DEFAULT, MAX_NEIGHBOUR_DISTANCE, Weights

DIMENSIONS = 384
SCOPE = "agent"
QUESTIONS = 200
BATCH = 500
MB = 1e6

Measures = dict[str, Any]


def turns() -> list[str]:
    """Return LOCOMO's lines."""
    from locomo.dataset import load

    return [turn.line.strip() for conversation in load(None).conversations for turn in conversation.turns]


def texts(lines: list[str], count: int, seed: int = 0) -> Iterator[str]:
    """Yield random lines with the lengths and word pairs of the given ones."""
    draw = random.Random(seed)
    following: dict[str, list[str]] = {}
    for line in lines:
        words = line.split()
        for word, after in pairwise(words):
            following.setdefault(word, []).append(after)
    for _ in range(count):
        model = draw.choice(lines).split()
        words = model[:2]
        while len(words) < len(model):
            words.append(draw.choice(following.get(words[-1]) or draw.choice(lines).split()))
        yield " ".join(words)


def build(path: str, lines: list[str], count: int, bits: int, out: Any) -> None:
    """Fill a store; send the time per episode and the size of the texts."""
    draw, written, number = np.random.default_rng(0), 0, 0
    started = time.perf_counter()
    with open_store(f"sqlite:///{path}?bits={bits}&synchronous=normal") as store:
        made = texts(lines, count)
        while batch := [text for _, text in zip(range(BATCH), made, strict=False)]:
            episodes = []
            for text in batch:
                session = number // 20
                details = {"n": number, "session": session}
                episodes.append(Episode(f"D{session}:{number % 20}", text, 1.7e9 + 86_400 * session, details=details))
                written += len(text.encode())
                number += 1
            store.store_episodes(SCOPE, episodes, draw.normal(size=(len(batch), DIMENSIONS)).astype(np.float32))
        seconds = time.perf_counter() - started
        store.compact()
    out.put({"ms_per_episode": 1000 * seconds / count, "text_bytes": written / count})


def ask(path: str, weights: str, lines: list[str], out: Any) -> None:
    """Open a store with an encoder and search it; send times and resident memory."""
    from memometer.models.bert import Bert

    encoder = Bert(Path(weights), name="minilm")
    draw = random.Random(1)
    queries = [" ".join(draw.choice(lines).split()[1:9]) for _ in range(QUESTIONS)]
    started = time.perf_counter()
    with open_store(f"sqlite:///{path}") as store:

        def recall(question: str) -> None:
            store.retrieve_similar(SCOPE, question, encoder([question])[0], 10, at=1.8e9)

        recall(queries[0])
        first = time.perf_counter() - started
        wall, cpu = [], []
        for question in queries:
            began, used = time.perf_counter(), time.process_time()
            recall(question)
            wall.append(1000 * (time.perf_counter() - began))
            cpu.append(1000 * (time.process_time() - used))
        out.put(
            {
                "first_s": first,
                "p50_ms": statistics.median(wall),
                "p95_ms": sorted(wall)[int(0.95 * len(wall))],
                "p95_cpu_ms": sorted(cpu)[int(0.95 * len(cpu))],
                "resident_mb": int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MB,
            }
        )


def archive(path: str, out: Any) -> None:
    with open_store(f"sqlite:///{path}") as store:
        store.change(SCOPE, archive=[episode.id for episode in store.scan(SCOPE)])
        store.compact()
    out.put({})


def in_new_process(function: Any, *args: Any) -> Measures:
    """Run a function in a new process and return what it sends."""
    context = multiprocessing.get_context("spawn")
    out = context.SimpleQueue()
    process = context.Process(target=function, args=(*args, out))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed.")
    found: Measures = out.get()
    return found


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def plain_bytes(lines: list[str], folder: Path) -> float:
    """Return the bytes per record of id, time, text and float32 vector in a SQLite file without an index."""
    with sqlite3.connect(folder / "plain.db") as file:
        file.execute("CREATE TABLE plain (id TEXT, at INTEGER, text TEXT, vector BLOB)")
        rows = ((f"D{n}", 1_700_000_000 + n, text, bytes(4 * DIMENSIONS)) for n, text in enumerate(texts(lines, 5000)))
        file.executemany("INSERT INTO plain VALUES (?, ?, ?, ?)", rows)
    file.close()
    size = (folder / "plain.db").stat().st_size / 5000
    (folder / "plain.db").unlink()
    return size


def evidence(bits: int) -> dict[str, list[float]]:
    """Return evidence recall at 10, 20 and 50 in percent: by vectors or all signals, in float32 or as stored."""
    from locomo.dataset import load
    from memometer.benchmarks.metrics import evidence_recall
    from memometer.models import encoders

    encoder = encoders.load()
    found: dict[str, list[list[float]]] = {}
    for conversation in load(None).conversations:
        store = open_store("memory:")
        store.default_bits = bits
        made = [Episode(turn.id, turn.line.strip(), turn.said_at.timestamp()) for turn in conversation.turns]
        sessions = ([turn.header + turn.line for turn in session.turns] for session in conversation.sessions)
        vectors = np.concatenate([encoder(session) for session in sessions])
        store.store_episodes(SCOPE, made, vectors)
        exact = {episode.id: vector for episode, vector in zip(made, vectors, strict=True)}
        for question in conversation.questions:
            if not question.answerable or not question.evidence:
                continue
            query = encoder([question.text])[0]
            for name, weights in (("vectors alone", Weights(lexical=0, dense=1, neighbours=0)), ("fused", DEFAULT)):
                hits = store.retrieve_similar(SCOPE, question.text, query, len(made), at=0.0, weights=weights)
                as_stored = [hit.episode.id for hit in hits]
                for how, ranked in (("as stored", as_stored), ("float32", rescored(hits, exact, query, made, weights))):
                    recalls = [evidence_recall(question.evidence, ranked[:k]) or 0.0 for k in (10, 20, 50)]
                    found.setdefault(f"{name}, {how}", []).append(recalls)
    return {name: (100 * np.mean(rows, axis=0)).tolist() for name, rows in found.items()}


def rescored(
    hits: list[SearchResult],
    exact: dict[str, np.ndarray],
    query: np.ndarray,
    made: list[Episode],
    weights: Weights,
) -> list[str]:
    """Return the ids of all episodes, ranked by their scores with float32 vectors."""
    lexical = {hit.episode.id: hit.lexical for hit in hits}
    matches = np.array([weights.lexical * lexical[e.id] + weights.dense * float(exact[e.id] @ query) for e in made])
    rows = np.arange(len(made))
    columns = Columns.of(rows.tolist(), made, None, None)
    windows = rows[:, None] + np.arange(-MAX_NEIGHBOUR_DISTANCE, MAX_NEIGHBOUR_DISTANCE + 1)
    scores = matches + weights.neighbours * hybrid_scoring.neighbour_scores(columns, matches, windows)
    return [made[n].id for n in sorted(rows.tolist(), key=lambda n: (-scores[n], made[n].id))]


def missed(measures: Measures) -> list[str]:
    """Return a line for each missed target."""
    wanted = [("ratio_searchable", 6.0, False), ("ratio_archived", 9.0, False)]
    if measures["episodes"] == 100_000:
        wanted += [("disk_mb", 40.0, True), ("resident_mb", 200.0, True), ("p95_ms", 50.0, True)]
    if measures["episodes"] == 1_000_000:
        wanted += [("resident_mb", 250.0, True)]
    return [
        f"{name} is {measures[name]:.1f}; the target is at {'most' if at_most else 'least'} {target:g}"
        for name, target, at_most in wanted
        if name in measures and (measures[name] > target if at_most else measures[name] < target)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--episodes", type=int, default=100_000, metavar="N")
    parser.add_argument("--bits", type=int, default=2, choices=[2, 4], help="bits per dimension of a vector")
    parser.add_argument("--quick", action="store_true", help="5,882 episodes, without evidence recall")
    parser.add_argument("--keep-archive", action="store_true", help="do not measure archived records")
    parser.add_argument("--out", type=Path, default=Path("runs/stores"), metavar="DIR")
    args = parser.parse_args()
    count = 5_882 if args.quick else args.episodes
    args.out.mkdir(parents=True, exist_ok=True)
    lines = turns()
    measures: Measures = {"episodes": count, "bits": args.bits, "dimensions": DIMENSIONS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = f"{folder}/memory.db"
        measures["plain_file_bytes"] = plain_bytes(lines, folder)
        measures |= in_new_process(build, path, lines, count, args.bits)
        measures["store_mb"] = on_disk(folder) / MB
        weights = Path(os.environ.get("EMBEDDED_MODELS_DIR", Path.home() / ".cache/memometer/models"))
        if (weights / "all-MiniLM-L6-v2" / "model.safetensors").exists():
            measures |= in_new_process(ask, path, str(weights / "all-MiniLM-L6-v2"), lines)
        measures["disk_mb"] = on_disk(folder) / MB  # includes the vector sidecar file
        bare = measures["text_bytes"] + 4 * DIMENSIONS
        record = 1e6 * measures["store_mb"] / count
        measures |= {
            "record_bytes": record,
            "ratio_searchable": measures["plain_file_bytes"] / record,
            "ratio_searchable_to_bare_bytes": bare / record,
        }
        if not args.keep_archive:
            in_new_process(archive, path)
            for sidecar in folder.glob("*.vectors"):
                sidecar.unlink()
            archived = on_disk(folder) / count
            measures |= {
                "archived_bytes": archived,
                "ratio_archived": measures["plain_file_bytes"] / archived,
                "ratio_archived_to_bare_bytes": bare / archived,
            }
    for name, value in measures.items():
        print(f"{name:<32} {value:,.1f}" if isinstance(value, float) else f"{name:<32} {value:,}")
    if not args.quick:
        measures["evidence_recall"] = evidence(args.bits)
        print("evidence recall at 10, 20, 50")
        for name, recalls in measures["evidence_recall"].items():
            print(f"  {name:<30} {'  '.join(f'{value:.1f}' for value in recalls)}")
    (args.out / f"stores-{count}-{args.bits}.json").write_text(json.dumps(measures, indent=1) + "\n")
    misses = missed(measures)
    for target in misses:
        print(f"MISSED  {target}")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
