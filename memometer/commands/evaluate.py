"""Compare memory systems on a benchmark.

    python evaluate.py --num-test 20 --budget-tokens 1024                     an embedded model answers, no key
    python evaluate.py --num-test 100                                         with TOGETHER_API_KEY or OPENAI_API_KEY
    python evaluate.py --recall-only --split all --budgets 512,1024,2048      no model: what each memory finds
    python evaluate.py --resume runs/20261121-100000-ab12                     go on where a run stopped

Exit codes: 0 valid, 1 failed, 2 usage, 3 invalid: too many answers ungraded, or what is held out has leaked, 4 stopped
and resumable.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from memometer.benchmarks.arguments import add_data_arguments
from memometer.commands.argument_types import integers, names, positive, price

# Model prices and windows come from the installed table, never from the network; and no usage report leaves.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
# Many small products: BLAS threads would only wait for each other, spinning. Set before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

USAGE = 2
EXIT = {"valid": 0, "failed": 1, "invalid": 3, "stopped": 4}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = p.add_argument_group("what is asked")
    add_data_arguments(what)
    what.add_argument(
        "--split", default="test", metavar="PART", help="test, train, validation, all, or memory-r1:test …"
    )
    what.add_argument("--num-test", type=positive, metavar="N", help="a seeded sample, stratified by category")
    what.add_argument("--categories", type=names, metavar="A,B,…", help="keys of categories (default: all)")
    what.add_argument(
        "--two-options", action="store_true", help="ask with answer options, in each order, if the question has some"
    )
    what.add_argument("--seed", type=int, default=0)
    who = p.add_argument_group("who is compared")
    who.add_argument(
        "--systems",
        metavar="A,B,…",
        help="default recent,full_context,adaptive; the controls none, refusal and oracle always run",
    )
    who.add_argument("--budget-tokens", type=positive, metavar="N", help="of memory in a prompt (default 20000)")
    who.add_argument("--budgets", type=integers, metavar="N,M,…", help="several budgets in one run")
    who.add_argument("--encoder", metavar="NAME", help="adaptive matches by meaning too (minilm: no key, 83 MB)")
    who.add_argument(
        "--rounds", type=positive, metavar="N", help="adaptive cites lines, and may ask for more memory N - 1 times"
    )
    who.add_argument("--question-budget", type=positive, metavar="N", help="tokens of all rounds of a question")
    who.add_argument("--abstention", metavar="FILE", help="when adaptive abstains, as memometer fit-abstention wrote")
    who.add_argument("--memory-url", metavar="URL", help="episodic and codebook keep their episodes in this store")
    who.add_argument(
        "--context-format",
        default="lines",
        choices=["lines", "toon", "json", "yaml", "csv"],
        help="how remembered turns stand in the prompt",
    )
    who.add_argument("--program", metavar="FILE", help="a prompt for adaptive, as python optimize.py wrote")
    who.add_argument(
        "--folds", action="store_true", help="each conversation with weights fitted on all others, shown one by one"
    )
    who.add_argument("--recall-only", action="store_true", help="no model: measure what is recalled")
    models = p.add_argument_group("who answers and who judges")
    models.add_argument("--model", metavar="NAME", help="a DSPy model string, or embedded:tiny|small|base|FILE.gguf")
    models.add_argument("--api-base", metavar="URL", help="an OpenAI-compatible server for --model")
    models.add_argument("--tokenizer", metavar="NAME", help="count with o200k_base, cl100k_base or a tokenizer.json")
    models.add_argument("--context-window", type=positive, metavar="N", help="tokens, where the model's is not known")
    models.add_argument("--max-answer-tokens", type=positive, default=64, metavar="N")
    models.add_argument("--price", type=price, metavar="P,R", help="dollars per million tokens of prompt and reply")
    models.add_argument("--judge-model", metavar="NAME", help="who judges, or none")
    models.add_argument("--judge-api-base", metavar="URL")
    models.add_argument("--judge-price", type=price, metavar="P,R")
    models.add_argument(
        "--judge",
        metavar="PROMPT",
        help="a judge prompt of the benchmark (default: its first)",
    )
    models.add_argument(
        "--max-false-accept",
        type=float,
        default=0.15,
        metavar="SHARE",
        help="of wrong answers, at the upper end of the interval: a judge that accepts more shows no J",
    )
    models.add_argument("--no-certificate", action="store_true", help="do not measure the judge, and show no J")
    models.add_argument(
        "--wrong-answers", metavar="FILE", help="to measure the judge on, too (default: the benchmark's variable)"
    )
    how = p.add_argument_group("how it runs")
    how.add_argument("--num-threads", type=positive, metavar="N", help="calls at once (default 4, embedded 1)")
    how.add_argument(
        "--retries",
        type=int,
        default=4,
        metavar="N",
        help="of a failed call, waiting as Retry-After asks, up to 2 minutes",
    )
    how.add_argument("--timeout-seconds", type=float, default=120.0, metavar="S", help="without a byte from the server")
    how.add_argument(
        "--fail-on-error", type=float, default=0.02, metavar="SHARE", help="ungraded share that voids a run"
    )
    how.add_argument("--cost-limit", type=float, metavar="USD", help="stop, resumable, when the run has cost so much")
    how.add_argument("--run-dir", type=Path, metavar="DIR", help="default runs/TIME")
    how.add_argument("--resume", metavar="DIR", help="go on with a stopped run, as it was configured")
    how.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    how.add_argument("--no-mlflow", action="store_true", help="do not log to mydb.sqlite")
    how.add_argument("--trace", action="store_true", help="keep DSPy's traces in MLflow (prompts included)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(argv)
    if problem := _mistake(args, argv):
        print(f"evaluate.py: {problem}", file=sys.stderr)
        return USAGE
    from memometer import systems
    from memometer.harness.plan import Leaked, Refused
    from memometer.harness.runner import Experiment

    try:
        if args.resume is not None:
            resumed = Experiment.resume(Path(args.resume), systems.load, systems.form, cost_limit=args.cost_limit)
            return EXIT[resumed()]
        config = {name: value for name, value in vars(args).items() if name not in ("resume", "run_dir", "dry_run")}
        experiment = Experiment(config, systems.load, systems.form)
        experiment.announce()
        return EXIT["valid"] if args.dry_run else EXIT[experiment.start(args.run_dir)]
    except Refused as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return EXIT["invalid"] if isinstance(error, Leaked) else USAGE
    except KeyboardInterrupt:  # once questions are asked, Ctrl-C is the experiment's to handle
        print("evaluate.py: stopped before anything was asked.", file=sys.stderr)
        return EXIT["failed"]


def _mistake(args: argparse.Namespace, argv: Sequence[str]) -> str:
    """What is wrong with the command line, in one sentence; empty where nothing is."""
    if args.cost_limit is not None and not 0 < args.cost_limit < 1e6:
        return f"--cost-limit is {args.cost_limit}; it is a number of dollars above 0."
    if args.resume is not None:
        rest = list(argv)
        if "--cost-limit" in rest:
            at = rest.index("--cost-limit")
            del rest[at : at + 2]
        allowed = (
            "--resume",
            args.resume,
            f"--resume={args.resume}",
            *(w for w in argv if w.startswith("--cost-limit=")),
        )
        extra = " ".join(word for word in rest if word not in allowed)
        return (
            (
                f"--resume takes the saved configuration and nothing but --cost-limit beside it, but got {extra}; "
                "leave it out."
            )
            if extra
            else ""
        )
    if args.budgets and args.budget_tokens:
        return "--budgets and --budget-tokens say the same thing twice; give one of them."
    if not 0 <= args.fail_on_error <= 1:
        return f"--fail-on-error is {args.fail_on_error}; it is a share from 0 to 1."
    if not 0 <= args.max_false_accept <= 1:
        return f"--max-false-accept is {args.max_false_accept}; it is a share from 0 to 1."
    if args.retries < 0 or not 0 < args.timeout_seconds < 1e6:
        return "--retries may not be negative, and --timeout-seconds must be above 0 (and below a million)."
    if args.api_base and not args.model:
        return "--api-base needs --model, such as --model openai/NAME."
    if args.judge_api_base and args.judge_model in (None, "none"):
        return "--judge-api-base needs --judge-model, such as --judge-model openai/NAME."
    if args.recall_only and (args.model or args.judge_model or args.trace or args.two_options):
        return "--recall-only asks no model; leave out --model, --judge-model, --two-options and --trace."
    if args.recall_only and (args.rounds or args.abstention or args.program):
        return "--recall-only reads nothing; leave out --rounds, --abstention and --program."
    if args.question_budget and not (args.rounds or args.program):
        return "--question-budget bounds the rounds of reading; give --rounds too."
    if args.recall_only and (args.cost_limit or args.price or args.judge_price):
        return "--recall-only costs nothing; leave out --cost-limit, --price and --judge-price."
    if args.judge_price and args.judge_model == "none":
        return "--judge-price needs a judge; leave it out, or name one with --judge-model."
    if args.trace and args.no_mlflow:
        return "--trace writes into MLflow, which --no-mlflow leaves out; give one of them."
    return ""
