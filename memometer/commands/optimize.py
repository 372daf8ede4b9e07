"""Improve a memory on LOCOMO's training conversations; the test conversations are never looked at.

    python optimize.py --num-examples 30 --max-demos 3              SIMBA rewrites the reading prompt
    python optimize.py --optimizer gepa --auto medium --dry-run     what it would ask and cost at most
    python optimize.py --resume runs/20261121-100000-ab12           go on where a search stopped; nothing is paid twice
    python optimize.py --target retrieval                           fit the ranking to evidence labels, without a model
    python optimize.py --target retrieval --encoder minilm          the same, and how the encoder's tokens are compared

Prompts are written to optimized_memory_qa.json, for evaluate.py --program. The first line says whether they are better
on validation questions than chance would have it; where they are not, the file holds the unoptimised prompt.

Exit codes: 0 done, 1 failed, 2 usage, 3 too many calls failed, 4 stopped and resumable.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from memometer.commands.argument_types import count, positive, price

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
# Many small products: BLAS threads would only wait for each other, spinning. Set before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

USAGE = 2
EXIT = {"valid": 0, "failed": 1, "invalid": 3, "stopped": 4}
BUDGETS = (512, 1024, 2048, 4096)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    p.add_argument("--target", choices=["prompts", "retrieval"], default="prompts", help="what is improved")
    p.add_argument("--data", metavar="FILE", help="locomo10.json (default: LOCOMO_PATH, data/, the network)")
    p.add_argument("--seed", type=count, default=0, metavar="N")
    p.add_argument("--encoder", metavar="NAME", help="minilm, or the folder of a BERT")
    p.add_argument(
        "--out",
        metavar="PATH",
        help="prompts: a file (default optimized_memory_qa.json); retrieval: a folder (memometer/retrieval/)",
    )
    search = p.add_argument_group("how prompts are searched")
    search.add_argument("--optimizer", choices=["simba", "miprov2", "gepa", "bootstrap"], default="simba")
    search.add_argument("--auto", choices=["light", "medium", "heavy"], default="light", help="how long it searches")
    search.add_argument("--num-examples", type=positive, default=30, metavar="N", help="training questions")
    search.add_argument(
        "--num-validation", type=positive, metavar="N", help="questions that choose, and as many that confirm"
    )
    search.add_argument(
        "--max-demos", type=count, metavar="N", help="examples that may be added (default 0; bootstrap 2)"
    )
    search.add_argument("--budget-tokens", type=positive, default=512, metavar="N", help="of memory in a prompt")
    search.add_argument("--rounds", type=positive, default=1, metavar="N", help="as in evaluate.py")
    search.add_argument(
        "--question-budget",
        type=positive,
        metavar="N",
        help="tokens of a question in all, instructions and examples included (default: what the plain prompt takes)",
    )
    search.add_argument("--token-price", type=float, metavar="P", help="of 1,000 tokens, where an answer is worth 1")
    models = p.add_argument_group("who reads, and who writes prompts")
    models.add_argument("--model", metavar="NAME", help="a DSPy model string, or embedded:tiny|small|base|FILE.gguf")
    models.add_argument("--api-base", metavar="URL", help="an OpenAI-compatible server for --model")
    models.add_argument("--price", type=price, metavar="P,R", help="dollars per million tokens of prompt and reply")
    models.add_argument("--prompt-model", metavar="NAME", help="default: the same")
    models.add_argument("--prompt-api-base", metavar="URL")
    models.add_argument("--prompt-price", type=price, metavar="P,R")
    models.add_argument("--judge-model", metavar="NAME", help="helps to search, never to report; needs a certificate")
    models.add_argument("--judge-api-base", metavar="URL")
    models.add_argument("--judge-price", type=price, metavar="P,R")
    models.add_argument("--tokenizer", metavar="NAME", help="count with o200k_base, cl100k_base or a tokenizer.json")
    models.add_argument("--context-window", type=positive, metavar="N", help="tokens, where the model's is not known")
    models.add_argument("--max-answer-tokens", type=positive, default=64, metavar="N")
    how = p.add_argument_group("how it runs")
    how.add_argument("--num-threads", type=positive, metavar="N", help="calls at once (default up to 4, embedded 1)")
    how.add_argument("--retries", type=count, default=4, metavar="N", help="of a failed call, as Retry-After asks")
    how.add_argument("--timeout-seconds", type=float, default=120.0, metavar="S", help="without a byte from the server")
    how.add_argument(
        "--fail-on-error", type=float, default=0.05, metavar="SHARE", help="failed calls that end a search"
    )
    how.add_argument("--cost-limit", type=float, metavar="USD", help="stop, resumable, when so much is spent")
    how.add_argument("--run-dir", type=Path, metavar="DIR", help="default runs/TIME")
    how.add_argument("--resume", metavar="DIR", help="go on with a stopped search, as it was configured")
    how.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    how.add_argument("--no-mlflow", action="store_true", help="do not log to mydb.sqlite")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if problem := _mistake(args):
        return _refuse(problem)
    if args.target == "retrieval":
        return _fit_retrieval(args)
    from memometer.harness.plan import Refused
    from memometer.optimize.search import Optimization

    try:
        if args.resume is not None:
            return EXIT[Optimization.resume(Path(args.resume), cost_limit=args.cost_limit)]
        left_out = ("target", "run_dir", "resume", "dry_run")
        search = Optimization({name: value for name, value in vars(args).items() if name not in left_out})
        if not args.dry_run:
            return EXIT[search.start(args.run_dir)]
        for line in search.announcement():
            print(f"{search.data.prefix}{line}", flush=True)
        return EXIT["valid"]
    except Refused as error:
        return _refuse(str(error))
    except KeyboardInterrupt:  # once questions are asked, Ctrl-C is the search's to handle
        print("optimize.py: stopped before anything was asked.", file=sys.stderr)
        return EXIT["failed"]


def _mistake(args: argparse.Namespace) -> str:
    """What is wrong with the command line, in one sentence; empty where nothing is."""
    if args.cost_limit is not None and not 0 < args.cost_limit < 1e6:
        return f"--cost-limit is {args.cost_limit}; it is a number of dollars above 0."
    if args.resume is not None:
        allowed = {"resume": args.resume, "cost_limit": args.cost_limit}
        plain = vars(parser().parse_args([])) | allowed
        extra = ", ".join(f"--{name.replace('_', '-')}" for name, value in vars(args).items() if value != plain[name])
        said = "--resume takes the saved configuration and nothing but --cost-limit beside it, but got"
        return f"{said} {extra}; leave it out." if extra else ""
    if args.seed >= 2**32:
        return f"--seed is {args.seed}; it is a number below 2^32."
    if args.optimizer == "bootstrap" and args.max_demos == 0:
        return "--optimizer bootstrap finds examples and nothing else; give --max-demos 1 or more."
    if not 0 <= args.fail_on_error <= 1:
        return f"--fail-on-error is {args.fail_on_error}; it is a share from 0 to 1."
    if args.token_price is not None and not 0 <= args.token_price <= 1:
        return f"--token-price is {args.token_price}; it is a number from 0 to 1, of which 1 is a whole answer."
    if not 0 < args.timeout_seconds < 1e6:
        return "--timeout-seconds must be above 0 (and below a million)."
    if args.api_base and not args.model:
        return "--api-base needs --model, such as --model openai/NAME."
    if args.prompt_api_base and not args.prompt_model:
        return "--prompt-api-base needs --prompt-model, such as --prompt-model openai/NAME."
    if args.judge_api_base and args.judge_model in (None, "none"):
        return "--judge-api-base needs --judge-model, such as --judge-model openai/NAME."
    return ""


def _fit_retrieval(args: argparse.Namespace) -> int:
    """Writes weights, and prints evidence recall on the validation conversations before and after."""
    from memometer import benchmarks
    from memometer.benchmarks.protocol import DataError
    from memometer.harness.fit_ranker import fit, recalls, training_example
    from memometer.models import encoders
    from memometer.retrieval import late_interaction, ranker
    from memometer.run.progress import eprint
    from memometer.systems.adaptive import AdaptiveMemory
    from memometer.token_counters import counter_for

    out = Path(args.out) if args.out else None
    try:
        data = benchmarks.load(args.benchmark).load(args.data)
        encoder = encoders.load(args.encoder, log=eprint) if args.encoder else None
    except (DataError, encoders.EncoderUnavailable) as error:
        return _refuse(str(error))
    if data.kind and not out:
        return _refuse("weights that the project uses are fitted on the benchmark's own data; give --out FOLDER.")
    if not (encoder is None or isinstance(encoder, encoders.CachedTokenEncoder)):
        return _refuse(f"{encoder.name} gives no token vectors; use --encoder minilm, or the folder of a BERT.")
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _refuse(f"--out {out} cannot be a folder ({error.strerror}); give another.")

    def say(text: str) -> None:
        print(f"{data.prefix}{text}", flush=True)

    train, validation = data.part("train"), data.part("validation")
    if encoder and len(train) < 2:
        return _refuse("with an encoder it takes two conversations: each is compared by what the others taught.")
    name = encoder.name if encoder else ""
    say(f"Fitting on {', '.join(c.id for c in train)}{f' with {name}' if name else ''} …")
    training_examples = {c.id: training_example(c, encoder) for c in train} if encoder else None
    made_by = (
        f"python optimize.py --target retrieval{f' --encoder {args.encoder}' if encoder else ''} --seed {args.seed}"
    )
    weights, projection = fit(train, training_examples, encoder=name, seed=args.seed, made_by=made_by)
    count = counter_for(tokenizer=None)
    memory = AdaptiveMemory(count=count, ranker=weights, encoder=encoder, projection=projection)
    say(f"Evidence recall on {', '.join(c.id for c in validation)}, {count.name} tokens:")
    say("  " + "".join(f"{budget:>8,}" for budget in BUDGETS))
    for label, found in recalls(validation, memory, BUDGETS, count).items():
        say("  " + "".join(f"{100 * value:8.1f}" for value in found) + f"  {label}")
    for path, value in (
        (ranker.SHIPPED_WITH_ENCODER if encoder else ranker.SHIPPED, weights),
        (late_interaction.SHIPPED, projection),
    ):
        if value is not None:
            to = out / path.name if out else path
            to.parent.mkdir(parents=True, exist_ok=True)
            value.save(to)
            say(f"Written to {to}.")
    return 0


def _refuse(why: str) -> int:
    print(f"optimize.py: {why}", file=sys.stderr)
    return USAGE
