"""The training request for Arbor 0.2.17, and the problems that its source code implies for a configuration.

Arbor counts GPUs instead of reading their ids, trains on one prompt per step, and includes the prompt tokens in the
loss. Some values that work with other trainers therefore do not work here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.train.options import Hyperparameters

VERSION = "0.2.17"
SPARE_STEPS = 2
"""Additional steps in the request, because the trainer ignores checkpoint requests after its last step."""

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The linear layers of Llama, Qwen and Mistral. Arbor needs their names and does not know "all-linear"."""


@dataclass(frozen=True)
class Problem:
    """A configuration problem with its remedy. A fatal one makes training fail, or learn nothing."""

    description: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.description}; {self.remedy}"


def gpu_ids(text: str) -> list[int]:
    """Parse GPU ids such as `0` or `1,2`. Raises ValueError for other text."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not a list of GPU ids such as 1,2")
    return [int(part) for part in parts]


def find_problems(
    values: Hyperparameters, *, inference_gpus: str, training_gpus: str, examples: bool = False
) -> list[Problem]:
    """Return the problems that Arbor would have with these hyperparameters and GPUs."""
    try:
        inference, training = gpu_ids(inference_gpus), gpu_ids(training_gpus)
    except ValueError as error:
        return [Problem(str(error), "use the GPU numbers that nvidia-smi shows")]
    return [
        *_gpu_problems(inference, training),
        *_group_problems(values, len(training)),
        *_loss_problems(values, examples),
    ]


def _gpu_problems(inference: list[int], training: list[int]) -> list[Problem]:
    ids = [*inference, *training]
    flags = f"--inference-gpus {join_ids(inference)} --training-gpus {join_ids(training)}"
    ordered = sorted(ids)
    if len(set(ids)) < len(ids):
        return [
            Problem(
                f"{flags} lists a GPU twice, and Arbor cannot serve and train on the same GPU",
                "use different GPUs, or train on one GPU with --backend trl",
            )
        ]
    if ids != ordered:
        first, rest = ordered[: len(inference)], ordered[len(inference) :]
        return [
            Problem(
                f"{flags} is not possible: Arbor {VERSION} ignores ids, serves on the lowest free GPUs and trains on "
                "the next ones",
                f"use --inference-gpus {join_ids(first)} --training-gpus {join_ids(rest)}",
            )
        ]
    if ids != list(range(len(ids))):
        return [
            Problem(
                f"{flags} works only while all lower GPUs are in use: Arbor {VERSION} ignores ids and takes the lowest "
                "free GPUs",
                "otherwise start the server in a container that sees only these GPUs, and number them from 0",
                fatal=False,
            )
        ]
    return []


def _group_problems(values: Hyperparameters, gpus: int) -> list[Problem]:
    group, batch, accumulation = values.num_generations, values.batch_size, values.gradient_accumulation
    if group % (gpus * accumulation) == 0 and (gpus * batch * accumulation) % group == 0:
        return []
    fitting = max(1, group // (gpus * accumulation)) * gpus * accumulation
    return [
        Problem(
            f"--num-generations {group} does not fit {gpus} training GPUs x --gradient-accumulation {accumulation} "
            f"with --batch-size {batch}: Arbor refuses it, or ignores some completions",
            f"use --num-generations {fitting} --batch-size {fitting // (gpus * accumulation)}",
        )
    ]


def _loss_problems(values: Hyperparameters, examples: bool) -> list[Problem]:
    no_loss = values.loss == "dapo" and values.mask_truncated
    checks = [
        (
            values.loss == "grpo",
            "--loss grpo also divides by the prompt tokens, which weakens the gradient 7 to 46 times",
            "use --loss dr_grpo",
            True,
        ),
        (
            values.loss not in ("grpo", "dr_grpo", "dapo", "bnpo"),
            f"Arbor does not support --loss {values.loss}",
            "use --loss dr_grpo",
            True,
        ),
        (
            values.mask_truncated,
            "--mask-truncated masks completions without the end token at their end, which includes all of Qwen's"
            + (": with --loss dapo the loss is then not a number" if no_loss else ""),
            "use --no-mask-truncated",
            no_loss,
        ),
        (
            values.beta > 0,
            f"--beta {values.beta:g} counts the prompt tokens but divides by the completion tokens: the effective "
            f"value is about {54 * values.beta:.1f} for a prompt of 2,048 tokens",
            "use --beta 0",
            False,
        ),
        (
            values.top_p != 1.0 or values.importance_sampling != "token",
            "Arbor does not support --top-p and --importance-sampling",
            "leave them out",
            True,
        ),
        (
            values.clip_high not in (0.2, 0.28),
            f"Arbor's trainer ignores --clip-high {values.clip_high:g}",
            "leave it out",
            False,
        ),
        (
            values.precision != "bf16",
            f"Arbor does not support --precision {values.precision}",
            "use --precision bf16",
            True,
        ),
        (examples, "Arbor samples with the worked examples and trains without them", "leave --examples out", True),
    ]
    return [Problem(what, remedy, fatal) for applies, what, remedy, fatal in checks if applies]


def initialize_request(
    values: Hyperparameters,
    *,
    model: str,
    run_name: str,
    steps: int,
    inference_gpus: Sequence[int],
    training_gpus: Sequence[int],
) -> dict[str, Any]:
    """Return the body of the `initialize` request.

    `max_seq_len` is null on purpose. Its default of 2,048 makes the trainer keep only the last
    `max_completion_length` tokens of prompt and completion.
    """
    targets = values.lora_targets
    return {
        "run_name": run_name,
        "model": model,
        "trainer_config": {
            "num_generations": values.num_generations,
            "temperature": values.temperature,
            "beta": values.beta,
            "per_device_train_batch_size": values.batch_size,
            "gradient_accumulation_steps": values.gradient_accumulation,
            "num_training_gpus": len(training_gpus),
            "learning_rate": values.learning_rate,
            "lr_scheduler_type": values.lr_scheduler,
            "warmup_steps": values.warmup_steps,
            "max_steps": steps + SPARE_STEPS,
            "max_prompt_length": values.max_prompt_tokens,
            "max_completion_length": values.max_completion_tokens,
            "max_seq_len": None,
            "loss_type": values.loss,
            "scale_rewards": values.scale_rewards != "none",
            "mask_truncated_completions": values.mask_truncated,
            "max_grad_norm": values.max_grad_norm,
            "bf16": True,
            "gradient_checkpointing": True,
            "lora_config": {
                "r": values.lora_rank,
                "lora_alpha": values.lora_alpha,
                "lora_dropout": values.lora_dropout,
                "target_modules": LINEAR_LAYERS if targets == "all-linear" else targets.split(","),
            },
            "report_to": "none",
            "log_completions": False,
            "logging_steps": 1,
        },
        "inference_config": {"model": model, "max_seq_len": values.max_prompt_tokens + values.max_completion_tokens},
        "gpu_config": {
            "type": "multi",
            "multi": {"num_inference_gpus": len(inference_gpus), "num_training_gpus": len(training_gpus)},
        },
    }


def write_server_config(path: Path, *, inference_gpus: str, training_gpus: str) -> bool:
    """Write arbor.yaml if it is missing. Returns true if it was written."""
    if path.exists():
        return False
    path.write_text(
        f"# Start the server with: arbor serve --arbor-config {path.name}\n"
        f"storage_path: {storage_folder(path)}\n"
        "inactivity_timeout: 30\n"
        f"# Arbor {VERSION} ignores these ids: it serves on the lowest free GPUs and trains on the next ones, as many\n"
        "# as train.py requests. train.py refuses other ids.\n"
        f"inference:\n  gpu_ids: '{join_ids(gpu_ids(inference_gpus))}'\n"
        f"training:\n  gpu_ids: '{join_ids(gpu_ids(training_gpus))}'\n"
    )
    return True


def storage_folder(path: Path) -> str:
    """Return the job folder of a server that was started with the configuration file at `path`."""
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("storage_path:"):
            return line.partition(":")[2].strip().strip("'\"")
    return str(Path.home() / ".arbor" / "storage")


def join_ids(ids: Sequence[int]) -> str:
    """Return ids as `1,2`."""
    return ",".join(map(str, ids))
