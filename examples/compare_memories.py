"""Compare memory systems from Python: evidence recall on the built-in sample, and the paired comparison.

python examples/compare_memories.py
"""

import tempfile
from pathlib import Path

import memometer
from locomo.dataset import SAMPLE

with tempfile.TemporaryDirectory() as folder:
    evaluation = memometer.evaluate(
        recall_only=True,
        data=str(SAMPLE),
        split="all",
        systems=("adaptive", "bm25", "recent"),
        budgets=(128, 256),
        no_mlflow=True,
        run_dir=Path(folder) / "run",
    )
    print(f"This run is {evaluation.outcome}.")
    for system, found in evaluation.results["systems"].items():
        for budget, scores in found["budgets"].items():
            print(f"{system:<10}{budget:>6} tokens: evidence recall {100 * scores['evidence_recall']:5.1f} %")
    print(memometer.compare([evaluation.folder]))
