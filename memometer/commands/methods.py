"""`memometer methods`: print a methods paragraph of a run, to be pasted into a paper."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    options.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run of evaluate.py")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Print the paragraph.

    Returns:
        0.

    Raises:
        UserError: The run cannot be read or is not finished.
    """
    args = parser().parse_args(argv)
    from memometer.errors import UserError
    from memometer.report.methods import methods
    from memometer.report.results import read_results
    from memometer.run.folder import read_manifest

    manifest = read_manifest(args.run)
    if not (args.run / "results.json").exists() or "published" in manifest:
        raise UserError(f"{args.run} is not a finished run of evaluate.py; name one.")
    print(methods(manifest, read_results(args.run)))
    return 0
