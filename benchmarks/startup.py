"""Start-up time of the commands, compared with the start of Python itself in the same run.

    python benchmarks/startup.py [--repeats 10] [--encoder minilm] [--json FILE]

The commands run in turn, so that a change in the machine's load affects all of them. The table shows the median time
and its ratio to `python -c pass`. `recall` reads a new SQLite store with one turn and loads the encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINE = "python -c pass"


def commands(encoder: str) -> dict[str, list[str]]:
    """Label -> arguments of the Python interpreter."""
    memometer = ["-m", "memometer"]
    return {
        BASELINE: ["-c", "pass"],
        "import memometer": ["-c", "import memometer"],
        "memometer --help": [*memometer, "--help"],
        "memometer add --help": [*memometer, "add", "--help"],
        "memometer eval --help": [*memometer, "eval", "--help"],
        "memometer list": [*memometer, "list"],
        "memometer recall": [*memometer, "recall", "Who sold a kayak?", "--encoder", encoder],
    }


def main() -> int:
    """Print the table; with --json write it to a file too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MEMOMETER_URL": f"sqlite:///{folder}/memory.db", "PYTHONPATH": str(ROOT)}

        def seconds(words: list[str]) -> float:
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], env=environment, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - started

        seconds(["-m", "memometer", "add", "Nadia sold the kayak.", "--encoder", args.encoder])
        timed: dict[str, list[float]] = {label: [] for label in commands(args.encoder)}
        for _ in range(args.repeats):
            for label, words in commands(args.encoder).items():
                timed[label].append(seconds(words))
    median = {label: statistics.median(times) for label, times in timed.items()}
    for label, value in median.items():
        print(f"{label:<24} {1000 * value:7.0f} ms {value / median[BASELINE]:7.1f} x")
    if args.json:
        measures = {label: {"seconds": value, "ratio": value / median[BASELINE]} for label, value in median.items()}
        args.json.write_text(json.dumps(measures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
