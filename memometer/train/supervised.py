"""Supervised tuning: each training prompt with the reply that it should get, the gold's or a teacher's."""

from __future__ import annotations

import json
from typing import Any

from memometer.run.folder import RunFolder
from memometer.train import local_model
from memometer.train.local_model import LocalModel
from memometer.train.plan import Job
from memometer.train.prompt_dataset import ReadingPrompt, schedule
from memometer.train.reward import gold_reply

SETTLED = "targets.json"


def trainer(job: Job, folder: RunFolder, local: LocalModel, callback: Any) -> Any:
    """TRL's SFTTrainer over the prompts in their settled order; the loss is the reply's alone."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from memometer.train.trl_backend import arguments_for_both

    on_gpu = torch.cuda.is_available()
    per_step = job.values["batch_size"] * job.values["gradient_accumulation"]
    replies = targets(job, folder)
    usable = [prompt for prompt in job.train if prompt.id in replies]
    rows = [
        row(local, usable[n], replies[usable[n].id])
        for n in schedule(usable, per_step=per_step, steps=job.steps, seed=job.config["seed"])
    ]
    longest = job.values["max_prompt_tokens"] + job.values["max_completion_tokens"]
    packing = job.config["packing"]
    arguments = SFTConfig(
        **arguments_for_both(job, folder, on_gpu=on_gpu),
        max_length=longest if packing else None,  # `check` has settled that every prompt fits
        packing=packing,
        completion_only_loss=True,
        train_sampling_strategy="sequential",  # `schedule` has settled the order
    )
    return SFTTrainer(
        model=local.model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=local.tokenizer,
        callbacks=[callback],
    )


def row(local: LocalModel, prompt: ReadingPrompt, reply: str) -> dict[str, Any]:
    """A prompt and its reply as TRL takes them."""
    if local.tokenizer.chat_template:
        return {"prompt": list(prompt.messages), "completion": [{"role": "assistant", "content": reply}]}
    return {"prompt": local_model.plain(prompt.messages), "completion": f" {reply}"}


def targets(job: Job, folder: RunFolder) -> dict[str, str]:
    """Prompt id -> the reply to learn. A teacher's are settled once: a call that failed then might not fail when a
    training is resumed, and the order of its data would be another."""
    if not job.config["teacher"]:
        return {prompt.id: gold_reply(prompt.case) for prompt in job.train}
    if not (folder.path / SETTLED).exists():
        from memometer.train.distillation import answers

        folder.write_json(SETTLED, answers(job, folder))
    found: dict[str, str] = json.loads((folder.path / SETTLED).read_text(encoding="utf-8"))
    return found
