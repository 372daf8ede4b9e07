"""TRL's GRPOTrainer and SFTTrainer with the settings of a training plan.

PyTorch is imported inside functions, because the project works without it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from memometer.run.folder import RunFolder
from memometer.train.local_model import LocalModel
from memometer.train.lookup_environment import LookupEnvironment, completion_limit, settings, tokenizer_for_lookups
from memometer.train.plan import TrainingPlan
from memometer.train.prompt_dataset import PromptOrder, ReadingPrompt, schedule
from memometer.train.reward import RewardFunction
from memometer.train.target_replies import target_replies

EPSILON = 0.2
"""Lower clip range of the policy ratio."""


def grpo_trainer(plan: TrainingPlan, folder: Path, local: LocalModel, reward: RewardFunction, callback: Any) -> Any:
    """Return a GRPOTrainer over the scheduled prompts."""
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    values, options, on_gpu = plan.hyperparameters, plan.options, torch.cuda.is_available()
    vllm = options.vllm
    if vllm is None:  # TRL does not send the trained rows of an embedding to vLLM
        vllm = on_gpu and importlib.util.find_spec("vllm") is not None and not local.format.end_is_new
    order = reward.order
    if not isinstance(order, PromptOrder):
        order = PromptOrder(plan.train, per_step=values.prompts_per_step, seed=options.seed)
    prompts = [local.format.as_trained(prompt.messages) for prompt in plan.train]
    cases = [json.dumps(prompt.case.as_json()) for prompt in plan.train]

    def rows(batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """The prompts at positions of the order. Only when the trainer needs them: later ones are not decided yet."""
        numbers = [order.at(position) for position in batch["position"]]
        return {
            "prompt": [prompts[n] for n in numbers],
            "case": [cases[n] for n in numbers],
            "number": numbers,
            "question": [plan.train[n].question_id for n in numbers],
        }

    positions = Dataset.from_dict({"position": range(values.prompts_per_step * plan.steps)}).with_transform(rows)
    lookups: Mapping[str, Any] = {"max_completion_length": values.max_completion_tokens}
    if plan.episodes:
        asked = [prompt.question_id for prompt in plan.train]
        limit = completion_limit(plan.episodes, asked, local.format, values.max_completion_tokens)
        lookups = settings(limit, values.max_completion_tokens, options.rounds, vllm=vllm)
    tied = bool(getattr(local.model.config, "tie_word_embeddings", False))
    arguments = GRPOConfig(
        **_shared_arguments(plan, folder, on_gpu=on_gpu),
        num_generations=values.num_generations,
        temperature=values.temperature,
        top_p=values.top_p,
        beta=values.beta,
        epsilon=EPSILON,
        epsilon_high=values.clip_high,
        loss_type=values.loss,
        scale_rewards=values.scale_rewards,
        mask_truncated_completions=values.mask_truncated,
        importance_sampling_level=values.importance_sampling,
        cast_lm_head_to_fp32=on_gpu and values.precision == "bf16" and not tied,
        shuffle_dataset=False,  # `order` does
        remove_unused_columns=False,
        chat_template_kwargs=dict(local.format.template_kwargs) or None,
        use_vllm=vllm,
        **({"vllm_mode": "colocate", "vllm_gpu_memory_utilization": options.vllm_memory} if vllm else {}),
        **lookups,
    )
    environment = partial(LookupEnvironment, plan.episodes) if plan.episodes else None
    return GRPOTrainer(
        model=local.model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=positions,
        processing_class=tokenizer_for_lookups(local.format) if plan.episodes else local.tokenizer,
        callbacks=[callback],
        environment_factory=environment,
    )


def sft_trainer(plan: TrainingPlan, folder: RunFolder, local: LocalModel, callback: Any) -> Any:
    """Return an SFTTrainer over the scheduled prompts with their target replies; only replies count in the loss."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    values = plan.hyperparameters
    targets = target_replies(plan, folder)
    usable = [prompt for prompt in plan.train if prompt.id in targets]
    per_step = values.batch_size * values.gradient_accumulation
    rows = [
        _sft_row(local, usable[n], targets[usable[n].id])
        for n in schedule(usable, per_step=per_step, steps=plan.steps, seed=plan.options.seed)
    ]
    packing = plan.options.packing
    arguments = SFTConfig(
        **_shared_arguments(plan, folder.path, on_gpu=torch.cuda.is_available()),
        # Without packing no limit is needed: `check` makes sure that every prompt fits.
        max_length=values.max_prompt_tokens + values.max_completion_tokens if packing else None,
        packing=packing,
        completion_only_loss=True,
        train_sampling_strategy="sequential",  # `schedule` sets the order
    )
    return SFTTrainer(
        model=local.model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=local.tokenizer,
        callbacks=[callback],
    )


def _sft_row(local: LocalModel, prompt: ReadingPrompt, reply: str) -> dict[str, Any]:
    """The token ids of a prompt as the evaluation sends it, followed by the reply and the end token."""
    asked, answered = local.prompt_ids(prompt.messages), local.format.reply_ids(reply)
    return {"input_ids": asked + answered, "completion_mask": [0] * len(asked) + [1] * len(answered)}


def _shared_arguments(plan: TrainingPlan, folder: Path, *, on_gpu: bool) -> dict[str, Any]:
    """Arguments of both GRPOConfig and SFTConfig."""
    values, options = plan.hyperparameters, plan.options
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": values.batch_size,
        "gradient_accumulation_steps": values.gradient_accumulation,
        "learning_rate": values.learning_rate,
        "lr_scheduler_type": values.lr_scheduler,
        "warmup_steps": min(values.warmup_steps, plan.steps),
        "max_grad_norm": values.max_grad_norm,
        "max_steps": plan.steps,
        "save_strategy": "steps",
        "save_steps": options.save_steps,
        "save_total_limit": 3,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log a loss that is not a number as 0
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        "seed": options.seed,
        "data_seed": options.seed,
        "use_cpu": not on_gpu,
        "bf16": on_gpu and values.precision == "bf16",
        "dataloader_pin_memory": on_gpu,
        **({"gradient_checkpointing": True} if on_gpu else {}),
    }
