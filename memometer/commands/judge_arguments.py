"""Command-line arguments that name a judge, and the judge that they describe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from memometer.benchmarks.arguments import add_data_arguments
from memometer.commands.argument_types import count, fraction, positive, seconds
from memometer.errors import UserError

if TYPE_CHECKING:
    from memometer.judging.judge import Judge
    from memometer.models.resolve_models import Model

MAX_REPEATS = 100


def add_judge_arguments(options: argparse.ArgumentParser) -> None:
    """Add the arguments of a judge and of the data to a parser."""
    options.add_argument("--judge-model", required=True, metavar="NAME", help="DSPy model string, or embedded:base")
    options.add_argument("--judge-api-base", metavar="URL", help="OpenAI-compatible server")
    options.add_argument(
        "--judge-max-tokens",
        type=positive,
        metavar="N",
        help="limit of a verdict (default 16, more if the judge writes thoughts first)",
    )
    options.add_argument("--judge", metavar="PROMPT", help="judge prompt of the benchmark (default: its first)")
    add_data_arguments(options)
    options.add_argument(
        "--wrong-answers", metavar="FILE", help="specific wrong answers (default: the benchmark's variable)"
    )
    options.add_argument(
        "--max-false-accept",
        type=fraction,
        default=0.15,
        metavar="SHARE",
        help="withhold judge accuracy if the upper 95 %% limit of the false-accept rate exceeds this (default 0.15)",
    )
    options.add_argument(
        "--num-threads", type=positive, metavar="N", help="concurrent calls (default 4; 1 for embedded models)"
    )
    options.add_argument("--retries", type=count, default=4, metavar="N", help="retries per failed call (default 4)")
    options.add_argument(
        "--timeout-seconds", type=seconds, default=120.0, metavar="S", help="read timeout per call (default 120)"
    )


def repeats(text: str) -> int:
    """Number of verdicts per answer, from 1 to MAX_REPEATS."""
    value = positive(text)
    if value > MAX_REPEATS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_REPEATS}")
    return value


def load_judge(args: argparse.Namespace) -> tuple[Model, Judge]:
    """Load the judge that the arguments of `add_judge_arguments` describe.

    Args:
        args: The parsed arguments.

    Returns:
        The model and the judge.

    Raises:
        UserError: The model, its weights or the prompt are not available.
    """
    from memometer import benchmarks
    from memometer.harness.models import JUDGE_FLAGS, JUDGE_TOKENS
    from memometer.judging.judge import Judge
    from memometer.models import resolve_models
    from memometer.run.progress import eprint

    try:
        model = resolve_models.load(
            args.judge_model,
            api_base=args.judge_api_base,
            max_tokens=args.judge_max_tokens or JUDGE_TOKENS,
            timeout_seconds=args.timeout_seconds,
            retries=args.retries,
            flags=JUDGE_FLAGS,
            log=eprint,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return model, Judge(
        model.lm, benchmarks.load(benchmarks.read(args.benchmark, args.data).benchmark).judge_prompt(args.judge)
    )


def room(model: Model, args: argparse.Namespace) -> int:
    """Return the tokens for a verdict if the judge writes thoughts first; 0 if the user set the limit."""
    from memometer.harness.model_check import room_for_thoughts

    return 0 if args.judge_max_tokens else room_for_thoughts(model.context_tokens)


def first_call(model: Model, judge: Judge, args: argparse.Namespace) -> str:
    """Let a remote judge grade one answer before it is paid for many. Returns the failure, or an empty text."""
    from memometer.harness.model_check import check_judge
    from memometer.run.progress import eprint

    if not model.is_remote:
        return ""
    found = check_judge(model, judge, room=room(model, args))
    for line in [] if found.failure else found.findings():
        eprint(line)
    return found.failure


def judge_threads(args: argparse.Namespace) -> int:
    """Return the number of concurrent calls: 1 for an embedded model, because one call uses all cores."""
    return args.num_threads or (1 if args.judge_model.startswith("embedded:") else 4)
