"""The command-line arguments that choose a benchmark and its data file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from memometer import benchmarks

if TYPE_CHECKING:
    from memometer.benchmarks.protocol import Dataset


def add_data_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add `--benchmark` and `--data`."""
    parser.add_argument(
        "--benchmark",
        metavar="NAME",
        help=benchmarks.HELP,
    )
    parser.add_argument(
        "--data", metavar="PATH", help="the benchmark's file or folder, or own conversations (docs/how-to/own-data.md)"
    )


def load_data(args: argparse.Namespace) -> Dataset:
    """Load the data that `--benchmark` and `--data` name.

    Raises:
        DataError: The data cannot be used.
    """
    return benchmarks.read(args.benchmark, args.data)
