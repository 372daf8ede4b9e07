"""Benchmarks of other projects: a folder, a file, an attribute of a module, or an entry point."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from memometer.benchmarks.protocol import Benchmark, UnknownBenchmark
from memometer.run.environment import digest

GROUP = "memometer.benchmarks"
"""The entry point group of installed benchmarks."""

ATTRIBUTE = "BENCHMARK"
"""The attribute that a folder or file must define."""


def find(name: str, known: Iterable[str]) -> Benchmark:
    """Import a benchmark that is not in the table of this project.

    Args:
        name: A folder or file (with a slash, or ending in .py), `module:attribute`, or the name of an entry point.
        known: Names of the benchmarks in the table, for the message.

    Raises:
        UnknownBenchmark: There is none, or its code fails on import.
    """
    path = Path(name).expanduser()
    if "/" in name or "\\" in name or name.endswith(".py"):
        found = getattr(_module_at(name, path), ATTRIBUTE, None)
        wanted = f"must define {ATTRIBUTE}"
    elif ":" in name:
        module, _, attribute = name.partition(":")
        found = getattr(_imported(name, module), attribute, None)
        wanted = f"has no attribute {attribute}"
    else:
        points = {point.name: point for point in entry_points(group=GROUP)}
        if name not in points:
            names = ", ".join([*known, *sorted(points)])
            raise UnknownBenchmark(
                f"the benchmark {name!r} is unknown; known are {names}. A benchmark of your own is ./FOLDER or "
                "module:OBJECT."
            )
        found = _loaded(name, points[name].load)
        wanted = "must name a Benchmark"
    if not isinstance(found, Benchmark):
        kind = "nothing" if found is None else f"a {type(found).__name__}"
        raise UnknownBenchmark(f"--benchmark {name} {wanted}, a memometer.benchmarks.protocol.Benchmark; found {kind}.")
    return found


def _module_at(name: str, path: Path) -> ModuleType:
    """Import a folder or file under a name that its path determines, so that it is imported once."""
    file = path / "__init__.py" if path.is_dir() else path
    if not file.is_file():
        raise UnknownBenchmark(f"--benchmark {name}: there is no file {file}.")
    module_name = f"memometer_benchmark_{digest(str(path.resolve()))[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    places = [str(path.resolve())] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(module_name, file.resolve(), submodule_search_locations=places)
    if spec is None or spec.loader is None:
        raise UnknownBenchmark(f"--benchmark {name}: {file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    loader = spec.loader
    try:
        _loaded(name, lambda: loader.exec_module(module))
    except BaseException:  # a half-loaded module must not stay; re-raised
        del sys.modules[module_name]
        raise
    return module


def _imported(name: str, module: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # an installed command does not search the working folder
    imported: ModuleType = _loaded(name, lambda: importlib.import_module(module))
    return imported


def _loaded(name: str, load: Any) -> Any:
    try:
        return load()
    except (Exception, SystemExit) as error:  # code of others can raise anything, and end the process
        place = _place(error)
        raise UnknownBenchmark(
            f"--benchmark {name} cannot be imported ({type(error).__name__}: {error}{place})."
        ) from error


def _place(error: BaseException) -> str:
    """The file and line where an error was raised, if it was in the benchmark's own code."""
    if isinstance(error, ImportError) or error.__traceback__ is None:
        return ""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return f", {Path(trace.tb_frame.f_code.co_filename).name} line {trace.tb_lineno}"
