"""`memometer fit-abstention`: fit the abstention rule on a run over the validation conversations.

    memometer fit-abstention runs/NAME [--out FILE] [--false-abstention 0.05]

The command prints the rule and its detection rates, and writes the rule for `evaluate.py --abstention FILE`. The fit
uses the labels answerable and unanswerable, which no system sees. Most unanswerable questions of LOCOMO swap the two
speakers, so the rule learns to detect that artefact.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from memometer.commands.argument_types import fraction
from memometer.commands.help_formatter import HelpFormatter


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    options.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run over the validation part")
    options.add_argument("--system", default="adaptive", help="system of the run (default adaptive)")
    options.add_argument(
        "--false-abstention",
        type=fraction,
        default=0.05,
        metavar="SHARE",
        help="highest share of answerable questions with an abstention (default 0.05)",
    )
    options.add_argument("--out", type=Path, default=Path("abstention.json"), metavar="FILE", help="file of the rule")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the rule, print it and write it.

    Returns:
        0.

    Raises:
        UserError: The run or its data cannot be read, or has no questions of both kinds.
    """
    args = parser().parse_args(argv)
    from memometer.stats import abstention

    rule, metrics, n, prefix = abstention.fit_run(args.run, system=args.system, false_abstention=args.false_abstention)
    rule.save(args.out)
    for line in (
        *(f"{name}: {weight:+.4f}" for name, weight in rule.weights.items()),
        f"threshold {rule.threshold:+.4f}, exceeded by {args.false_abstention:.0%} of the answerable questions",
        f"on these {n} questions: AUC {metrics['auc']:.3f}, detected {metrics['caught_at_5']:.1%} at 5 %",
        f"written to {args.out}",
    ):
        print(f"{prefix}{line}")
    return 0
