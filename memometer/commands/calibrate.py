"""`memometer calibrate`: measure a judge's false-accept and false-reject rates.

    memometer calibrate --judge-model embedded:base
    memometer calibrate --judge-model openai/gpt-4o-mini --judge lenient --wrong-answers FILE

The command prints the calibration and caches it, so that evaluations and re-scoring need not measure the judge again.

Exit codes: 0 passed, 1 the judge cannot be measured, 2 usage, 3 failed, 4 stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from memometer.commands.argument_types import positive
from memometer.commands.help_formatter import HelpFormatter
from memometer.commands.judge_arguments import add_judge_arguments, first_call, judge_threads, load_judge, repeats


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    add_judge_arguments(options)
    options.add_argument(
        "--per-set",
        type=positive,
        default=60,
        metavar="N",
        help="answers per set (default 60); a set with fewer than 30 is not checked",
    )
    options.add_argument(
        "--repeats",
        type=repeats,
        default=3,
        metavar="N",
        help="verdicts on each of 20 answers, to measure the stability",
    )
    options.add_argument("--again", action="store_true", help="measure even if the calibration is cached")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Print the calibration of a judge, from the cache or measured.

    Returns:
        0 if the judge passed, 1 if it cannot be measured, 3 if it failed, 4 if the measurement was stopped.

    Raises:
        UserError: The data, the judge or the wrong answers are not available.
    """
    args = parser().parse_args(argv)
    from memometer.benchmarks.arguments import load_data
    from memometer.judging.calibrate import Calibrator
    from memometer.judging.judge_assessment import assess
    from memometer.judging.judge_calibration import CalibrationError
    from memometer.models.errors import FATAL, describe
    from memometer.report import presenter
    from memometer.report.judge_tables import calibration_parts
    from memometer.run.interrupts import stopping
    from memometer.run.progress import eprint

    data = load_data(args)
    model, judge = load_judge(args)
    calibrator = Calibrator(
        data,
        model,
        judge,
        address=args.judge_api_base,
        wrong_answers=args.wrong_answers,
        per_set=args.per_set,
        repeats=args.repeats,
    )
    found = None if args.again else calibrator.cached()
    if found is None:
        eprint(f"{data.prefix}Measuring {judge.lm.model} ({judge.prompt}): {calibrator.estimate()}.")
        if failure := first_call(model, judge, args):
            print(f"memometer calibrate: {failure}; nothing was cached.", file=sys.stderr)
            return 1
        with stopping() as stop:
            try:
                found = calibrator.measure(num_threads=judge_threads(args), stop=stop)
            except (CalibrationError, *FATAL) as error:
                reason = str(error) if isinstance(error, CalibrationError) else describe(error)
                print(f"memometer calibrate: {reason}; nothing was cached.", file=sys.stderr)
                return 4 if stop.is_set() else 1
    found = assess(found, max_false_accept=args.max_false_accept)
    for line in presenter.text(calibration_parts(found)).splitlines():
        print(f"{data.prefix}{line}")
    return 0 if found["passed"] else 3
