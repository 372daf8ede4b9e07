"""Benchmarks by name. Each is written as "module:attribute" and imported when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memometer.benchmarks.protocol import Benchmark

DEFAULT = "locomo"

BENCHMARKS = {"locomo": "locomo.evaluate:BENCHMARK"}
"""Name -> module and attribute. A new benchmark is one folder and one line here."""


def load(name: str | None = None) -> Benchmark:
    """Import a benchmark.

    Args:
        name: A key of BENCHMARKS; None for the default.

    Returns:
        The benchmark.

    Raises:
        ValueError: The name is unknown.
    """
    name = name or DEFAULT
    if name not in BENCHMARKS:
        raise ValueError(f"the benchmark {name!r} is unknown; known are {', '.join(BENCHMARKS)}.")
    module, _, attribute = BENCHMARKS[name].partition(":")
    benchmark: Benchmark = getattr(import_module(module), attribute)
    return benchmark
