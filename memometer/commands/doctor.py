"""`memometer doctor`: check that this machine can train; the same as `train.py --mode doctor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from memometer.commands import train


def parser() -> argparse.ArgumentParser:
    """The options of `memometer train`, with `--mode doctor` as the default."""
    options = train.parser()
    options.description = __doc__
    options.set_defaults(mode="doctor")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Check packages, values, GPUs, memory and the server.

    Returns:
        0 if a training would start, 1 if it would fail, 2 for a usage error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser().parse_args(words)
    return train.main(["--mode", "doctor", *words])
