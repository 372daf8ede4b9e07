"""`memometer compare`: compare systems pairwise, within one run or across runs.

    memometer compare runs/A runs/B [--system adaptive] [--budget 1024] [--by-category]
    memometer compare runs/A --measure f1                      the systems of one run with each other

The command prints the score of each system, and for each pair at the same budget the paired difference with its
interval and tests. Each system is compared with one reference: --reference, or the strongest of full_context, recent,
session and bm25; with --system all named pairs are compared. The p-values are adjusted together (max-T over sign
flips).
The baselines none, refusal and oracle are compared only if --system names them.
Differences between the runs that make scores incomparable are printed first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from memometer.commands.argument_types import integers, words
from memometer.commands.help_formatter import HelpFormatter


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    options.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    options.add_argument(
        "--measure", choices=["judge", "f1", "evidence_recall"], help="default: the first that all runs have"
    )
    options.add_argument("--categories", type=words, metavar="A,B,…", help="default: those with answerable questions")
    options.add_argument("--by-category", action="store_true", help="also compare each category by itself")
    options.add_argument("--judge", metavar="NAME", help="judge model, if there are several")
    options.add_argument("--prompt", metavar="P", help="prompt of the judge")
    options.add_argument("--label-set", metavar="L", help="label set of the judge")
    options.add_argument(
        "--rule", choices=["mean", "majority"], default="mean", help="how repeated verdicts are combined (default mean)"
    )
    options.add_argument("--system", type=words, metavar="A,B,…", help="only these systems")
    options.add_argument("--budget", type=integers, metavar="N,M,…", help="only these budgets")
    options.add_argument("--reference", metavar="NAME", help="compare all other systems with this one")
    options.add_argument("--data", metavar="FILE", help="the benchmark's file (default: the one that the run names)")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison.

    Returns:
        0.

    Raises:
        UserError: The runs cannot be read or have nothing to compare.
    """
    args = parser().parse_args(argv)
    from memometer.report.compare import compare

    found = compare(
        args.runs,
        measure=args.measure,
        categories=args.categories,
        by_category=args.by_category,
        judge=args.judge,
        prompt=args.prompt,
        label_set=args.label_set,
        rule=args.rule,
        systems=args.system,
        budgets=args.budget,
        reference=args.reference,
        data=args.data,
    )
    print(found, end="")
    return 0
