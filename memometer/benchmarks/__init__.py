"""Benchmarks by name, and those of other projects by folder, module or entry point. Each is imported when needed.

load("locomo")             a key of BENCHMARKS
load("./my_benchmark")     a folder or a .py file that defines BENCHMARK
load("my_package:BENCH")   an attribute of a module that is installed or in the working folder
load("name")               an entry point of the group memometer.benchmarks
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memometer.benchmarks.protocol import Benchmark, Dataset

DEFAULT = "locomo"
OWN = "own"

BENCHMARKS = {
    "locomo": "locomo.evaluate:BENCHMARK",
    "longmemeval": "memometer.benchmarks.longmemeval:BENCHMARK",
    "realtalk": "memometer.benchmarks.realtalk:BENCHMARK",
    "beam": "memometer.benchmarks.beam:BENCHMARK",
    "life": "memometer.benchmarks.life:BENCHMARK",
    "gatemem": "memometer.benchmarks.checkpoints:GATEMEM",
    "memorystress": "memometer.benchmarks.checkpoints:MEMORYSTRESS",
    "forgeteval": "memometer.benchmarks.checkpoints:FORGETEVAL",
    "own": "memometer.benchmarks.own:BENCHMARK",
}
"""Name -> module and attribute. A new benchmark is one folder and one line here."""

HELP = f"{', '.join(BENCHMARKS)}, ./FOLDER or module:OBJECT (default {DEFAULT}; {OWN} for another --data file)"


def load(name: str | None = None) -> Benchmark:
    """Import a benchmark.

    Args:
        name: A key of BENCHMARKS, a folder or file with a slash, `module:attribute`, or an entry point; None for the
            default.

    Returns:
        The benchmark.

    Raises:
        UnknownBenchmark: There is no such benchmark.
    """
    name = name or DEFAULT
    if name in BENCHMARKS:
        module, _, attribute = BENCHMARKS[name].partition(":")
        benchmark: Benchmark = getattr(import_module(module), attribute)
        return benchmark
    from memometer.benchmarks.external import find

    return find(name, BENCHMARKS)


def recognize(path: str | Path | None) -> str:
    """The benchmark of a path if none is named: the default one for its own files and for no path, else own data."""
    default = load()
    known = path is None or default.recognizes is None or default.recognizes(Path(path))
    return DEFAULT if known else OWN


def read(name: str | None = None, path: str | Path | None = None, *, ages: Sequence[int] = ()) -> Dataset:
    """Load the data of a benchmark.

    Args:
        name: As for `load`. None for the default benchmark if it recognizes the file, and for own data otherwise.
        path: The file or folder; None for the benchmark's own place.
        ages: Ask each question this many turns after its evidence (`memometer.benchmarks.ages`); empty for the end.

    Raises:
        UnknownBenchmark: There is no such benchmark.
        DataError: The data cannot be used.
    """
    name = name or recognize(path)
    data = load(name).load(path)
    if data.benchmark != name:
        from dataclasses import replace

        data = replace(data, benchmark=name)  # the name that `load` finds it by again
    if ages:
        from memometer.benchmarks.ages import at_ages

        data = at_ages(data, ages)
    return data
