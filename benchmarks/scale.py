"""Measure ingest and recall of the adaptive memory while a simulated history grows to ten million tokens.

    python benchmarks/scale.py [--quick] [--seed 1] [--questions 100] [--out runs/scale]

The script uses one core. It measures at 1K, 3K, 10K, 30K, 100K and 280K turns (--quick: up to 10K), prints a table, and
writes scale.json and scale.svg to --out. The time to count tokens is reported separately.

Targets: the last rows take at most 1.5 times as long per turn as the middle ones; the p95 of recall is below 50 ms at
100K turns, and below 250 ms at 280K. Exit codes: 0 all targets are met, 1 one is missed.
"""

from __future__ import annotations

import os

# Set before NumPy is imported. A service has one core per request.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import gc
import json
import multiprocessing
import pickle
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from locomo.dataset import Question
from locomo.synthetic.simulate import history
from memometer.memory import Turn
from memometer.systems.adaptive import AdaptiveMemory
from memometer.token_counters import Tiktoken

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 280_000)
BUDGETS = (2_048, 20_000)
TARGETS_MS = {100_000: 50.0, 280_000: 250.0}
MAX_GROWTH = 1.5


class TimedCounter:
    """A token counter that measures its own time."""

    def __init__(self) -> None:
        self.count = Tiktoken("o200k_base")
        self.name = self.count.name
        self.seconds = 0.0
        self.count("")  # loads the vocabulary

    def __call__(self, text: str) -> int:
        started = time.perf_counter()
        tokens = self.count(text)
        self.seconds += time.perf_counter() - started
        return tokens


def write_history(path: Path, seed: int, turns: int) -> None:
    """Write the history to a file.

    It runs in its own process, so that the generator does not count in the measured memory. A short history is the
    start of the longest one, so that all runs with one seed use the same turns.
    """
    with path.open("wb") as file:
        for session, questions in history(seed, turns=SIZES[-1]):
            pickle.dump((session.turns, questions), file)
            turns -= len(session.turns)
            if turns <= 0:
                break


def read_history(path: Path) -> Iterator[tuple[tuple[Turn, ...], tuple[Question, ...]]]:
    with path.open("rb") as file:
        while True:
            try:
                yield pickle.load(file)
            except EOFError:
                return


def resident_bytes() -> int:
    """Return the resident memory of this process; its peak on systems without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(memory: AdaptiveMemory, state: Any, questions: list[Question], watch: TimedCounter) -> dict[str, Any]:
    """Recall the questions at each budget; return times in milliseconds and evidence recall, 0 to 100."""
    started = time.perf_counter()
    memory.recall(state, questions[0].text, BUDGETS[0])
    # The first question updates the index, so its time is reported separately.
    measures: dict[str, Any] = {"first_recall_ms": 1000 * (time.perf_counter() - started), "questions": len(questions)}
    for budget in BUDGETS:
        ms, own, found = [], [], []
        for question in questions:
            counted, started = watch.seconds, time.perf_counter()
            recall = memory.recall(state, question.text, budget)
            took = time.perf_counter() - started
            ms.append(1000 * took)
            own.append(1000 * (took - (watch.seconds - counted)))
            found.append(len(set(question.evidence) & set(recall.turn_ids)) / len(question.evidence))
        measures[str(budget)] = {
            "p50_ms": statistics.median(ms),
            "p95_ms": quantile(ms, 0.95),
            "p95_ms_without_counting": quantile(own, 0.95),
            "evidence_recall": 100 * statistics.mean(found),
        }
    return measures


def run(path: Path, sizes: tuple[int, ...], *, num_questions: int, seed: int) -> list[dict[str, Any]]:
    """Measure and print one row per size. The ingest times of a row cover the turns since the previous row."""
    watch = TimedCounter()
    memory = AdaptiveMemory(count=watch)
    turns, _ = next(read_history(path))
    state = memory.new()
    memory.observe(state, turns)
    memory.recall(
        state, turns[0].text, BUDGETS[0]
    )  # loads weights and vocabulary, which are not part of the time per turn
    state = memory.new()
    candidates: list[Question] = []
    rows: list[dict[str, Any]] = []
    gc.collect()
    empty, seconds, since, left = resident_bytes(), 0.0, 0, list(sizes)
    watch.seconds = 0.0
    for turns, questions in read_history(path):
        started = time.perf_counter()
        memory.observe(state, turns)
        seconds += time.perf_counter() - started
        candidates += [question for question in questions if question.gold is not None]
        n = len(state.turns)
        if n < left[0]:
            continue
        row = {
            "turns": n,
            "tokens": sum(state.line_tokens) + sum(state.header_tokens.values()),
            "ingest_s_per_1000": 1000 * (seconds - watch.seconds) / (n - since),
            "counting_s_per_1000": 1000 * watch.seconds / (n - since),
            "resident_bytes_per_turn": (resident_bytes() - empty) / n,
        }
        row |= measure(
            memory, state, random.Random(seed).sample(candidates, min(num_questions, len(candidates))), watch
        )
        rows.append(row)
        print(line(row), flush=True)
        seconds, watch.seconds, since = 0.0, 0.0, n
        left.pop(0)
        if not left:
            break
    return rows


HEAD = f"""\
                        s per 1,000 turns  resident  first      recall at 2,048 tokens        recall at 20,000 tokens
   turns       tokens   ingest  counting    B/turn      ms   p50 ms  p95 ms  own   found     p50 ms  p95 ms  own   found
{"-" * 117}"""


def line(row: dict[str, Any]) -> str:
    text = (
        f"{row['turns']:>8,} {row['tokens']:>12,} {row['ingest_s_per_1000']:>8.3f} {row['counting_s_per_1000']:>9.3f}"
    )
    text += f" {row['resident_bytes_per_turn']:>9,.0f} {row['first_recall_ms']:>7.1f}"
    for budget in BUDGETS:
        of = row[str(budget)]
        text += f"  {of['p50_ms']:>7.1f} {of['p95_ms']:>7.1f} {of['p95_ms_without_counting']:>6.1f}"
        text += f" {of['evidence_recall']:>6.1f} "
    return text


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each missed target. Targets of sizes that were not measured are ignored."""
    found = []
    if len(rows) > 2:
        middle, last = rows[len(rows) // 2]["ingest_s_per_1000"], rows[-1]["ingest_s_per_1000"]
        if last > MAX_GROWTH * middle:
            found.append(
                f"ingest is not linear: {last / middle:.2f} times as long per turn in the last row as in the middle one"
            )
    for row, size in zip(rows, SIZES, strict=False):
        p95 = max(row[str(budget)]["p95_ms"] for budget in BUDGETS)
        if p95 >= TARGETS_MS.get(size, p95 + 1):
            found.append(f"recall p95 is {p95:.0f} ms at {size:,} turns; the target is below {TARGETS_MS[size]:.0f} ms")
    return found


def svg(rows: list[dict[str, Any]]) -> str:
    """Draw four panels over the number of turns. SVG is written directly, to avoid a plotting library."""
    panels: list[tuple[str, dict[str, list[float]]]] = [
        ("ingest, s per 1,000 turns", {"memory": [r["ingest_s_per_1000"] for r in rows],
                                       "counting": [r["counting_s_per_1000"] for r in rows]}),
        ("recall p95, ms", {f"{b:,} tokens": [r[str(b)]["p95_ms"] for r in rows] for b in BUDGETS}),
        ("resident, bytes per turn", {"all": [r["resident_bytes_per_turn"] for r in rows]}),
        ("evidence recall, %", {f"{b:,} tokens": [r[str(b)]["evidence_recall"] for r in rows] for b in BUDGETS}),
    ]  # fmt: skip
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="760" height="520" font-family="sans-serif" font-size="11">'
    ]
    parts.append('<rect width="760" height="520" fill="white"/>')
    across = [i / max(1, len(rows) - 1) for i in range(len(rows))]  # the sizes grow by about the same factor
    for number, (title, series) in enumerate(panels):
        left, top = 50 + 380 * (number % 2), 40 + 260 * (number // 2)
        most = max(max(values) for values in series.values()) or 1.0
        parts.append(f'<text x="{left}" y="{top - 12}" font-weight="bold">{title}</text>')
        parts.append(f'<path d="M{left},{top}V{top + 160}H{left + 280}" fill="none" stroke="black"/>')
        for share in (0.0, 0.5, 1.0):
            label = f"{most * share:,.3g}" if most < 1000 else f"{most * share:,.0f}"
            parts.append(f'<text x="{left - 5}" y="{top + 164 - 160 * share}" text-anchor="end">{label}</text>')
        for x, row in zip(across, rows, strict=True):
            size = f"{row['turns'] / 1000:.0f}K"
            parts.append(f'<text x="{left + 280 * x}" y="{top + 176}" text-anchor="middle">{size}</text>')
        for colour, (name, values) in zip(("#1f77b4", "#d62728"), series.items(), strict=False):
            points = [(left + 280 * x, top + 160 * (1 - v / most)) for x, v in zip(across, values, strict=True)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            shift = 70 * list(series).index(name)
            parts.append(f'<text x="{left + 10 + 1.3 * shift}" y="{top + 196}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="up to 10,000 turns")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--questions", type=int, default=100, metavar="N", help="number of questions at each size and budget"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/scale"), metavar="DIR")
    args = parser.parse_args()
    sizes = SIZES[:3] if args.quick else SIZES
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "history"
        started = time.perf_counter()
        writer = multiprocessing.get_context("spawn").Process(target=write_history, args=(path, args.seed, sizes[-1]))
        writer.start()
        writer.join()
        if writer.exitcode:
            return 1
        print(f"SIMULATED  {sizes[-1]:,} turns, seed {args.seed}, made in {time.perf_counter() - started:.0f} s")
        print("own: p95 in ms without counting tokens; found: evidence recall, categories 1-4")
        print(HEAD)
        rows = run(path, sizes, num_questions=args.questions, seed=args.seed)
    record = {"data": "SIMULATED", "seed": args.seed, "token_counter": "o200k_base", "rows": rows}
    (args.out / "scale.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / "scale.svg").write_text(svg(rows))
    wrong = missed(rows)
    for target in wrong:
        print(f"MISSED  {target}")
    print(f"Written to {args.out}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
