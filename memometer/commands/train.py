"""Train a reader's weights on LOCOMO's training conversations; the test conversations are never looked at.

    python train.py --mode train --num-train 600 --num-val 100 --num-train-steps 500 --model Qwen/Qwen2.5-3B \\
        --inference-gpus 0 --training-gpus 1,2                             GRPO on an Arbor server
    python train.py --mode train --backend trl                             GRPO on one machine, with a GPU or without
    python train.py --mode sft --backend trl --model embedded:tiny         supervised tuning on the gold answers
    python train.py --mode distill --teacher openai/gpt-4o-mini            on a teacher's answers
    python train.py --mode train --export verl                             the same prompts for a distributed engine
    python train.py --mode evaluate --num-test 100                         the adapter against its own base
    python train.py --mode doctor                                          what would fail, before a GPU is rented
    python train.py --resume grpo_checkpoints                              go on where training stopped

GRPO writes grpo_checkpoints/ and grpo_optimized_memory_qa.json, for evaluate.py --program.

Exit codes: 0 done, 1 failed, 2 usage, 3 invalid, 4 stopped and resumable.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from memometer.commands.argument_types import count, integers, positive, price

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

USAGE = 2
EXIT = {"valid": 0, "failed": 1, "invalid": 3, "stopped": 4}
MODES = ("train", "sft", "distill", "evaluate", "doctor")
OUTPUTS = {"train": "grpo_checkpoints", "sft": "sft_checkpoints", "distill": "distilled_checkpoints"}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    p.add_argument("--mode", choices=MODES, default="train")
    p.add_argument(
        "--backend",
        choices=["arbor", "trl"],
        help="train: arbor is a server with two GPUs or more (default), trl this machine; sft, distill: trl",
    )
    p.add_argument("--export", choices=["verl", "verifiers"], help="write prompts and a recipe for it, and stop")
    p.add_argument("--recipe", choices=["current", "seed"], default="current", help="where the values come from")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--resume", type=Path, metavar="DIR", help="go on with a stopped training, as it was configured")
    p.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    data = p.add_argument_group("what is learned from")
    data.add_argument(
        "--data", metavar="FILE", help="locomo10.json (default: LOCOMO_PATH, data/, the network), or simulated"
    )
    data.add_argument("--num-train", type=positive, default=600, metavar="N", help="training questions, at most")
    data.add_argument("--num-val", type=positive, default=100, metavar="N", help="validation questions, at most")
    data.add_argument(
        "--budgets",
        type=lambda text: sorted(integers(text)),
        default=[512, 1024, 2048],
        metavar="N,…",
        help="tokens of memory",
    )
    data.add_argument(
        "--rounds", type=count, metavar="N", help="as in evaluate.py; default one for each budget, 0: the bare answer"
    )
    data.add_argument("--memory", choices=["adaptive", "oracle"], default="adaptive", help="what fills the budgets")
    data.add_argument(
        "--absent-share", type=float, default=0.1, metavar="SHARE", help="of unanswerable questions, at most"
    )
    data.add_argument("--rename", action="store_true", help="give the speakers of training conversations other names")
    data.add_argument("--examples", action="store_true", help="keep the prompt's worked examples (not with arbor)")
    data.add_argument("--teacher", metavar="NAME", help="sft, distill: who answers; default for sft: the gold answers")
    data.add_argument("--teacher-api-base", metavar="URL", help="an OpenAI-compatible server for --teacher")
    data.add_argument("--teacher-price", type=price, metavar="P,R", help="dollars per million tokens")
    data.add_argument("--cost-limit", type=float, metavar="USD", help="stop asking the teacher when so much is spent")
    who = p.add_argument_group("what is trained")
    who.add_argument(
        "--model", default="Qwen/Qwen2.5-3B", metavar="NAME", help="of the Hugging Face hub, a folder, embedded:tiny"
    )
    who.add_argument("--adapter", type=Path, metavar="DIR", help="train: start from it; evaluate: the one to evaluate")
    who.add_argument("--quantize", choices=["4bit"], help="QLoRA: the base model in 4 bits (nf4)")
    who.add_argument("--attn", metavar="NAME", help="flash_attention_2, sdpa or eager (default: transformers')")
    who.add_argument("--packing", action="store_true", help="sft, distill: several prompts in one row of a batch")
    who.add_argument("--unsloth", action="store_true", help="load the model with Unsloth, where it is installed")
    who.add_argument("--merge", action="store_true", help="write the full model too, in merged/ beside the adapter")
    who.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the adapter; nothing is pushed otherwise")
    how = p.add_argument_group("how it is trained")
    how.add_argument("--num-train-steps", type=positive, default=500, metavar="N")
    how.add_argument("--save-steps", type=positive, default=25, metavar="N", help="steps between checkpoints")
    how.add_argument("--eval-steps", type=positive, metavar="N", help="between validations (default: a tenth)")
    how.add_argument("--output-dir", type=Path, metavar="DIR", help=f"default {', '.join(OUTPUTS.values())}")
    how.add_argument("--out", type=Path, default=Path("grpo_optimized_memory_qa.json"), metavar="FILE")
    how.add_argument("--vllm", action=argparse.BooleanOptionalAction, help="trl: sample with vLLM (default: on a GPU)")
    how.add_argument("--vllm-memory", type=float, default=0.3, metavar="SHARE", help="of the GPU's memory, for vLLM")
    how.add_argument("--inference-gpus", default="0", metavar="IDS", help="arbor")
    how.add_argument("--training-gpus", default="1,2", metavar="IDS", help="arbor")
    how.add_argument("--arbor-url", metavar="URL", help="default: what arbor/deploy.py wrote, else this machine's")
    how.add_argument("--arbor-config", type=Path, default=Path("arbor.yaml"), metavar="FILE", help="written if missing")
    how.add_argument("--no-mlflow", action="store_true", help="do not log to mydb.sqlite")
    values = p.add_argument_group("values that override the recipe's")
    values.add_argument("--batch-size", type=positive, metavar="N", help="completions on one GPU at once")
    values.add_argument("--gradient-accumulation", type=positive, metavar="N")
    values.add_argument("--num-generations", type=positive, metavar="N", help="completions of one prompt")
    values.add_argument("--learning-rate", type=float, metavar="X")
    values.add_argument("--lr-scheduler", choices=["constant", "constant_with_warmup", "linear", "cosine"])
    values.add_argument("--warmup-steps", type=count, metavar="N")
    values.add_argument("--max-grad-norm", type=float, metavar="X")
    values.add_argument("--beta", type=float, metavar="X", help="of the KL term")
    values.add_argument("--lora-rank", type=positive, metavar="N")
    values.add_argument("--lora-alpha", type=positive, metavar="N")
    values.add_argument("--lora-dropout", type=float, metavar="X")
    values.add_argument("--lora-targets", metavar="A,B,…", help="module names, or all-linear")
    values.add_argument("--max-prompt-tokens", type=positive, metavar="N")
    values.add_argument("--max-completion-tokens", type=positive, metavar="N")
    values.add_argument("--temperature", type=float, metavar="X")
    values.add_argument("--top-p", type=float, metavar="X")
    values.add_argument("--loss", choices=["dapo", "dr_grpo", "bnpo", "cispo", "grpo"])
    values.add_argument("--scale-rewards", choices=["group", "batch", "none"])
    values.add_argument("--clip-high", type=float, metavar="X")
    values.add_argument("--mask-truncated", action=argparse.BooleanOptionalAction)
    values.add_argument("--importance-sampling", choices=["token", "sequence"], help="sequence is GSPO")
    values.add_argument("--precision", choices=["bf16", "fp32"])
    doctor = p.add_argument_group("doctor")
    doctor.add_argument("--environment", metavar="DIR", help="the one that Arbor is installed in (default: this one)")
    test = p.add_argument_group("evaluate")
    test.add_argument("--num-test", type=count, default=100, metavar="N", help="a seeded sample, by category")
    test.add_argument("--split", default="test", metavar="PART", help="test, validation, or memory-r1:test …")
    test.add_argument("--budget-tokens", type=positive, metavar="N", help="default: the largest it was trained on")
    test.add_argument("--api-base", metavar="URL", help="a server that serves base and adapter (vllm --enable-lora)")
    test.add_argument("--adapter-name", metavar="NAME", help="what that server calls the adapter")
    test.add_argument("--run-dir", type=Path, metavar="DIR", help="default runs/TIME")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if problem := _mistake(args):
        return _refuse(problem)
    config = {name: value for name, value in vars(args).items() if name not in ("resume", "dry_run")}
    from memometer.harness.plan import Refused

    try:
        if args.mode == "doctor":
            return EXIT[import_module("memometer.train.doctor").examine(config)]
        if args.mode == "evaluate":
            return EXIT[import_module("memometer.train.adapter_evaluation").evaluate(config)]
        from memometer.train.plan import carry_out, export, plan, resume

        if args.resume:
            return EXIT[resume(args.resume, arbor_url=args.arbor_url, cost_limit=args.cost_limit)]
        if args.dry_run:
            return EXIT[plan(config)]
        return EXIT[export(config) if args.export else carry_out(config)]
    except Refused as error:
        return _refuse(str(error))
    except KeyboardInterrupt:  # once training goes on, Ctrl-C is the back end's to handle
        print("train.py: stopped before anything was trained.", file=sys.stderr)
        return EXIT["failed"]


def _mistake(args: argparse.Namespace) -> str:
    """What is wrong with the command line, in one sentence; empty where nothing is. Fills in what depends on --mode."""
    if args.resume is not None:
        return _beside_resume(args)
    if args.backend is None:
        args.backend = "arbor" if args.mode in ("train", "doctor") and not args.export else "trl"
    if args.mode in ("sft", "distill") and args.backend == "arbor":
        return f"Arbor serves GRPO only; use --mode {args.mode} --backend trl."
    if args.mode == "distill" and not args.teacher:
        return "--mode distill needs a teacher, such as --teacher openai/gpt-4o-mini."
    if args.teacher and args.mode not in ("sft", "distill"):
        return f"--teacher has no part in --mode {args.mode}; use --mode distill."
    for flag in ("teacher_api_base", "teacher_price", "cost_limit"):
        if getattr(args, flag) is not None and not args.teacher:
            return f"{_flags([flag])} needs --teacher, such as --teacher openai/NAME."
    if args.export and args.mode != "train":
        return f"--export is for --mode train; leave out --mode {args.mode}."
    if args.rounds is None:
        args.rounds = 0 if args.memory == "oracle" else len(args.budgets)
    if args.rounds > 1 and len(args.budgets) != args.rounds:
        return f"--rounds {args.rounds} takes as many --budgets, and there are {len(args.budgets)}."
    if args.rounds and args.memory == "oracle":
        return "--memory oracle shows the evidence and asks for the bare answer; leave out --rounds."
    if args.examples and args.backend == "arbor" and args.mode == "train":
        return "Arbor samples with the examples and trains without them; use --backend trl."
    if args.mode in OUTPUTS and (idle := _without_effect(args)):
        return idle
    if args.memory == "oracle":
        args.budgets = args.budgets[-1:]
    if args.output_dir is None:
        args.output_dir = Path(OUTPUTS.get(args.mode, OUTPUTS["train"]))
    if problem := _bad_cost_limit(args):
        return problem
    if args.push_to_hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", args.push_to_hub):
        return f"--push-to-hub is {args.push_to_hub!r}; it is OWNER/NAME."
    return _number_out_of_range(args)


OF_BACKEND = {
    "arbor": ("inference_gpus", "training_gpus", "arbor_url", "arbor_config"),
    "trl": ("attn", "packing", "unsloth", "vllm", "vllm_memory"),
}
OF_ADAPTER = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")


def _without_effect(args: argparse.Namespace) -> str:
    """Flags that a training would leave unread."""
    plain = vars(parser().parse_args([]))
    given = [name for name, value in vars(args).items() if value != plain[name]]
    other = "trl" if args.backend == "arbor" else "arbor"
    if idle := [name for name in OF_BACKEND[other] if name in given]:
        return f"{_flags(idle)} is for --backend {other}; leave it out."
    if args.mode != "train" and (idle := [name for name in ("vllm", "vllm_memory") if name in given]):
        return f"{_flags(idle)} is for --mode train; leave it out."
    if args.adapter and (idle := [name for name in OF_ADAPTER if name in given]):
        return f"{_flags(idle)} is settled by --adapter {args.adapter}; leave it out."
    return ""


def _flags(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


RANGES = {
    "absent_share": (0.0, 1.0),
    "vllm_memory": (0.05, 0.95),
    "learning_rate": (1e-9, 1.0),
    "beta": (0.0, 10.0),
    "lora_dropout": (0.0, 0.9),
    "temperature": (0.01, 5.0),
    "top_p": (0.01, 1.0),
    "clip_high": (0.01, 10.0),
    "max_grad_norm": (0.001, 1e6),
}


def _number_out_of_range(args: argparse.Namespace) -> str:
    for name, (low, high) in RANGES.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            return f"--{name.replace('_', '-')} is {value:g}; it is a number from {low:g} to {high:g}."
    return ""


def _beside_resume(args: argparse.Namespace) -> str:
    plain: dict[str, Any] = vars(parser().parse_args([]))
    beside = ("resume", "arbor_url", "cost_limit")
    if extra := _flags([name for name, value in vars(args).items() if value != plain[name] and name not in beside]):
        return (
            "--resume takes the saved configuration and nothing but --arbor-url and --cost-limit beside it, but got "
            f"{extra}; leave it out."
        )
    return _bad_cost_limit(args)


def _bad_cost_limit(args: argparse.Namespace) -> str:
    if args.cost_limit is not None and not 0 < args.cost_limit < 1e6:
        return f"--cost-limit is {args.cost_limit}; it is a number of dollars above 0."
    return ""


def _refuse(why: str) -> int:
    print(f"train.py: {why}", file=sys.stderr)
    return USAGE
