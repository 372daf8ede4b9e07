"""Train and evaluate on a GPU within a time limit: supervised training, GRPO from its adapter, four arms on the test.

    OUT=results python .gpu/base/run.py --seconds 520 --sft-steps 40 --grpo-steps 80

Run it in a checkout, after prepare.py. Everything is written to OUT as it happens: log.jsonl, metrics, answers.jsonl
and the adapters. The timer stops GRPO in time for the last evaluation. It runs on a CPU, too, with one step of each.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

START = time.monotonic()
HERE = Path(__file__).resolve().parent
EVALUATION_SECONDS = 60
"""Time that is kept for the last evaluation."""
MAX_TOKENS = 48


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=520, help="time limit of the whole run (default 520)")
    p.add_argument("--sft-steps", type=int, default=40)
    p.add_argument("--grpo-steps", type=int, default=80)
    p.add_argument("--prompts", type=int, default=32, help="prompts per GRPO step (default 32)")
    p.add_argument("--group", type=int, default=8, help="completions of a prompt (default 8)")
    p.add_argument("--batch", type=int, default=32, help="sequences per forward pass (default 32)")
    p.add_argument("--eval-batch", type=int, default=128)
    p.add_argument("--validation", type=int, default=100, help="validation prompts (default 100)")
    p.add_argument("--test", type=int, help="test prompts at most (default: all)")
    p.add_argument("--work", type=Path, default=Path("/tmp/memometer-gpu"), help="folder for checkpoints")
    return p


class Run:
    """One run: its options, carried prompts and output folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out = Path(os.environ.get("OUT", "gpu_results"))
        self.out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(args.work, ignore_errors=True)
        args.work.mkdir(parents=True)
        self.meta: dict[str, Any] = json.loads((HERE / "meta.json").read_text())
        self.model = f"embedded:{self.meta['tier']}"

    def log(self, **values: Any) -> None:
        """Print a record, and add it to log.jsonl."""
        record = {"seconds": round(time.monotonic() - START, 1), **values}
        print(json.dumps(record, default=str), flush=True)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(record, default=str) + "\n")

    def prompts(self, name: str, most: int | None = None) -> tuple[Any, ...]:
        """Read carried prompts."""
        from memometer.train.prompt_dataset import ReadingPrompt

        with gzip.open(HERE / f"{name}.jsonl.gz", "rt", encoding="ascii") as file:
            return tuple(ReadingPrompt.of_json(json.loads(line)) for line in file)[:most]

    def train(self, mode: str, steps: int, *flags: str) -> Path:
        """Train on the carried prompts; return the folder of the best adapter."""
        import torch

        from memometer.benchmarks.protocol import Dataset
        from memometer.commands import train
        from memometer.run.folder import RunFolder
        from memometer.train import gpu_memory, trl_backend
        from memometer.train.plan import TrainingPlan

        argv = ["--mode", mode, "--backend", "trl", "--model", self.model, "--rounds", "0", "--no-mlflow"]
        argv += ["--budgets", str(self.meta["budget"]), "--num-train-steps", str(steps), "--save-steps", str(steps)]
        argv += ["--output-dir", str(self.args.work / mode), "--out", str(self.args.work / f"{mode}.json")]
        argv += ["--max-completion-tokens", str(MAX_TOKENS), *flags]
        options = train.options_of(vars(train.parser().parse_args(argv)))
        data = Dataset((), Path("carried"), self.meta["sha256"], self.meta["benchmark"], kind=self.meta["kind"])
        validation = self.prompts("validation", self.args.validation)
        plan = TrainingPlan(options, options.hyperparameters(), data, self.prompts("train"), validation)
        trl_backend.check(plan)
        began = time.monotonic()
        with RunFolder.create(plan.output, {"config": options.as_json(), "stand_in": data.kind}) as folder:
            outcome = trl_backend.train(plan, folder)
        seconds = time.monotonic() - began
        records = [json.loads(line) for line in (folder.path / "steps.jsonl").read_text().splitlines()]
        peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
        shape = gpu_memory.shape_of(self.model)
        estimate = shape and gpu_memory.training_memory(
            shape, plan.hyperparameters, backend="trl", on_gpu=torch.cuda.is_available(),
            prompt_tokens=self.longest_prompt(plan), supervised=mode == "sft",
        )  # fmt: skip
        seen = records[-1].get("tokens_seen") if records else None
        self.log(
            what=mode, outcome=outcome, steps=len(records), train_seconds=round(seconds, 1), peak_gb=peak,
            estimated_gb=estimate and round(estimate.gb, 2), estimate=str(estimate),
            tokens_per_second=seen and round(seen / seconds),
        )  # fmt: skip
        for name in ("steps.jsonl", "validation_scores.jsonl"):
            shutil.copy(folder.path / name, self.out / f"{mode}_{name}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return folder.path / "best"

    def longest_prompt(self, plan: Any) -> int:
        """Return the model's tokens of the longest training prompt."""
        from transformers import AutoTokenizer

        from memometer.train import chat_format, local_model

        tokenizer = AutoTokenizer.from_pretrained(local_model.dense_source(self.model))
        longest = max(plan.train, key=lambda prompt: sum(len(m["content"]) for m in prompt.messages))
        return len(chat_format.prompt_ids(tokenizer, longest.messages))

    def evaluate(self, arm: str, local: Any, prompts: tuple[Any, ...], *, as_text: bool = False) -> None:
        """Answer the prompts greedily and write the graded answers. Prompts with examples are continued as text."""
        from memometer.train.chat_format import plain_text
        from memometer.train.reward import grade

        began = time.monotonic()
        ids = [
            local.tokenizer(plain_text(p.messages))["input_ids"] if as_text else local.prompt_ids(p.messages)
            for p in prompts
        ]
        replies = local.generate(ids, max_tokens=MAX_TOKENS, batch_size=self.args.eval_batch)
        if as_text:
            replies = [reply.lstrip().partition("\n")[0] for reply in replies]
        f1 = []
        with (self.out / "answers.jsonl").open("a") as file:
            for prompt, reply in zip(prompts, replies, strict=True):
                found = grade(prompt.case, reply)
                answerable = prompt.case.answerable
                f1 += [found.f1] if answerable else []
                record = {
                    "arm": arm, "question_id": prompt.question_id, "conversation": prompt.conversation,
                    "answerable": answerable, "answer": reply, "f1": found.f1, "balanced_f1": found.balanced_f1,
                    "strict": found.strict,
                }  # fmt: skip
                file.write(json.dumps(record) + "\n")
        mean = round(sum(f1) / max(1, len(f1)), 4)
        self.log(what="arm", arm=arm, n=len(prompts), f1=mean, arm_seconds=round(time.monotonic() - began, 1))

    def carry_out(self) -> None:
        """Train twice and evaluate four arms, within the time limit."""
        from memometer.train import local_model

        args = self.args
        test, examples = self.prompts("test", args.test), self.prompts("test_examples", args.test)
        sft = self.train(
            "sft", args.sft_steps, "--batch-size", str(args.batch), "--gradient-accumulation", "1", "--learning-rate",
            "5e-4", "--warmup-steps", str(min(4, args.sft_steps)), "--eval-steps", str(args.sft_steps),
            "--lora-rank", "8",
        )  # fmt: skip
        local = local_model.load(self.model).with_adapter(sft)
        with local.without_adapter():
            self.evaluate("base", local, test)
            self.evaluate("base with examples", local, examples, as_text=True)
        self.evaluate("supervised", local, test)
        shutil.make_archive(str(self.out / "supervised"), "gztar", sft)
        del local
        left = args.seconds - (time.monotonic() - START)
        self.log(what="left for GRPO", left_seconds=round(left))
        if left < EVALUATION_SECONDS:
            self.log(what="GRPO left out", reason="no time is left")
            return
        accumulation = max(1, args.prompts * args.group // args.batch)
        # SIGTERM makes the backend save and stop; best/ has the best validation until then.
        timer = threading.Timer(left - EVALUATION_SECONDS, lambda: os.kill(os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
        grpo = self.train(
            "train", args.grpo_steps, "--adapter", str(sft), "--batch-size", str(args.batch),
            "--gradient-accumulation", str(accumulation), "--num-generations", str(args.group), "--learning-rate",
            "1e-4", "--warmup-steps", str(min(3, args.grpo_steps)), "--eval-steps", str(max(1, args.grpo_steps // 4)),
            "--no-vllm",
        )  # fmt: skip
        timer.cancel()
        if not grpo.exists():
            self.log(what="no GRPO adapter", reason="the timer ended before its first validation")
            return
        local = local_model.load(self.model).with_adapter(grpo)
        self.evaluate("after GRPO", local, test)
        shutil.make_archive(str(self.out / "after_grpo"), "gztar", grpo)


def main(argv: list[str] | None = None) -> int:
    """Carry out the run."""
    args = parser().parse_args(argv)
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(HERE / "tiktoken"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    run = Run(args)
    run.carry_out()
    run.log(what="done")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(main())
