"""`memometer simulate`: write synthetic conversations with known evidence."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from memometer import benchmarks
from memometer.commands.argument_types import count, positive
from memometer.errors import UserError


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = argparse.ArgumentParser(
        description="Write synthetic conversations in the format of a benchmark, for `evaluate.py --data FILE`. The "
        "same seed gives the same file. A score on them says nothing about the benchmark.",
        allow_abbrev=False,
    )
    p.add_argument("--benchmark", metavar="NAME", help=f"default {benchmarks.DEFAULT}")
    p.add_argument("--seed", type=count, default=1, metavar="N")
    p.add_argument("--conversations", type=positive, default=10, metavar="N")
    p.add_argument("--out", type=Path, required=True, metavar="FILE")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, and print its statistics next to the benchmark's.

    Raises:
        UserError: the benchmark has no synthetic conversations, or the file cannot be written.
    """
    args = parser().parse_args(argv)
    benchmark = benchmarks.load(args.benchmark)
    if benchmark.write_synthetic is None:
        raise UserError(f"{benchmark.title} has no synthetic conversations.")
    try:
        lines = benchmark.write_synthetic(args.out, args.seed, args.conversations)
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be written ({error.strerror}); name another file.") from error
    for line in [*lines, f"Written to {args.out}"]:
        print(f"SIMULATED  {line}")
    return 0
