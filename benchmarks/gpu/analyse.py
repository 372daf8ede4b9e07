"""Compare the arms of a GPU run, paired by question and clustered by conversation. Needs no GPU.

python benchmarks/gpu/analyse.py gpu_results
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAIRS = (
    ("supervised", "base with examples"),
    ("after GRPO", "base with examples"),
    ("after GRPO", "supervised"),
    ("supervised", "base"),
)
MEASURES = (("F1", "f1", True), ("F1 with list precision", "balanced_f1", True), ("abstentions", "f1", False))


def compare(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each pair of arms and each measure."""
    from memometer.stats.intervals import paired

    arms: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        arms.setdefault(row["arm"], {})[row["question_id"]] = row
    lines = []
    for name, key, answerable in MEASURES:
        for one, other in PAIRS:
            mine, theirs = arms.get(one, {}), arms.get(other, {})
            ids = [id for id in mine if id in theirs and mine[id]["answerable"] == answerable]
            if not ids:
                continue
            a, b = ([arm[id][key] for id in ids] for arm in (mine, theirs))
            found = paired(a, b, [mine[id]["conversation"] for id in ids])
            interval = f"[{found.low:+.3f}, {found.high:+.3f}]" if found.low is not None else "[no interval]"
            lines.append(
                f"{name}: {other} {sum(b) / len(b):.3f} -> {one} {sum(a) / len(a):.3f}: {found.difference:+.3f} "
                f"{interval}, n = {found.n}, {found.clusters} conversations"
            )
    return lines


def main(argv: list[str] | None = None) -> int:
    """Print the comparisons and the log's measurements."""
    folder = Path((sys.argv[1:] if argv is None else argv)[0])
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    print("\n".join(compare(rows)))
    for line in (folder / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "peak_gb" in record:
            print(
                f"{record['what']}: {record['steps']} steps in {record['train_seconds']} s, tokens per second "
                f"{record['tokens_per_second']}, peak {record['peak_gb']} GB, estimated {record['estimated_gb']} GB"
            )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
