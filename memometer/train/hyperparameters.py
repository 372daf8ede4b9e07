"""Hyper-parameters of GRPO and of supervised tuning: two recipes, every value of which a flag can set.

`seed` is what this project began with, to the letter. `current` is today's practice: no KL term (Dr. GRPO, DAPO; TRL's
default), LoRA on all linear layers with a small rank (Schulman et al., LoRA Without Regret, 2025), groups of eight or
more, and short completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = dict[str, Any]

LOSSES = ("dapo", "dr_grpo", "bnpo", "cispo", "grpo")

_COMMON: Values = {
    "temperature": 1.0,
    "top_p": 1.0,
    "lora_dropout": 0.0,
    "lora_targets": "all-linear",
    "lr_scheduler": "constant_with_warmup",
    "warmup_steps": 10,
    "max_grad_norm": 0.5,
    "precision": "bf16",
    "importance_sampling": "token",
}

RECIPES: dict[str, dict[str, Values]] = {
    "seed": {
        backend: _COMMON
        | {
            "batch_size": 2,
            "gradient_accumulation": 4,
            "num_generations": 8,  # 2 x 4 completions are one prompt
            "learning_rate": 2e-5,
            "beta": 0.04,
            "lora_rank": 64,
            "lora_alpha": 16,
            "max_prompt_tokens": 4096,
            "max_completion_tokens": 512,
            "loss": "dr_grpo" if backend == "arbor" else "dapo",
            "scale_rewards": "group",
            "clip_high": 0.2,
            "mask_truncated": True,
        }
        for backend in ("arbor", "trl")
    },
    "current": {
        "arbor": _COMMON
        | {
            "batch_size": 4,
            "gradient_accumulation": 4,
            "num_generations": 16,  # Arbor takes one prompt a step
            "learning_rate": 1e-5,
            "beta": 0.0,  # a KL term there counts the prompt's tokens and is divided by the completion's
            "lora_rank": 16,
            "lora_alpha": 32,
            "max_prompt_tokens": 3072,
            "max_completion_tokens": 128,
            "loss": "dr_grpo",
            "scale_rewards": "none",
            "clip_high": 0.2,  # fixed there
            "mask_truncated": False,
        },
        "trl": _COMMON
        | {
            "batch_size": 8,
            "gradient_accumulation": 8,  # 8 prompts of 8 completions
            "num_generations": 8,
            "learning_rate": 2e-5,
            "beta": 0.0,
            "lora_rank": 16,
            "lora_alpha": 32,
            "max_prompt_tokens": 3072,
            "max_completion_tokens": 128,
            "loss": "dapo",
            "scale_rewards": "batch",
            "clip_high": 0.28,
            "mask_truncated": False,
        },
    },
}

SUPERVISED: Values = {
    "batch_size": 4,
    "gradient_accumulation": 4,
    "learning_rate": 2e-4,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_targets": "all-linear",
    "lr_scheduler": "constant_with_warmup",
    "warmup_steps": 10,
    "max_grad_norm": 0.5,
    "max_prompt_tokens": 3072,
    "max_completion_tokens": 128,
    "precision": "bf16",
}
"""Of `--mode sft` and `--mode distill`, with every recipe: LoRA wants about ten times the rate of full tuning."""

NAMES = tuple(dict.fromkeys([*RECIPES["current"]["trl"], *SUPERVISED]))
"""Every value that a flag may set."""


class RecipeError(ValueError):
    """Values that do not go together; the message is one sentence for the user."""


def resolve(recipe: str, *, mode: str, backend: str, chosen: Mapping[str, Any]) -> Values:
    """The recipe's values with those of `chosen` that are not None in their place. Raises RecipeError."""
    values = dict(RECIPES[recipe][backend] if mode == "train" else SUPERVISED)
    given = {name: value for name, value in chosen.items() if name in NAMES and value is not None}
    if beside := [name for name in given if name not in values]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in beside)
        raise RecipeError(f"{flags} has no meaning with --mode {mode}; leave it out.")
    values |= given
    if mode == "train":
        _check(values, backend=backend)
    return values


def prompts_per_step(values: Values, *, devices: int = 1) -> int:
    """How many prompts one optimiser step sees, on so many training GPUs."""
    return int(values["batch_size"] * values["gradient_accumulation"] * devices // values["num_generations"])


def _check(values: Values, *, backend: str) -> None:
    completions, group = values["batch_size"] * values["gradient_accumulation"], values["num_generations"]
    if group < 2:
        raise RecipeError(f"--num-generations is {group}; an advantage is a difference within a group, so 2 or more.")
    if completions % group:
        raise RecipeError(
            f"--num-generations {group} does not divide --batch-size x --gradient-accumulation = {completions}; "
            f"use --num-generations {_divisor(completions, group)}, or another batch."
        )
    if backend == "arbor":
        if values["loss"] == "grpo":
            raise RecipeError(
                "--loss grpo counts the prompt's tokens in Arbor and dilutes the gradient; use --loss dr_grpo."
            )
        if values["top_p"] != 1.0 or values["importance_sampling"] != "token":
            raise RecipeError("Arbor's trainer takes no --top-p and no --importance-sampling; use --backend trl.")


def _divisor(completions: int, group: int) -> int:
    return min((n for n in range(2, completions + 1) if completions % n == 0), key=lambda n: (abs(n - group), n))
