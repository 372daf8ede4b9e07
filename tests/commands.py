"""The scripts' command lines, run in this process."""

from __future__ import annotations

from collections.abc import Sequence

from memometer import cli


def run_script(command: str, words: Sequence[str]) -> int:
    """Run `memometer COMMAND WORDS` as the script COMMAND.py runs it; return the exit code."""
    try:
        return cli.main([command, *words], prog=f"{command}.py")
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)


def train(words: Sequence[str]) -> int:
    """Run train.py."""
    return run_script("train", words)


def optimize(words: Sequence[str]) -> int:
    """Run optimize.py."""
    return run_script("optimize", words)
