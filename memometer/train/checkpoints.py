"""Checkpoints of a training, and the best adapter with its notes and model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from memometer.models.embedded import repository_of
from memometer.reader import program_file
from memometer.stats.intervals import Comparison, paired
from memometer.train import metrics
from memometer.train.episodes import Episodes
from memometer.train.local_model import LocalModel
from memometer.train.plan import TrainingPlan
from memometer.train.prompt_dataset import ReadingPrompt
from memometer.train.reward import Grade, grade

PROGRAM = "program.json"
"""The trained prompt in an adapter's folder, as evaluate.py --program reads it."""
COMPLETE = "complete"
"""Marker file of a checkpoint that was written completely."""
KL_REPLIES = 16
"""Replies in the estimate of the KL divergence from the base model."""


def mark_complete(checkpoint: Path) -> None:
    """Mark a checkpoint as complete. A kill during saving leaves one without this mark."""
    (checkpoint / COMPLETE).touch()


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint folder."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint, or None."""
    found = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).exists()]
    return max(found, key=step_of, default=None)


def copy_start(adapter: Path, folder: Path) -> None:
    """Copy the adapter from which a training starts to `start/`, with its own starts, for the evaluation."""
    if (folder / "start").exists():
        return
    part = folder / "start.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(adapter, part)
    if adapter.name == "best" and (adapter.parent / "start").is_dir():
        shutil.copytree(adapter.parent / "start", part / "start", dirs_exist_ok=True)
    part.replace(folder / "start")


# ---------------------------------------------------------------- validation


def validation_record(step: int, grades: Sequence[Grade]) -> dict[str, Any]:
    """Return the record of one validation. Step 0 is the model before the training."""
    rewards = [each.reward for each in grades]
    found = {"step": step, "what": "validation", "reward": fmean(rewards), **metrics.reply_metrics(grades)}
    return {**found, "rewards": [round(reward, 6) for reward in rewards]}


def gain_over_start(scores: Path, validations: Sequence[ReadingPrompt], best: int) -> Comparison | None:
    """Compare the rewards of the best step with those before the training, paired by prompt; None without them."""
    found = {line["step"]: line.get("rewards") for line in metrics.read_lines(scores)}
    before, after = found.get(0), found.get(best)
    if not before or not after or len(before) != len(after) or len(after) != len(validations):
        return None
    return paired(after, before, [prompt.conversation for prompt in validations])


def best_reward(scores: Path, *, except_step: int) -> float:
    """Return the highest reward of the validations after step 0, without one step; minus infinity if there are none."""
    rewards = [line["reward"] for line in metrics.read_lines(scores) if line["step"] not in (0, except_step)]
    return max(rewards, default=float("-inf"))


class Validation:
    """Greedy replies to the validation prompts, graded as at the start of the training so that steps are comparable."""

    def __init__(self, plan: TrainingPlan, folder: Path, local: LocalModel) -> None:
        self.plan, self.folder, self.local = plan, folder, local
        self.prompts = [local.prompt_ids(prompt.messages) for prompt in plan.validation]

    def run(self, step: int) -> None:
        """Validate the current weights and save their adapter as the best one if no earlier reward is higher."""
        scores = self.folder / metrics.VALIDATIONS
        if self.plan.episodes:
            replies, grades = self._read_episodes(self.plan.episodes)
        else:
            replies = self._generate(self.prompts)
            grades = [grade(prompt.case, reply) for prompt, reply in zip(self.plan.validation, replies, strict=True)]
        record = validation_record(step, grades)
        if step:
            pairs = list(zip(self.prompts, replies, strict=True))[:: max(1, len(replies) // KL_REPLIES)]
            record["kl"] = fmean(self.local.divergence(*pair)[0] for pair in pairs[:KL_REPLIES])
        best_before = best_reward(scores, except_step=step)
        metrics.append(scores, record)
        self.plan.eprint(metrics.format_line(record))
        if step and record["reward"] >= best_before:
            save_best(self.plan, self.folder, record, self._save_adapter, decoding=self.local.format.decoding())

    def _generate(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        values = self.plan.hyperparameters
        return self.local.generate(prompts, max_tokens=values.max_completion_tokens, batch_size=values.batch_size)

    def _read_episodes(self, episodes: Episodes) -> tuple[list[str], list[Grade]]:
        """The first replies and the grades of the episodes of all validation questions."""
        ids = [prompt.question_id for prompt in self.plan.validation]
        readings = [episodes.open(id) for id in ids]
        replies: list[list[str]] = [[] for _ in ids]
        going = list(range(len(ids)))
        while going:
            prompts = [self.local.prompt_ids(episodes.messages(readings[n])) for n in going]
            for n, reply in zip(going, self._generate(prompts), strict=True):
                replies[n].append(reply)
            going = [n for n in going if episodes.take(readings[n], replies[n][-1])]
        grades = [episodes.grade(id, written) for id, written in zip(ids, replies, strict=True)]
        return [written[0] for written in replies], grades

    def _save_adapter(self, folder: Path) -> None:
        # With a KL term the model also has TRL's reference adapter, which must not be saved.
        self.local.model.save_pretrained(str(folder), selected_adapters=["default"])
        self.local.tokenizer.save_pretrained(str(folder))


def save_best(
    plan: TrainingPlan,
    folder: Path,
    validation: Mapping[str, Any],
    save_adapter: Callable[[Path], object],
    *,
    decoding: Mapping[str, Any] | None = None,
) -> None:
    """Replace the folder `best` completely: the adapter, its notes and its model card."""
    part = folder / "best.part"
    shutil.rmtree(part, ignore_errors=True)
    save_adapter(part)
    notes = training_notes(plan, validation, decoding=decoding)
    (part / "training.json").write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    (part / "README.md").write_text(model_card(plan, notes), encoding="utf-8")
    program_file.save(plan.reader().read, part / PROGRAM, program_notes(plan, notes))
    shutil.rmtree(folder / "best", ignore_errors=True)
    part.replace(folder / "best")


# ---------------------------------------------------------------- notes and model card


def program_notes(plan: TrainingPlan, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the notes of the trained prompt's program file."""
    return {**notes, "rounds": plan.options.rounds, "optimised": True}


def training_notes(
    plan: TrainingPlan, validation: Mapping[str, Any], *, decoding: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content of training.json: what is needed to use the adapter, and the data that it has seen."""
    options = plan.options

    def seen(by: str, prompts: Sequence[ReadingPrompt]) -> list[str]:
        before = (id for notes in plan.sources for id in notes[by])
        return sorted({*before, *(prompt.conversation for prompt in prompts)})

    copied = ("model", "mode", "backend", "recipe", "rounds", "budgets", "memory", "examples", "episodes",
              "question_budget", "quantize", "seed")  # fmt: skip
    return {
        **{name: options.as_json()[name] for name in copied},
        "benchmark": plan.data.benchmark,
        "values": plan.hyperparameters.used_by(options.mode),
        "data": plan.data.sha256,
        "stand_in": plan.dataset_kind,
        "trained_on": seen("trained_on", plan.train),
        "selected_on": seen("selected_on", plan.validation),
        "validation": {name: value for name, value in validation.items() if name != "rewards"},
        "decoding": dict(decoding or {}),
        "licence": plan.licence,
    }


def model_card(plan: TrainingPlan, notes: Mapping[str, Any]) -> str:
    """Return the model card: the adapter's purpose, its training data, and its licence."""
    options, validation = plan.options, notes["validation"]
    free = bool(plan.dataset_kind)
    usage = (
        "The adapter may be distributed under its base model's licence."
        if free
        else "The data licence forbids commercial use, also of an adapter that was trained on the data."
    )
    values = "\n".join(f"| {name} | {value} |" for name, value in notes["values"].items())
    selected = "No checkpoint was selected by validation; measure it with `train.py --mode evaluate`."
    if validation["reward"] is not None:
        selected = (
            f"The checkpoint (step {validation['step']}) was\nselected on {', '.join(notes['selected_on'])} with a "
            f"validation reward of {validation['reward']:.3f}. This reward does\nnot estimate the quality on other "
            "conversations; measure that with `train.py --mode evaluate`."
        )
    return f"""---
base_model: {repository_of(options.model)}
library_name: peft
license: {"mit" if free else "cc-by-nc-4.0"}
tags: [lora, {"grpo" if options.mode == "train" else "sft"}, memory, conversation]
---

# A reader of conversational memory

LoRA adapter for `{options.model}`, made by memometer's `train.py --mode {options.mode}` with {options.backend}
(recipe `{options.recipe}`, seed {options.seed}). It answers questions from lines of a conversation's memory.

{plan.licence}
{usage}

The training conversations are {", ".join(notes["trained_on"])}. {selected}

| value | |
|---|---|
{values}
"""
