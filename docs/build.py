"""Build the documentation into site/, after writing the reference pages from the parsers and the docstrings.

    python docs/build.py            strict: a broken link or name fails the build

Needs the extra `docs`. Uses no network.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
PACKAGES = {
    "memory_system": "The adaptive memory system, and the names that a memory system needs.",
    "memometer": "The public interface, the budget and the token counters.",
    "memometer.systems": "The memory systems, one module for each.",
    "memometer.retrieval": "Ranking: dates, features, learned weights, late interaction.",
    "memometer.reader": "Prompts, context formats, multi-round reading, abstention.",
    "memometer.models": "Language models, encoders, prices, the cache of model calls.",
    "memometer.store": "Stores of episodes.",
    "memometer.cartridge": "The portable file of a memory.",
    "memometer.serve": "REST, MCP, LangGraph and DSPy.",
    "memometer.benchmarks": "The protocol of a benchmark, and the reward.",
    "memometer.judging": "Graders, judge calibration, label sets.",
    "memometer.stats": "Intervals, paired tests, Pareto fronts.",
    "memometer.harness": "The evaluation run.",
    "memometer.report": "Tables, the HTML page, data frames, MLflow.",
    "memometer.run": "Run folders, cost, test-set usage.",
    "memometer.optimize": "Prompt search.",
    "memometer.train": "Training of readers.",
    "memometer.commands": "Options and parsers of the subcommands.",
    "locomo": "The LOCOMO benchmark.",
}
"""The packages of the reference, each a page."""

INTRODUCTION = """# Command line

Generated from each command's `--help`. `python evaluate.py`, `python optimize.py` and `python train.py` take the
options of `memometer eval`, `memometer optimize` and `memometer train`. Exit codes are in
[Files, variables, exit codes](files.md#exit-codes).
"""


def help_of(words: list[str]) -> str:
    """Return what `memometer WORDS --help` prints."""
    from memometer.cli import main

    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue()


def section(words: list[str], level: int) -> str:
    """Return the Markdown of one command and its subcommands."""
    text = help_of(words)
    parts = [f"{'#' * level} memometer {' '.join(words)}\n\n```text\n{text.rstrip()}\n```\n"]
    usage = text.split("\n\n")[0]
    if level == 3 and re.search(r"\s\.\.\.$", usage):  # it has subcommands, which its help lists four spaces deep
        listed = text.partition("positional arguments:")[2].partition("\n\n")[0]
        names = re.findall(r"^    ([a-z][a-z-]*)(?:\s|$)", listed, flags=re.MULTILINE)
        parts += [section([*words, name], 4) for name in names]
    return "\n".join(parts)


def command_line() -> str:
    """Return the command-line reference as Markdown."""
    from memometer.cli import COMMANDS

    parts = [INTRODUCTION]
    for title, commands in COMMANDS.items():
        parts += [f"## {title}\n", *(section([name], 3) for name in commands)]
    return "\n".join(parts)


def modules(package: str) -> list[str]:
    """Return the public modules of a package, itself included; subpackages of `memometer` have pages of their own."""
    path = ROOT.joinpath(*package.split("."))
    if not path.is_dir():
        return [package]
    files = path.glob("*.py") if package == "memometer" else path.rglob("*.py")
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if file.stem != "__main__"}
    return sorted(name.removesuffix(".__init__") for name in names if file_has_text(name))


def file_has_text(module: str) -> bool:
    """Return True if a module has a docstring to show."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return bool(path.read_text(encoding="utf-8").strip())


def python(package: str, purpose: str) -> str:
    """Return the reference of one package as Markdown; mkdocstrings fills in the docstrings."""
    return "\n\n".join([f"# {package}", purpose, *(f"::: {module}" for module in modules(package))]) + "\n"


def contents() -> str:
    """Return the list of packages as Markdown."""
    rows = [f"| [`{package}`]({package}.md) | {purpose} |" for package, purpose in PACKAGES.items()]
    return "\n".join(
        ["# Python", "", "Generated from the docstrings.", "", "| package | content |", "|---|---|", *rows, ""]
    )


def main() -> int:
    """Write the generated pages, build the site, and return the generator's exit code."""
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    sys.path.insert(0, str(ROOT))
    (REFERENCE / "command-line.md").write_text(command_line(), encoding="utf-8")
    pages = REFERENCE / "python"
    shutil.rmtree(pages, ignore_errors=True)
    pages.mkdir()
    (pages / "index.md").write_text(contents(), encoding="utf-8")
    for package, purpose in PACKAGES.items():
        (pages / f"{package}.md").write_text(python(package, purpose), encoding="utf-8")
    return subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
