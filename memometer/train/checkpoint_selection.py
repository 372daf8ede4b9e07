"""Which checkpoint is kept: the one whose greedy replies to the validation prompts earn most."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

from memometer.run.folder import RunFolder
from memometer.run.progress import eprint
from memometer.train import adapters, metrics
from memometer.train.local_model import LocalModel
from memometer.train.plan import Job
from memometer.train.reward import grade

BEST = "best"
DIVERGENCES = 16
"""Replies over which the divergence from the base is taken."""


class Validation:
    """Greedy replies to all validation prompts, graded as at the start of the training, so that steps compare."""

    def __init__(self, job: Job, folder: RunFolder, local: LocalModel) -> None:
        self.job, self.folder, self.local = job, folder, local
        self.prompts = [local.prompt_ids(prompt.messages) for prompt in job.validation]
        self.path = folder.path / "validation_scores.jsonl"

    def look(self, step: int) -> None:
        """Validate what the model is now, and keep its adapter where none before it was better. Step 0 is the base."""
        known = metrics.read_lines(self.path)
        replies = self.local.generate(
            self.prompts,
            max_tokens=self.job.values["max_completion_tokens"],
            batch_size=self.job.values["batch_size"],
        )
        grades = [grade(prompt.case, reply) for prompt, reply in zip(self.job.validation, replies, strict=True)]
        record: dict[str, Any] = {"step": step, "what": "validation", "reward": fmean(g.reward for g in grades)}
        record |= metrics.of_grades(grades)
        if step:
            looked_at = list(zip(self.prompts, replies, strict=True))[:: max(1, len(replies) // DIVERGENCES)]
            record["kl"] = fmean(self.local.divergence(prompt, reply)[0] for prompt, reply in looked_at[:DIVERGENCES])
        metrics.append(self.path, record)
        eprint(f"{self.job.data.prefix}{metrics.line(record)}")
        others = [line["reward"] for line in known if 0 < line["step"] != step]
        if step and record["reward"] >= max(others, default=float("-inf")):
            keep(self.job, self.local, self.folder.path / BEST, record)


def keep(job: Job, local: LocalModel, to: Path, record: dict[str, Any]) -> None:
    """Save the adapter, whole or not at all, with what is needed to ask it again."""
    part = to.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    local.model.save_pretrained(str(part), selected_adapters=["default"])  # with a KL term TRL adds a copy, "ref"
    local.tokenizer.save_pretrained(str(part))
    (part / "training.json").write_text(json.dumps(adapters.notes(job, record), indent=1) + "\n", encoding="utf-8")
    (part / "README.md").write_text(adapters.card(job, record), encoding="utf-8")
    shutil.rmtree(to, ignore_errors=True)
    part.replace(to)
