"""`memometer data`: find or download a benchmark's data and verify them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from memometer import benchmarks
from memometer.benchmarks.arguments import add_data_arguments


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = argparse.ArgumentParser(
        description="Find or download a benchmark's data and verify them. Exit code 1 if a check fails.",
        allow_abbrev=False,
    )
    add_data_arguments(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Print the checks of the data.

    Returns:
        0 if all hold, 1 otherwise.

    Raises:
        DataError: the data cannot be used.
    """
    args = parser().parse_args(argv)
    benchmark = benchmarks.load(args.benchmark)
    data = benchmark.load(args.data)
    lines, ok = benchmark.verify(data)
    for line in lines:
        print(f"{data.prefix}{line}")
    return 0 if ok else 1
