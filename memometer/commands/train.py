"""Train a reader's weights on LOCOMO's training conversations. The test conversations are never used for training.

    python train.py --mode train --num-train 600 --num-val 100 --num-train-steps 500 \\
        --model Qwen/Qwen2.5-3B --inference-gpus 0 --training-gpus 1,2     GRPO on an Arbor server
    python train.py --mode train --backend trl                             GRPO on this machine, with or without a GPU
    python train.py --mode train --backend trl --episodes --rounds 2 --budgets 512,1024   GRPO on lookups
    python train.py --mode sft --backend trl --model embedded:tiny         supervised training on the gold answers
    python train.py --mode distill --teacher openai/gpt-4o-mini            supervised training on a teacher's answers
    python train.py --mode sft --backend together --model NAME             supervised training at Together's service
    python train.py --mode train --export verl                             export the prompts for another framework
    python train.py --mode evaluate --num-test 100                         compare the adapter with its base model
    python train.py --mode doctor                                          find problems before renting a GPU
    python train.py --resume grpo_checkpoints                              continue a stopped training

GRPO writes grpo_checkpoints/ and grpo_optimized_memory_qa.json, a prompt for evaluate.py --program. The other modes
write files of their own. The test split is scored only with --num-test or --mode evaluate.

Exit codes: 0 done, 1 failed, 2 usage error, 3 invalid, 4 stopped and resumable.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.commands.argument_types import count, integers, json_object, number, positive, price
from memometer.commands.help_formatter import HelpFormatter
from memometer.errors import UserError
from memometer.train.options import NAMES, OUTPUT_FOLDERS, PROMPT_FILES, TrainOptions, flag_names, refuse_idle

EXIT = {"valid": 0, "failed": 1, "invalid": 3, "stopped": 4}
DEFAULT = TrainOptions()
SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine")
DOLLARS = number(0.000001, 1_000_000)


def parser() -> argparse.ArgumentParser:
    """Return the parser. Its namespace has only the flags that were given; TrainOptions has the defaults."""
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    p.add_argument("--mode", choices=["train", "sft", "distill", "evaluate", "doctor"], help="default train")
    p.add_argument(
        "--backend",
        choices=["arbor", "trl", "together"],
        help="arbor: a server with at least two GPUs (default for train); trl: this machine; together: its service",
    )
    p.add_argument("--export", choices=["verl", "verifiers"], help="write prompts and a recipe for it, then exit")
    p.add_argument("--recipe", choices=["current", "seed"], help="default hyperparameters (default current)")
    p.add_argument("--seed", type=count, metavar="N", help="random seed (default 0)")
    p.add_argument("--resume", type=Path, metavar="DIR", help="continue a stopped training with its saved options")
    p.add_argument("--dry-run", action="store_true", help="print the plan, then exit")
    _add_data(p.add_argument_group("training data"))
    _add_model(p.add_argument_group("model"))
    _add_training(p.add_argument_group("training"))
    _add_hyperparameters(p.add_argument_group("hyperparameters, in place of the recipe's"))
    doctor = p.add_argument_group("doctor")
    doctor.add_argument("--check-mode", choices=["train", "sft", "distill"], help="mode to check (default train)")
    doctor.add_argument("--environment", metavar="DIR", help="environment with Arbor (default: this one)")
    _add_evaluation(p.add_argument_group("evaluate"))
    return p


def _add_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--benchmark", metavar="NAME", help=benchmarks.HELP)
    add("--data", metavar="PATH", help="its file, own conversations, or `simulated` (default: LOCOMO)")
    add("--num-train", type=positive, metavar="N", help=f"training questions at most (default {DEFAULT.num_train})")
    add("--num-val", type=positive, metavar="N", help=f"validation questions at most (default {DEFAULT.num_val})")
    add("--budgets", type=integers, metavar="N,…", help="tokens of memory (default 512,1024,2048)")
    add("--rounds", type=count, metavar="N", help="reader calls (default: one per budget; 0 asks for the bare answer)")
    add(
        "--episodes",
        action="store_true",
        help="train each question as one episode of up to --rounds calls, in which the model may ask for more memory "
        "(train; trl or --export)",
    )
    add("--question-budget", type=positive, metavar="N", help="tokens of all calls of an episode at most")
    add(
        "--token-price",
        type=number(0, 1),
        metavar="X",
        help="deduction from the reward of an episode per 1,000 tokens of all calls (default 0.01)",
    )
    add("--memory", choices=["adaptive", "oracle"], help="memory system, or the evidence only (default adaptive)")
    add("--absent-share", type=number(0, 1), metavar="X", help="unanswerable questions at most (default 0.1)")
    add("--rename", action="store_true", help="replace the speakers' names in training conversations")
    add("--examples", action="store_true", help="keep the prompt's worked examples (trl only)")
    add("--teacher", metavar="NAME", help="model whose answers are learned (sft, distill)")
    add("--teacher-api-base", metavar="URL", help="OpenAI-compatible server for --teacher")
    add("--teacher-price", type=price, metavar="P,R", help="dollars per million tokens: prompt, reply")
    add("--cost-limit", type=DOLLARS, metavar="USD", help="stop calling the teacher at this cost")


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model", metavar="NAME", help=f"hub name, folder, or embedded:tiny (default {DEFAULT.model})")
    add("--adapter", metavar="DIR", help="adapter to start from, or to evaluate")
    add("--quantize", choices=["4bit"], help="QLoRA: base model in 4 bits (nf4)")
    add("--attn", metavar="NAME", help="flash_attention_2, sdpa or eager (default: transformers' own)")
    add("--packing", action="store_true", help="pack several prompts into one row (sft, distill)")
    add("--unsloth", action="store_true", help="load the model with Unsloth, which must be installed")
    add("--merge", action="store_true", help="also write the merged model to merged/")
    add(
        "--chat-template-kwargs",
        type=json_object,
        metavar="JSON",
        help="arguments of the chat template (default: '{\"enable_thinking\": false}' if the template has it)",
    )
    add("--push-to-hub", metavar="OWNER/NAME", help="upload the adapter to a private repository")


def _add_training(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--num-train-steps", type=positive, metavar="N", help=f"training steps (default {DEFAULT.num_train_steps})")
    add("--save-steps", type=positive, metavar="N", help=f"steps between checkpoints (default {DEFAULT.save_steps})")
    add("--eval-steps", type=positive, metavar="N", help="steps between validations (default: a tenth of the training)")
    add("--output-dir", metavar="DIR", help=f"training folder (default by mode: {', '.join(OUTPUT_FOLDERS.values())})")
    add(
        "--patience",
        type=count,
        metavar="N",
        help="stop after N validations without a better one (default 0: never; trl)",
    )
    add("--out", metavar="FILE", help=f"prompt file (default by mode: {', '.join(PROMPT_FILES.values())})")
    add("--vllm", action=argparse.BooleanOptionalAction, help="sample with vLLM (trl; default on a GPU with vLLM)")
    add("--vllm-memory", type=number(0.05, 0.95), metavar="X", help="share of the GPU for vLLM (trl; default 0.3)")
    add("--inference-gpus", metavar="IDS", help="GPUs that serve (arbor; default 0)")
    add("--training-gpus", metavar="IDS", help="GPUs that train (arbor; default 1,2)")
    add("--arbor-url", metavar="URL", help="server, or file of arbor/deploy.py (default: arbor_pod.json, or local)")
    add("--arbor-config", metavar="FILE", help="written if it is missing (default arbor.yaml)")
    add("--no-mlflow", action="store_true", help="do not log to mydb.sqlite")


def _add_hyperparameters(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--batch-size", type=positive, metavar="N", help="completions per GPU and forward pass")
    add("--gradient-accumulation", type=positive, metavar="N", help="forward passes per step")
    add("--num-generations", type=positive, metavar="N", help="completions per prompt")
    add("--learning-rate", type=number(1e-9, 1), metavar="X")
    add("--lr-scheduler", choices=SCHEDULERS, metavar="NAME", help=", ".join(SCHEDULERS))
    add("--warmup-steps", type=count, metavar="N")
    add("--max-grad-norm", type=number(0.001, 1e6), metavar="X", help="gradient clipping")
    add("--beta", type=number(0, 10), metavar="X", help="weight of the KL term")
    add("--lora-rank", type=positive, metavar="N")
    add("--lora-alpha", type=positive, metavar="N")
    add("--lora-dropout", type=number(0, 0.9), metavar="X")
    add("--lora-targets", metavar="A,B,…", help="module names, or all-linear")
    add("--max-prompt-tokens", type=positive, metavar="N")
    add("--max-completion-tokens", type=positive, metavar="N")
    add("--temperature", type=number(0.01, 5), metavar="X", help="sampling temperature")
    add("--top-p", type=number(0.01, 1), metavar="X")
    add("--loss", choices=["dapo", "dr_grpo", "bnpo", "cispo", "grpo"])
    add("--scale-rewards", choices=["group", "batch", "none"], help="scale of the advantages")
    add("--clip-high", type=number(0.01, 10), metavar="X", help="upper clip range of the policy ratio")
    add("--mask-truncated", action=argparse.BooleanOptionalAction, help="leave truncated completions out of the loss")
    add("--importance-sampling", choices=["token", "sequence"], help="sequence is GSPO")
    add("--precision", choices=["bf16", "fp32"])


def _add_evaluation(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--num-test",
        type=count,
        metavar="N",
        help="test questions, stratified by category (default 100; 0 after a training)",
    )
    add("--split", metavar="PART", help="test, validation, or memory-r1:test … (default test)")
    add("--budget-tokens", type=positive, metavar="N", help="tokens of memory (default: the largest training budget)")
    add("--api-base", metavar="URL", help="server of base model and adapter (vllm --enable-lora)")
    add("--adapter-name", metavar="NAME", help="the adapter's name on that server")
    add("--run-dir", metavar="DIR", help="run folder (default runs/TIME)")


def options_of(given: dict[str, Any]) -> TrainOptions:
    """Return the options for parsed flags. Raises UserError if they contradict each other."""
    overrides = {name: value for name, value in given.items() if name in NAMES}
    rest = {name: value for name, value in given.items() if name not in NAMES}
    if "budgets" in rest:
        rest["budgets"] = tuple(rest["budgets"])
    options = TrainOptions(**rest, overrides=overrides)
    refuse_idle(given, options)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run train.py.

    Returns:
        The exit code.

    Raises:
        UserError: The options or the data do not allow the training.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn if a process forks after their use
    given = vars(parser().parse_args(argv))
    if folder := given.pop("resume", None):
        if others := [name for name in given if name not in ("arbor_url", "cost_limit")]:
            raise UserError(
                "--resume uses the saved options and accepts only --arbor-url and --cost-limit; leave out "
                f"{flag_names(others)}."
            )
        from memometer.train.plan import resume

        return EXIT[resume(folder, **given)]
    dry_run = given.pop("dry_run", False)
    options = options_of(given)
    if options.mode == "doctor":
        from memometer.train.doctor import examine

        return EXIT[examine(options)]
    if options.mode == "evaluate":
        from memometer.train.adapter_evaluation import evaluate

        return EXIT[evaluate(options)]
    from memometer.train import plan

    if not dry_run and not options.export:
        return EXIT[plan.start(options)]
    made = plan.make_plan(options)
    if dry_run:
        lines = plan.announcement(made)
    else:
        from memometer.train.exporters import export

        lines = export(made, str(options.export))
    for line in lines:
        made.print(line)
    return EXIT["valid"]
