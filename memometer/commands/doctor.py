"""Check that this machine can train. It takes the options of the training.

    memometer doctor                                           for GRPO on an Arbor server
    memometer doctor --mode sft --model embedded:tiny          for a supervised training on this machine

`train.py --mode doctor --check-mode sft` is the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from memometer.commands import train
from memometer.train.options import OUTPUT_FOLDERS


def parser() -> argparse.ArgumentParser:
    """The options of `memometer train`. `--mode` is the training mode to check."""
    options = train.parser()
    options.description = __doc__
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Check packages, values, GPUs, memory and the server.

    Returns:
        0 if a training would start, 1 if it would fail, 2 for a usage error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    mode = getattr(parser().parse_args(words), "mode", "doctor")
    checked = ["--check-mode", mode] if mode in OUTPUT_FOLDERS else []
    return train.main([*words, *checked, "--mode", "doctor"])
