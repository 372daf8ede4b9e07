"""`memometer data`: verify a benchmark's data, or check a file of own conversations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from memometer import benchmarks
from memometer.benchmarks.arguments import add_data_arguments
from memometer.errors import UserError

MAX_FAULTS = 1000
"""Faults that are printed."""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = argparse.ArgumentParser(
        description="Find or download a benchmark's data and verify them. `memometer data check PATH` lists every "
        "fault of a file of own conversations, and what the evaluation cannot use. `memometer data schema` prints its "
        "JSON Schema. Exit code 1 if a check of a benchmark fails, 2 if own data have a fault.",
        allow_abbrev=False,
    )
    p.add_argument(
        "action", nargs="?", choices=["check", "schema"], help="check own conversations, or print the schema"
    )
    p.add_argument("path", nargs="?", metavar="PATH", help="the file or folder to check")
    add_data_arguments(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Print the checks of the data.

    Returns:
        0 if all hold, 1 if a benchmark's data are wrong, 2 if own data have a fault.

    Raises:
        UserError: the data cannot be read.
    """
    args = parser().parse_intermixed_args(argv)
    if args.action == "schema":
        from memometer.benchmarks.own import schema

        print(schema.FILE.read_text(encoding="utf-8"), end="")
        return 0
    path = args.path or args.data
    name = args.benchmark or benchmarks.recognize(path)
    if args.action == "check" and name == benchmarks.OWN:
        return _check(path)
    data = benchmarks.read(name, path)
    lines, ok = benchmarks.load(data.benchmark).verify(data)
    for line in lines:
        print(f"{data.prefix}{line}")
    return 0 if ok else 1


def _check(path: str | None) -> int:
    """Print the faults and the losses of own conversations, and their numbers of turns and questions."""
    if not path:
        raise UserError("--benchmark own needs the path of a file or folder.")
    from memometer.benchmarks.own.read import examine

    found, _, digest, _ = examine(path)
    for line in [*found.faults[:MAX_FAULTS], *(f"Lost: {loss}" for loss in found.losses)]:
        print(line)
    conversations = [conversation for conversation, _ in found.conversations]
    turns = sum(len(conversation.turns) for conversation in conversations)
    questions = sum(len(conversation.questions) for conversation in conversations)
    numbers = {"conversation": len(conversations), "turn": turns, "question": questions}
    counted = ", ".join(f"{n:,} {name}{'' if n == 1 else 's'}" for name, n in numbers.items())
    if n := len(found.faults):
        print(f"{path}: {n:,} fault{'s' if n > 1 else ''}; {counted} without fault.")
        return 2
    rest = "" if questions else " Without questions they can be remembered (memometer add --from), not evaluated."
    print(f"{path}: sound; {counted}; sha256 {digest[:12]}.{rest}")
    return 0
