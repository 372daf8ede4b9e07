"""Improve a memory on LOCOMO's training conversations. The test conversations are never used.

    python optimize.py --num-examples 30 --max-demos 3              search for a better reading prompt with SIMBA
    python optimize.py --optimizer gepa --auto medium --dry-run     show the plan and its highest cost
    python optimize.py --resume runs/20261121-100000-ab12           continue a stopped search without repeating calls
    python optimize.py --target retrieval                           fit the default ranking on synthetic conversations
    python optimize.py --target retrieval --encoder minilm          the same with an encoder's vectors
    python optimize.py --target retrieval --benchmark locomo --folds   the ranking of LOCOMO, and one per conversation

Two searches are made. Each learns from one half of the training and validation conversations, and the other half
confirms its prompt. The prompt is written to optimized_memory_qa.json, for evaluate.py --program. The first line of the
report states if the gain is significant. If it is not, the file has the unoptimized prompt.

Exit codes: 0 done, 1 failed, 2 usage error, 3 too many calls failed, 4 stopped and resumable.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from memometer.benchmarks.arguments import add_data_arguments
from memometer.commands.argument_types import count, number, positive, price
from memometer.commands.help_formatter import HelpFormatter
from memometer.errors import UserError
from memometer.optimize.options import OUT, OptimizeOptions

EXIT = {"valid": 0, "failed": 1, "invalid": 3, "stopped": 4}
DOLLARS = number(0.000001, 1_000_000)


def parser() -> argparse.ArgumentParser:
    """Return the parser. Its namespace has only the flags that were given; OptimizeOptions has the defaults."""
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    p.add_argument("--target", choices=["prompts", "retrieval"], help="what to improve (default prompts)")
    add_data_arguments(p)
    p.add_argument("--seed", type=_seed, metavar="N", help="random seed (default 0)")
    p.add_argument("--encoder", metavar="NAME", help="minilm, or the folder of a BERT model")
    p.add_argument(
        "--out",
        metavar="PATH",
        help=f"prompts: file (default {OUT}); retrieval: folder (default in a checkout: memometer/retrieval/weights)",
    )
    p.add_argument("--folds", action="store_true", help="retrieval: also weights for each conversation without it")
    _add_search(p.add_argument_group("search"))
    _add_models(p.add_argument_group("models"))
    _add_execution(p.add_argument_group("execution"))
    return p


def _add_search(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--optimizer", choices=["simba", "miprov2", "gepa", "bootstrap"], help="default simba")
    add("--auto", choices=["light", "medium", "heavy"], help="length of the search (default light)")
    add("--num-examples", type=positive, metavar="N", help="training questions of each search (default 30)")
    add(
        "--num-validation",
        type=positive,
        metavar="N",
        help="selection questions of each search (default: --num-examples)",
    )
    add(
        "--num-confirmation",
        type=positive,
        metavar="N",
        help="confirmation questions of each conversation (default 30)",
    )
    add("--max-demos", type=count, metavar="N", help="examples to add at most (default 0; bootstrap 2)")
    add("--budget-tokens", type=positive, metavar="N", help="tokens of memory in a prompt (default 512)")
    add("--rounds", type=positive, metavar="N", help="reader calls per question (default 1)")
    add(
        "--question-budget",
        type=positive,
        metavar="N",
        help="total tokens per question (default: those of the unoptimized prompt)",
    )
    add("--token-price", type=number(0, 1), metavar="X", help="objective: deduction per 1,000 tokens")


def _add_models(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model", metavar="NAME", help="DSPy model name, or embedded:tiny|small|base|FILE.gguf")
    add("--api-base", metavar="URL", help="OpenAI-compatible server for --model")
    add("--price", type=price, metavar="P,R", help="dollars per million tokens: prompt, reply")
    add("--prompt-model", metavar="NAME", help="model that writes prompts (default: --model)")
    add("--prompt-api-base", metavar="URL", help="server for --prompt-model")
    add("--prompt-price", type=price, metavar="P,R", help="prices of --prompt-model")
    add("--judge-model", metavar="NAME", help="judge that guides the search; it needs a calibration")
    add("--judge-api-base", metavar="URL", help="server for --judge-model")
    add("--judge-price", type=price, metavar="P,R", help="prices of --judge-model")
    add("--judge-max-tokens", type=positive, metavar="N", help="limit of a verdict (default 16)")
    add("--tokenizer", metavar="NAME", help="o200k_base, cl100k_base, or a tokenizer.json")
    add("--context-window", type=positive, metavar="N", help="tokens, if the model's window is not known")
    add("--max-answer-tokens", type=positive, metavar="N", help="limit of a reply (default 64, more for thoughts)")


def _add_execution(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--num-threads", type=positive, metavar="N", help="concurrent calls (default 1 to 4)")
    add("--retries", type=count, metavar="N", help="retries per failed call; honours Retry-After (default 4)")
    add("--timeout-seconds", type=number(0.001, 1e6), metavar="S", help="read timeout per call (default 120)")
    add("--fail-on-error", type=number(0, 1), metavar="X", help="share of failed calls that stops it (default 0.05)")
    add("--cost-limit", type=DOLLARS, metavar="USD", help="stop, resumable, at this cost")
    add("--run-dir", type=Path, metavar="DIR", help="run folder (default runs/TIME)")
    add("--resume", type=Path, metavar="DIR", help="continue a stopped search with its saved options")
    add("--dry-run", action="store_true", help="print the plan, then exit")
    add("--no-mlflow", action="store_true", help="do not log to mydb.sqlite")


def main(argv: Sequence[str] | None = None) -> int:
    """Run optimize.py.

    Returns:
        The exit code.

    Raises:
        UserError: The options or the data do not allow the search.
    """
    # The products are small, and BLAS threads would only wait for each other. NumPy reads this when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    given = vars(parser().parse_args(argv))
    if given.pop("target", "prompts") == "retrieval":
        from memometer.commands.fit_ranking import fit_ranking

        return fit_ranking(given)
    if given.pop("folds", False):
        raise UserError("--folds is for --target retrieval; leave it out.")
    path, folder, dry_run = given.pop("run_dir", None), given.pop("resume", None), given.pop("dry_run", False)
    if folder:
        if others := [f"--{name.replace('_', '-')}" for name in given if name != "cost_limit"]:
            raise UserError(
                f"--resume uses the saved options and accepts only --cost-limit; leave out {', '.join(others)}."
            )
        from memometer.optimize.search import resume

        return EXIT[resume(folder, **given)]
    options = OptimizeOptions(**given)
    if dry_run:
        from memometer.optimize.plan import make_plan

        plan = make_plan(options)
        for line in plan.announcement():
            print(f"{plan.data.prefix}{line}", flush=True)
        return EXIT["valid"]
    from memometer.optimize.search import start

    return EXIT[start(options, path)]


def _seed(text: str) -> int:
    if (value := count(text)) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer below 2^32")
    return value
