"""`memometer claims`: check written claims against runs, for continuous integration.

    memometer claims claims.yaml

The file is a list: `run` (a run folder, relative to the file), `system`, `better_than`, and optionally `measure`,
`budget`, `by` (points) and `expect`. Each claim is supported, not supported or underpowered. Exit code 3 if a
verdict is not the expected one; the default is supported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from memometer.commands.help_formatter import HelpFormatter


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    options.add_argument("file", type=Path, metavar="FILE", help="the claims, as YAML")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict of each claim.

    Returns:
        0, or 3 if a verdict is not the expected one.

    Raises:
        UserError: The file or a run cannot be read.
    """
    args = parser().parse_args(argv)
    from memometer.report.claims import check_claims, read_claims

    checked = check_claims(read_claims(args.file))
    for one in checked:
        print(one)
    return 0 if all(one.verdict == one.claim.expect for one in checked) else 3
