"""`memometer contamination`: search files for held-out questions, answers and turns."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from memometer.benchmarks.arguments import add_data_arguments, load_data
from memometer.errors import UserError


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = argparse.ArgumentParser(
        description="Search files for held-out questions, answers and turns. Exit code 3 if any is found.",
        allow_abbrev=False,
    )
    p.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
    p.add_argument(
        "--split", default="test", metavar="PART", help="held-out part: test, memory-r1:test … (default: test)"
    )
    add_data_arguments(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Print the held-out text in the files.

    Returns:
        0 if there is none, 3 if there is some.

    Raises:
        UserError: the data or a file cannot be read, or nothing is held out.
    """
    from memometer.harness.contamination import UNREADABLE, HeldOut, Leak, file_of, summary, texts_of

    args = parser().parse_args(argv)
    data = load_data(args)
    held_out = data.held_out(args.split)
    if not held_out:
        raise UserError(f"--split {args.split} has no held-out conversations; use test, or memory-r1:test.")
    index = HeldOut.of(data, args.split)
    files: set[str] = set()
    found: list[Leak] = []
    for path in args.paths:
        try:
            for where, text in texts_of(path):
                files.add(file_of(where))
                found += index.find(where, text)
        except UNREADABLE as error:
            raise UserError(f"cannot read all of {str(path)!r} ({error}); no result is reported.") from error
    if not files:
        raise UserError(f"no files in {', '.join(map(str, args.paths))}; name others.")
    for line in summary(found):
        print(f"{data.prefix}{line}")
    print(
        f"{data.prefix}{len(found)} matches with {len(held_out)} held-out conversations ({args.split}) in "
        f"{len(files)} files"
    )
    return 3 if found else 0
