"""`memometer rescore`: grade a run again with another judge, prompt or label set, without new model answers.

    memometer rescore RUN... --judge-model M [--judge strict|lenient|...] [--label-set corrected]
    memometer rescore RUN... --judge-model M --judge-sensitivity

Verdicts are added to the earlier ones. Labels that this judge, prompt, label set and repeat already gave are not asked
for again, so a stopped command can be repeated. The judge is calibrated first; then results.json and the reports are
written again. `--judge-sensitivity` grades under every prompt of the benchmark and compares the rankings.

Exit codes: 0 done, 1 no call can succeed, 2 usage, 3 too many labels are missing, 4 stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from memometer.commands.argument_types import positive
from memometer.commands.help_formatter import HelpFormatter
from memometer.commands.judge_arguments import add_judge_arguments, judge_threads, load_judge, repeats, room
from memometer.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    options.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, also of imported results")
    add_judge_arguments(options)
    options.add_argument(
        "--judge-sensitivity", action="store_true", help="grade under every prompt and compare the rankings"
    )
    options.add_argument(
        "--label-set", default="original", choices=["original", "corrected"], help="gold answers (default original)"
    )
    options.add_argument(
        "--label-corrections",
        metavar="FILE",
        help="known label errors; separates clean and flagged questions (default: the benchmark's variable)",
    )
    options.add_argument("--repeats", type=repeats, default=1, metavar="N", help="verdicts per answer (default 1)")
    options.add_argument(
        "--limit", type=positive, metavar="N", help="only a seeded sample of N questions, the same in every run"
    )
    options.add_argument(
        "--no-calibration", action="store_true", help="do not calibrate the judge; withhold its accuracy"
    )
    options.add_argument("--verbose", action="store_true", help="print all tables")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Grade the answers of runs again.

    Returns:
        The exit code.

    Raises:
        UserError: The options, a run, the data or the judge cannot be used.
    """
    args = parser().parse_args(argv)
    if args.judge_sensitivity and args.judge:
        raise UserError("--judge-sensitivity grades under every prompt; omit --judge.")
    if len({path.resolve() for path in args.runs}) < len(args.runs):
        raise UserError("a run is named twice; name each run once.")
    from memometer.benchmarks.arguments import load_data
    from memometer.harness.rescore import Rescoring

    data = load_data(args)
    model, judge = load_judge(args)
    return Rescoring(
        args.runs,
        data,
        model,
        judge,
        all_prompts=args.judge_sensitivity,
        label_set=args.label_set,
        label_corrections=args.label_corrections,
        repeats=args.repeats,
        limit=args.limit,
        calibrate=not args.no_calibration,
        max_false_accept=args.max_false_accept,
        wrong_answers=args.wrong_answers,
        address=args.judge_api_base,
        num_threads=judge_threads(args),
        room=room(model, args),
        verbose=args.verbose,
    ).run()
