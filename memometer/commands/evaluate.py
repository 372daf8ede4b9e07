"""Compare memory systems on a benchmark.

    python evaluate.py --num-test 20 --budget-tokens 512                      an embedded model answers, no key
    python evaluate.py --num-test 100                                         with TOGETHER_API_KEY or OPENAI_API_KEY
    python evaluate.py --recall-only --split all --budgets 512,1024,2048      no model: only the recall is measured
    python evaluate.py --resume runs/20261121-100000-ab12                     continue a run that stopped

Exit codes: 0 valid, 1 failed, 2 usage, 3 invalid (too many calls failed, or test data found in a prompt), 4 stopped and
resumable.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from memometer.benchmarks.arguments import add_data_arguments
from memometer.commands.argument_types import Add, ages, cost_limit, integers, names, positive, price
from memometer.commands.help_formatter import HelpFormatter
from memometer.harness.options import EvaluateOptions
from memometer.run.options import OptionError
from memometer.systems.specification import split_list

EXIT = {"valid": 0, "failed": 1, "invalid": 3, "stopped": 4}
CONTEXT_FORMATS = ("lines", "toon", "json", "yaml", "csv")


def parser() -> argparse.ArgumentParser:
    """The parser of `memometer eval`. Defaults are those of `EvaluateOptions`."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    questions = p.add_argument_group("questions")
    add_data_arguments(questions)
    questions.add_argument(
        "--split", metavar="PART", help="test (default), train, validation, all, or memory-r1:test …"
    )
    questions.add_argument("--num-test", type=positive, metavar="N", help="a seeded sample, stratified by category")
    questions.add_argument("--categories", type=names, metavar="A,B,…", help="keys of categories (default: all)")
    questions.add_argument(
        "--two-options", action="store_true", help="if a question has answer options, ask with them, once in each order"
    )
    questions.add_argument(
        "--ages",
        type=ages,
        metavar="N,M,…",
        help="ask each question N, M, … turns after its evidence, in place of the end (with --recall-only)",
    )
    questions.add_argument("--seed", type=int, metavar="N", help="seed of the sample (default 0)")
    systems = p.add_argument_group("memory systems")
    systems.add_argument(
        "--systems",
        type=split_list,
        action=Add,
        metavar="A,B,…",
        help="default recent,full_context,adaptive; also module:Class?key=value, ./file.py:Class, 'cmd:COMMAND', "
        "http://HOST:PORT/ and search:NAME, each optionally as LABEL=SYSTEM; the baselines none, refusal and oracle "
        "always run",
    )
    systems.add_argument(
        "--reference",
        metavar="NAME",
        help="system that all others are compared with (default: the strongest of full_context, recent, session, bm25)",
    )
    budget = systems.add_mutually_exclusive_group()
    budget.add_argument(
        "--budget-tokens", type=positive, metavar="N", help="tokens of memory in a prompt (default 20000)"
    )
    budget.add_argument("--budgets", type=integers, metavar="N,M,…", help="several budgets in one run")
    systems.add_argument("--encoder", metavar="NAME", help="adaptive also matches by meaning (minilm: no key, 83 MB)")
    systems.add_argument(
        "--encoder-api-base", metavar="URL", help="an OpenAI-compatible server for --encoder openai/NAME"
    )
    systems.add_argument(
        "--ranking",
        choices=["default", "locomo"],
        help="weights of adaptive: default, fitted on synthetic conversations, or locomo, fitted on LOCOMO "
        "(non-commercial; each conversation with weights that have not seen it)",
    )
    systems.add_argument(
        "--rounds", type=positive, metavar="N", help="adaptive cites lines and may ask for more memory N - 1 times"
    )
    systems.add_argument("--question-budget", type=positive, metavar="N", help="tokens of all rounds of a question")
    systems.add_argument(
        "--abstention", type=Path, metavar="FILE", help="abstention rule for adaptive (from memometer fit-abstention)"
    )
    systems.add_argument("--memory-url", metavar="URL", help="the store of episodic and codebook")
    systems.add_argument("--context-format", choices=CONTEXT_FORMATS, help="format of recalled turns in the prompt")
    systems.add_argument(
        "--program",
        type=Path,
        metavar="FILE",
        help="prompt of optimize.py or train.py, for every system (default: the model's own)",
    )
    systems.add_argument(
        "--prompt", type=Path, metavar="FILE", help="text file with instructions for the reader of every system"
    )
    systems.add_argument(
        "--folds", action="store_true", help="evaluate each conversation with weights fitted on the others"
    )
    systems.add_argument("--recall-only", action="store_true", help="measure the recall, without a model")
    models = p.add_argument_group("models")
    models.add_argument("--model", metavar="NAME", help="a DSPy model string, or embedded:tiny|small|base|FILE.gguf")
    models.add_argument(
        "--api-base", metavar="URL,…", help="an OpenAI-compatible server for --model; several share the calls"
    )
    models.add_argument("--tokenizer", metavar="NAME", help="o200k_base, cl100k_base, a tokenizer.json, or ORG/NAME")
    models.add_argument("--context-window", type=positive, metavar="N", help="tokens, if the model's window is unknown")
    models.add_argument(
        "--max-answer-tokens", type=positive, metavar="N", help="default 64, more if the model writes thoughts first"
    )
    models.add_argument("--price", type=price, metavar="P,R", help="dollars per million tokens of prompt and reply")
    models.add_argument("--judge-model", metavar="NAME", help="judge model; 'none' disables judging")
    models.add_argument(
        "--judge-api-base",
        metavar="URL,…",
        help="an OpenAI-compatible server for --judge-model (default: that of --model if it is the same model)",
    )
    models.add_argument("--judge-price", type=price, metavar="P,R", help="as --price, for the judge model")
    models.add_argument(
        "--judge-max-tokens", type=positive, metavar="N", help="default 16, more if the judge writes thoughts first"
    )
    models.add_argument("--judge", metavar="PROMPT", help="judge prompt of the benchmark (default: its first)")
    models.add_argument(
        "--max-false-accept",
        type=float,
        metavar="SHARE",
        help="withhold judge accuracy if the upper 95 %% limit of the judge's false-accept rate exceeds this "
        "(default 0.15)",
    )
    models.add_argument(
        "--no-calibration", action="store_true", help="do not calibrate the judge; judge accuracy is then withheld"
    )
    models.add_argument(
        "--allow-failed-calibration",
        action="store_true",
        help="go on if the judge fails its calibration; judge accuracy is then withheld",
    )
    models.add_argument(
        "--wrong-answers", metavar="FILE", help="further wrong answers for the calibration (see the benchmark)"
    )
    run = p.add_argument_group("execution")
    run.add_argument("--num-threads", type=positive, metavar="N", help="calls at once (default 4, embedded 1)")
    run.add_argument(
        "--retries",
        type=int,
        metavar="N",
        help="retries per failed call (default 4; honours Retry-After, capped at 120 s)",
    )
    run.add_argument(
        "--timeout-seconds", type=float, metavar="S", help="time limit of a model call or a plug-in's search (120)"
    )
    run.add_argument(
        "--ingest-timeout", type=float, metavar="S", help="a plug-in's time for one conversation (default 3600)"
    )
    run.add_argument(
        "--fail-on-error", type=float, metavar="SHARE", help="share of failed calls above which a run is invalid (0.02)"
    )
    run.add_argument(
        "--batch",
        action="store_true",
        help="send answers and verdicts as batches, for half the price and within a day; Ctrl-C leaves them, --resume "
        "collects them",
    )
    run.add_argument(
        "--cost-limit",
        type=cost_limit,
        metavar="USD",
        help="stop at this cost; with --resume, `none` removes the limit",
    )
    run.add_argument("--run-dir", type=Path, metavar="DIR", help="run folder (default runs/TIME)")
    run.add_argument("--resume", type=Path, metavar="DIR", help="continue a run with its saved options")
    run.add_argument("--verbose", action="store_true", help="print all tables, not only those that fit a screen")
    run.add_argument("--dry-run", action="store_true", help="print the plan and the maximum cost, then exit")
    log = run.add_mutually_exclusive_group()
    log.add_argument("--no-mlflow", action="store_true", help="do not log to mydb.sqlite")
    log.add_argument("--trace", action="store_true", help="store DSPy traces in MLflow, prompts included")
    p.set_defaults(**{field.name: field.default for field in fields(EvaluateOptions)})
    return p


def options_of(argv: Sequence[str] | None = None) -> EvaluateOptions:
    """The options of a command line.

    Args:
        argv: The words of the command line; None for those of the process.

    Raises:
        OptionError: Two options contradict each other, or a value is impossible.
    """
    return EvaluateOptions.of_args(parser().parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `memometer eval`.

    Args:
        argv: The words of the command line; None for those of the process.

    Returns:
        The exit code.
    """
    # The products are many and small, so BLAS threads would only wait for each other. NumPy reads this on import.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    args = parser().parse_args(argv)
    options = EvaluateOptions.of_args(args)
    if args.resume:
        _refuse_other_options(options, args)
        from memometer.harness.runner import resume_run

        outcome = resume_run(
            args.resume,
            cost_limit=options.cost_limit,
            allow_failed_calibration=options.allow_failed_calibration,
            verbose=args.verbose,
        )
        return EXIT[outcome]
    from memometer.harness.make_plan import make_plan
    from memometer.harness.runner import Runner

    plan = make_plan(options)
    plan.announce()
    if args.dry_run:
        plan.stop()
        return EXIT["valid"]
    return EXIT[Runner(plan, cost_limit=options.cost_limit, verbose=args.verbose).start(args.run_dir)]


def _refuse_other_options(options: EvaluateOptions, args: argparse.Namespace) -> None:
    """Raise OptionError if --resume is combined with an option that it does not take."""
    taken = ("cost_limit", "allow_failed_calibration")
    given = [f.name for f in fields(options) if f.name not in taken and getattr(options, f.name) != f.default]
    given += [name for name in ("run_dir", "dry_run") if getattr(args, name)]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionError(
            f"--resume uses the saved options and takes only --cost-limit and "
            f"--allow-failed-calibration; leave out {flags}."
        )
