"""What a training leaves: checkpoints, the best adapter with its model card, the reading prompt that goes with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memometer.models.errors import describe
from memometer.reader import program_file
from memometer.reader.reader import Reader
from memometer.run.folder import RunFolder
from memometer.run.progress import eprint
from memometer.train import metrics
from memometer.train.local_model import dense
from memometer.train.plan import Job, Outcome, licence
from memometer.train.prompt_dataset import ReadingPrompt

COMPLETE = "complete"
"""A file in a checkpoint that was written to its end."""


# ---------------------------------------------------------------- checkpoints


def complete(checkpoint: Path) -> None:
    """Mark a checkpoint as whole: a kill in the middle of saving leaves one that is not."""
    (checkpoint / COMPLETE).touch()


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def newest_checkpoint(folder: Path) -> Path | None:
    """The last whole one."""
    found = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).exists()]
    return max(found, key=step_of, default=None)


# ---------------------------------------------------------------- the end


def conclude(job: Job, folder: RunFolder) -> Outcome:
    """Write the results, the program, the merged model; push if asked; then evaluate. The adapter is safe by now."""
    best = folder.path / "best"
    steps = metrics.read_lines(folder.path / "steps.jsonl")
    validations = metrics.read_lines(folder.path / "validation_scores.jsonl")
    if not (best / "adapter_config.json").exists():
        eprint(f"{job.data.prefix}No adapter was kept; {folder.path} holds the checkpoints.")
        return "failed"
    note = json.loads((best / "training.json").read_text(encoding="utf-8"))
    alarm = metrics.alarm(steps)
    results = {
        "mode": job.config["mode"],
        "model": job.config["model"],
        "steps": len(steps),
        "best": note["validation"],
        "before": next((line for line in validations if line["step"] == 0), None),
        "alarm": alarm,
        "finite": all(abs(step.get("loss", 0.0)) < float("inf") for step in steps),
    }
    folder.write_json("results.json", results)
    write_program(job, note)
    job.say(f"Best at step {note['validation']['step']:,}: {best}")
    if results["before"]:
        job.say(metrics.line({**results["before"], "what": "validation of the base, step"}))
    job.say(metrics.line({**note["validation"], "what": "validation of the best, step"}))
    if alarm:
        job.say(alarm)
    if job.config["merge"]:
        job.say(f"Merged into {merge(best, folder.path / 'merged')}")
    if job.config["push_to_hub"]:
        job.say(push(best, job.config["push_to_hub"]))
    if not job.config["no_mlflow"]:
        from memometer.train.mlflow_runs import log_training

        job.say(log_training(folder, results))
    if not job.config["num_test"]:
        return "valid"
    from memometer.train.adapter_evaluation import evaluate

    return evaluate({**job.config, "mode": "evaluate", "adapter": best, "run_dir": None})


def write_program(job: Job, note: Mapping[str, Any]) -> None:
    """The reading prompt that the adapter was trained with, for evaluate.py --program, at --out."""
    reader = Reader(rounds=job.config["rounds"])
    if not job.config["examples"]:
        reader.read.demos = []
    out = Path(job.config["out"])
    program_file.save(reader.read, out, {**note, "rounds": job.config["rounds"], "optimised": True})
    job.say(f"Prompt written to {out}.")


def notes(job: Job, validation: Mapping[str, Any]) -> dict[str, Any]:
    """What must be known to ask an adapter again, and to say what it has seen."""
    config = job.config

    def seen(by: str, prompts: Sequence[ReadingPrompt]) -> list[str]:
        before = (id for notes in job.before for id in notes[by])
        return sorted({*before, *(prompt.conversation for prompt in prompts)})

    return {
        "model": config["model"],
        "mode": config["mode"],
        "backend": config["backend"],
        "recipe": config["recipe"],
        "values": job.values,
        "rounds": config["rounds"],
        "budgets": config["budgets"],
        "memory": config["memory"],
        "examples": config["examples"],
        "quantize": config["quantize"],
        "seed": config["seed"],
        "data": job.data.sha256,
        "stand_in": job.stand_in,
        "trained_on": seen("trained_on", job.train),
        "selected_on": seen("selected_on", job.validation),
        "validation": dict(validation),
        "licence": licence(job.stand_in, job.data),
    }


def card(job: Job, validation: Mapping[str, Any]) -> str:
    """The model card: what it is, what it was trained on, and under which terms."""
    config, values = job.config, job.values
    found, free = notes(job, validation), bool(job.stand_in)
    return f"""---
base_model: {config["model"]}
library_name: peft
license: {"mit" if free else "cc-by-nc-4.0"}
tags: [lora, {"grpo" if config["mode"] == "train" else "sft"}, memory, conversation]
---

# A reader of conversational memory

LoRA adapter for `{config["model"]}`, made by adaptive-memory's `train.py --mode {config["mode"]}` with {
        config["backend"]
    }
(recipe `{config["recipe"]}`, seed {config["seed"]}). It answers questions from lines of a conversation's memory.

{found["licence"]}
{
        "It may be given away under its base model's licence."
        if free
        else "The data allows no commercial use, and an adapter trained on it is not to be put to any."
    }

Trained on {", ".join(found["trained_on"])}; chosen on
{", ".join(found["selected_on"])} (step {validation["step"]}, validation reward
{validation["reward"]:.3f}). Whatever it scores there says nothing; use `train.py --mode evaluate`.

| value | |
|---|---|
{chr(10).join(f"| {name} | {value} |" for name, value in values.items())}
"""


def merge(adapter: Path, to: Path) -> Path:
    """The base with the adapter worked into its weights, in full precision, as any server loads it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    note = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
    source = dense(note["model"])
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    base = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    merged.save_pretrained(str(to))
    AutoTokenizer.from_pretrained(str(adapter)).save_pretrained(str(to))
    for name in ("README.md", "training.json"):
        shutil.copy(adapter / name, to / name)
    return to


def push(adapter: Path, name: str) -> str:
    """Upload one adapter with its card, and nothing else; a sentence on how that went."""
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=str(adapter), commit_message="Adapter")
    except Exception as error:  # noqa: BLE001 - the adapter is on disk; a failed upload must not lose the result
        return f"Not pushed ({describe(error)}); log in with `hf auth login`, then `hf upload {name} {adapter}`."
    return f"Pushed to {name}, private."
