"""`memometer leaderboard`: one Markdown table of a run, with imported results on the same questions below it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    options.add_argument("run", type=Path, metavar="RUN", help="folder of a run of evaluate.py")
    options.add_argument("imported", nargs="*", type=Path, metavar="IMPORTED", help="folder of imported results")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Print the leaderboard.

    Returns:
        0.

    Raises:
        UserError: A run cannot be read, or is of the wrong kind.
    """
    args = parser().parse_args(argv)
    from memometer.report.leaderboard import leaderboard
    from memometer.report.runs_in_progress import follow

    run, *imported = (followed.run() for followed in follow([args.run, *args.imported]))
    print("".join(f"{run.data.prefix}{line}\n" for line in leaderboard(run, imported).splitlines()), end="")
    return 0
