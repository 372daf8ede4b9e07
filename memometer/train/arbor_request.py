"""What Arbor 0.2.17 is asked for, and what is wrong with asking it, before a GPU is paid for.

Read in its source: it counts GPUs instead of taking ids, trains on one prompt a step, and puts the prompt's tokens into
the loss, so that some values that are sound elsewhere are not sound here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memometer.train.hyperparameters import Values

VERSION = "0.2.17"
SPARE_STEPS = 2
"""Steps that the trainer is asked for beyond those that are wanted: after its last one it answers nothing any more, so
that a checkpoint of it would be waited for without end."""

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What all-linear comes to in Llama, Qwen and Mistral; Arbor takes a list of names only."""


@dataclass(frozen=True)
class Problem:
    """Something wrong, in one sentence, and what to do. `fatal`: training would fail, or learn nothing."""

    what: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def gpu_ids(text: str) -> list[int]:
    """The ids in `0` or `1,2`. Raises ValueError for what is none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not a list of GPU ids such as 1,2")
    return [int(part) for part in parts]


def problems(values: Values, *, inference_gpus: str, training_gpus: str, examples: bool = False) -> list[Problem]:
    """What would go wrong with resolved values (memometer/train/hyperparameters.py) and these GPUs."""
    try:
        inference, training = gpu_ids(inference_gpus), gpu_ids(training_gpus)
    except ValueError as error:
        return [Problem(str(error), "name GPUs as nvidia-smi numbers them")]
    return [*_of_gpus(inference, training), *_of_groups(values, len(training)), *_of_loss(values, examples)]


def _of_gpus(inference: list[int], training: list[int]) -> list[Problem]:
    ids = [*inference, *training]
    named = f"--inference-gpus {_list(inference)} --training-gpus {_list(training)}"
    if len(set(ids)) < len(ids):
        return [
            Problem(
                f"{named} names a GPU twice, and Arbor shares none between serving and training",
                "give each its own, or train on one GPU with --backend trl",
            )
        ]
    wanted = sorted(ids)
    if ids != wanted:
        first, rest = wanted[: len(inference)], wanted[len(inference) :]
        return [
            Problem(
                f"{named} cannot be had: Arbor {VERSION} reads no ids, it serves with the lowest free GPUs and trains "
                "with the next",
                f"use --inference-gpus {_list(first)} --training-gpus {_list(rest)}",
            )
        ]
    if ids != list(range(len(ids))):
        return [
            Problem(
                f"{named} comes true only while every lower GPU is in use: Arbor {VERSION} reads no ids and takes the "
                "lowest that are free",
                "else start the server in a container that is shown these alone, and call them from 0 on",
                fatal=False,
            )
        ]
    return []


def _of_groups(values: Values, gpus: int) -> list[Problem]:
    group, batch, accumulation = values["num_generations"], values["batch_size"], values["gradient_accumulation"]
    if group % (gpus * accumulation) == 0 and (gpus * batch * accumulation) % group == 0:
        return []
    fitting = max(1, group // (gpus * accumulation)) * gpus * accumulation
    return [
        Problem(
            f"--num-generations {group} does not go into {gpus} training GPUs x --gradient-accumulation {accumulation} "
            f"with --batch-size {batch}: Arbor refuses it, or leaves completions out",
            f"use --num-generations {fitting} --batch-size {fitting // (gpus * accumulation)}",
        )
    ]


def _of_loss(values: Values, examples: bool) -> list[Problem]:
    found = []
    if values["loss"] == "grpo":
        found.append(
            Problem(
                "--loss grpo divides by the prompt's tokens too, and weakens the gradient 7 to 46 times",
                "use --loss dr_grpo",
            )
        )
    if values["loss"] not in ("grpo", "dr_grpo", "dapo", "bnpo"):
        found.append(Problem(f"Arbor has no --loss {values['loss']}", "use --loss dr_grpo"))
    if values["mask_truncated"]:
        fatal = values["loss"] == "dapo"
        found.append(
            Problem(
                "--mask-truncated takes replies for cut off that do not end in the end token, as Qwen's never do"
                + (": with --loss dapo the loss is then not a number" if fatal else ""),
                "use --no-mask-truncated",
                fatal,
            )
        )
    if values["beta"]:
        found.append(
            Problem(
                f"--beta {values['beta']:g} counts the prompt's tokens and divides by the reply's: about "
                f"{54 * values['beta']:.1f} for a prompt of 2,048 tokens",
                "use --beta 0",
                fatal=False,
            )
        )
    if values["top_p"] != 1.0 or values["importance_sampling"] != "token":
        found.append(Problem("Arbor takes no --top-p and no --importance-sampling", "leave them out"))
    if values["clip_high"] not in (0.2, 0.28):
        found.append(
            Problem(f"--clip-high {values['clip_high']:g} never reaches Arbor's trainer", "leave it out", False)
        )
    if values["precision"] != "bf16":
        found.append(Problem(f"--precision {values['precision']} is not Arbor's", "use --precision bf16"))
    if examples:
        found.append(Problem("Arbor samples with the examples and trains without them", "leave --examples out"))
    return found


def request(
    values: Values,
    *,
    model: str,
    run_name: str,
    steps: int,
    inference_gpus: Sequence[int],
    training_gpus: Sequence[int],
) -> dict[str, Any]:
    """The body of `initialize`.

    `max_seq_len` is sent as null: left out it is 2,048, which makes the trainer keep the last `max_completion_length`
    tokens of prompt and reply, and nothing else.
    """
    window = values["max_prompt_tokens"] + values["max_completion_tokens"]
    targets = values["lora_targets"]
    return {
        "run_name": run_name,
        "model": model,
        "trainer_config": {
            "num_generations": values["num_generations"],
            "temperature": values["temperature"],
            "beta": values["beta"],
            "per_device_train_batch_size": values["batch_size"],
            "gradient_accumulation_steps": values["gradient_accumulation"],
            "num_training_gpus": len(training_gpus),
            "learning_rate": values["learning_rate"],
            "lr_scheduler_type": values["lr_scheduler"],
            "warmup_steps": values["warmup_steps"],
            "max_steps": steps + SPARE_STEPS,
            "max_prompt_length": values["max_prompt_tokens"],
            "max_completion_length": values["max_completion_tokens"],
            "max_seq_len": None,
            "loss_type": values["loss"],
            "scale_rewards": values["scale_rewards"] != "none",
            "mask_truncated_completions": values["mask_truncated"],
            "max_grad_norm": values["max_grad_norm"],
            "bf16": True,
            "gradient_checkpointing": True,
            "lora_config": {
                "r": values["lora_rank"],
                "lora_alpha": values["lora_alpha"],
                "lora_dropout": values["lora_dropout"],
                "target_modules": list(LINEAR) if targets == "all-linear" else targets.split(","),
            },
            "report_to": "none",
            "log_completions": False,
            "logging_steps": 1,
        },
        "inference_config": {"model": model, "max_seq_len": window},
        "gpu_config": {
            "type": "multi",
            "multi": {"num_inference_gpus": len(inference_gpus), "num_training_gpus": len(training_gpus)},
        },
    }


def write_config(path: Path, *, inference_gpus: Sequence[int], training_gpus: Sequence[int]) -> bool:
    """Write arbor.yaml where it is missing; whether it was."""
    if path.exists():
        return False
    path.write_text(
        f"# For: arbor serve --arbor-config {path.name}\n"
        f"storage_path: {storage(path)}\n"
        "inactivity_timeout: 30\n"
        f"# Arbor {VERSION} does not read these: it serves with the lowest free GPUs and trains with the next, as\n"
        "# many as train.py asks for. train.py refuses ids that this does not come to.\n"
        f"inference:\n  gpu_ids: '{_list(inference_gpus)}'\n"
        f"training:\n  gpu_ids: '{_list(training_gpus)}'\n"
    )
    return True


def storage(path: Path) -> str:
    """The folder where a server keeps its jobs that was started with the file at `path`."""
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("storage_path:"):
            return line.partition(":")[2].strip().strip("'\"")
    return str(Path.home() / ".arbor" / "storage")


def _list(ids: Sequence[int]) -> str:
    return ",".join(map(str, ids))


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `problems` asks of train.py's flags."""
    return {name: config[name] for name in ("inference_gpus", "training_gpus", "examples")}
