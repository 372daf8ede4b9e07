"""Export of prompts and reward for training frameworks that use several machines: verl, and verifiers with prime-rl.

Each export is a folder with the data, the reward or taskset, and a recipe that the framework's own loader reads. Paths
are relative, so the folder can be copied to another machine. The machines that train need memometer from a checkout
(`pip install '/path/to/checkout[eval]'`), because the reward is imported from it. No package index is asked for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import dedent
from typing import Any

from memometer.errors import UserError
from memometer.train import episode_files
from memometer.train.export_templates import AGENT_LOOP, AGENT_LOOPS, ENVIRONMENT, TASKSET, VERL_REWARD
from memometer.train.plan import TrainingPlan
from memometer.train.prompt_dataset import ReadingPrompt
from memometer.train.reward import ABSTENTION

LOSSES = {
    "dapo": "token-mean",
    "bnpo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "grpo": "seq-mean-token-mean",
}
"""Loss name in memometer -> name in verl of the aggregation of token losses."""

_WITHOUT_COUNTERPART: dict[str, dict[str, Any]] = {
    "verl": {
        "lora_dropout": 0.0,
        "mask_truncated": False,
        "importance_sampling": "token",
        "lr_scheduler": "constant_with_warmup",
    },
    "verifiers": {
        "lora_dropout": 0.0,
        "lora_targets": "all-linear",
        "mask_truncated": False,
        "importance_sampling": "token",
        "lr_scheduler": "constant_with_warmup",
        "warmup_steps": 0,
        "beta": 0.0,
        "clip_high": 0.2,
        "loss": "dapo",
    },
}
"""Framework -> hyperparameter -> the value that needs no counterpart."""
INSTALL = "pip install '/path/to/the/checkout[eval]'"

PACKAGE = "memometer_reading"
"""The name of the exported taskset package."""


def export(plan: TrainingPlan, framework: str) -> list[str]:
    """Write the folder `--output-dir`/FRAMEWORK and return the lines to print.

    Raises:
        UserError: The folder is not empty, or the framework does not support an option.
    """
    folder = plan.output / framework
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; use another --output-dir.")
    folder.mkdir(parents=True, exist_ok=True)
    command = {"verl": _export_verl, "verifiers": _export_verifiers}[framework](plan, folder)
    counts = f"{len(plan.train):,} training and {len(plan.validation):,} validation prompts"
    dropped = [f"{framework} does not take {name} {value}." for name, value in dropped_values(plan, framework).items()]
    (folder / "README.md").write_text(
        f"# Reading prompts for {framework}\n\n{plan.licence}\n\n"
        f"{counts}; none is from a test conversation.\n\nFirst install memometer from its checkout:\n\n"
        f"    {INSTALL}\n\nThen, in this folder:\n\n    {command}\n\n" + "".join(f"- {line}\n" for line in dropped),
        encoding="utf-8",
    )
    return [
        f"{counts} written to {folder}.",
        f"Train with: cd {folder} && {command}",
        *dropped,
        plan.licence,
    ]


def _response_tokens(plan: TrainingPlan) -> int:
    """The most tokens after the first prompt: one reply, or all replies and pages of an episode."""
    reply, options = plan.hyperparameters.max_completion_tokens, plan.options
    if not plan.episodes:
        return reply
    pages = options.budgets[-1] - options.budgets[0]
    return options.rounds * (reply + REPEATED_TOKENS) + int(TOKENS_PER_COUNTED * pages)


REPEATED_TOKENS, TOKENS_PER_COUNTED = 128, 1.5
"""Bounds of what each further message repeats, and of a model's tokens per o200k_base token."""


def dropped_values(plan: TrainingPlan, framework: str) -> dict[str, Any]:
    """Return the hyperparameters that differ from the framework's behaviour and have no counterpart in the export."""
    values = asdict(plan.hyperparameters)
    if values["scale_rewards"] == "batch" or (framework == "verifiers" and values["scale_rewards"] == "group"):
        scale = {"--scale-rewards": values["scale_rewards"]}
    else:
        scale = {}
    return scale | {
        f"--{name.replace('_', '-')}": values[name]
        for name, neutral in _WITHOUT_COUNTERPART[framework].items()
        if values[name] != neutral
    }


# ---------------------------------------------------------------- verl 0.9


def verl_row(prompt: ReadingPrompt, index: int, split: str) -> dict[str, Any]:
    """Return a row for verl's RLHFDataset and reward managers.

    The facts for the reward are a JSON text in `extra_info`, because parquet gives every row the same fields.
    """
    return {
        "data_source": "memometer",
        "prompt": list(prompt.messages),
        "ability": "memory",
        "reward_model": {"style": "rule", "ground_truth": prompt.case.keys[0] if prompt.case.keys else ABSTENTION},
        "extra_info": {
            "index": index,
            "split": split,
            "id": prompt.id,
            "question": prompt.question_id,
            "evidence": list(prompt.case.evidence),
            "case": json.dumps(prompt.case.as_json()),
        },
    }


def _export_verl(plan: TrainingPlan, folder: Path) -> str:
    loss = plan.hyperparameters.loss
    if loss not in LOSSES:
        raise UserError(f"verl has no counterpart of --loss {loss}; use {', '.join(LOSSES)}.")
    for name, prompts in (("train", plan.train), ("validation", plan.validation)):
        _write_parquet([verl_row(prompt, n, name) for n, prompt in enumerate(prompts)], folder / f"{name}.parquet")
    (folder / "reward.py").write_text(VERL_REWARD, encoding="utf-8")
    if plan.episodes:
        _write_episodes(plan, folder)
        (folder / "agent_loop.py").write_text(AGENT_LOOP, encoding="utf-8")
        (folder / "agent_loops.yaml").write_text(AGENT_LOOPS, encoding="utf-8")
    config = _verl_config(plan)
    if plan.episodes:
        config = config.replace("    name: vllm\n", f"    name: vllm\n{VERL_AGENT}")
    (folder / "grpo.yaml").write_text(config, encoding="utf-8")
    return f'PYTHONPATH="$PWD" {VERL_COMMAND}' if plan.episodes else VERL_COMMAND


VERL_AGENT = """\
    agent:
      default_agent_loop: lookup
      agent_loop_config_path: ${oc.env:PWD}/agent_loops.yaml
"""


VERL_COMMAND = 'python -m verl.trainer.main_ppo --config-path "$PWD" --config-name grpo'


def _verl_config(plan: TrainingPlan) -> str:
    values, options = plan.hyperparameters, plan.options
    prompts_per_step = max(1, values.prompts_per_step)
    return dedent(f"""\
        # In this folder: {VERL_COMMAND}
        hydra:
          searchpath: [pkg://verl.trainer.config]
        defaults: [ppo_trainer, _self_]
        data:
          train_files: ${{oc.env:PWD}}/train.parquet
          val_files: ${{oc.env:PWD}}/validation.parquet
          train_batch_size: {prompts_per_step}
          max_prompt_length: {values.max_prompt_tokens}
          max_response_length: {_response_tokens(plan)}
          seed: {options.seed}
        actor_rollout_ref:
          model:
            path: {options.model}
            lora_rank: {values.lora_rank}
            lora_alpha: {values.lora_alpha}
            target_modules: {values.lora_targets}
            enable_gradient_checkpointing: true
          actor:
            ppo_mini_batch_size: {prompts_per_step}
            ppo_micro_batch_size_per_gpu: {values.batch_size}
            optim: {{lr: {values.learning_rate:.10f}, lr_warmup_steps: {values.warmup_steps}}}
            grad_clip: {values.max_grad_norm}
            clip_ratio: 0.2
            clip_ratio_low: 0.2
            clip_ratio_high: {values.clip_high}
            loss_agg_mode: {LOSSES[values.loss]}
            use_kl_loss: {str(values.beta > 0).lower()}
            kl_loss_coef: {values.beta}
          rollout:
            name: vllm
            n: {values.num_generations}
            temperature: {values.temperature}
            top_p: {values.top_p}
            log_prob_micro_batch_size_per_gpu: {values.batch_size}
          ref:
            log_prob_micro_batch_size_per_gpu: {values.batch_size}
        algorithm:
          adv_estimator: grpo
          norm_adv_by_std_in_grpo: {str(values.scale_rewards == "group").lower()}
        reward:
          custom_reward_function:
            path: ${{oc.env:PWD}}/reward.py
            name: compute_score
        trainer:
          total_training_steps: {plan.steps}
          test_freq: {options.eval_steps}
          save_freq: {options.save_steps}
          project_name: memometer
          experiment_name: grpo
          logger: [console]
          nnodes: 1
          n_gpus_per_node: 8
        """)


def _write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            "verl reads parquet files, which need pyarrow: pip install -c constraints.txt '.[train]'"
        ) from error
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


# ---------------------------------------------------------------- verifiers 0.4 and prime-rl


def verifiers_row(prompt: ReadingPrompt) -> dict[str, Any]:
    """Return the data of a task. verifiers has a field of its own for the system message."""
    system = [message["content"] for message in prompt.messages if message["role"] == "system"]
    rest = [message for message in prompt.messages if message["role"] != "system"]
    messages: Any = rest[0]["content"] if len(rest) == 1 else rest
    return {
        "id": prompt.id,
        "name": prompt.id,
        "system_prompt": system[0] if system else None,
        "prompt": messages,
        "case": json.dumps(prompt.case.as_json()),
    }


def verifiers_episode(prompt: ReadingPrompt) -> dict[str, Any]:
    """Return the data of a task whose prompt is the first call of an episode."""
    row = verifiers_row(prompt)
    del row["case"]
    return {**row, "question": prompt.question_id}


def _write_episodes(plan: TrainingPlan, folder: Path) -> None:
    if plan.episodes:
        asked = [prompt.question_id for prompt in (*plan.train, *plan.validation)]
        episode_files.write(plan.episodes, folder / "episodes.json", asked)


def _export_verifiers(plan: TrainingPlan, folder: Path) -> str:
    values = plan.hyperparameters
    package = folder / PACKAGE
    package.mkdir()
    row = verifiers_episode if plan.episodes else verifiers_row
    for name, prompts in (("train", plan.train), ("validation", plan.validation)):
        lines = [json.dumps(row(prompt)) + "\n" for prompt in prompts]
        (package / f"{name}.jsonl").write_text("".join(lines), encoding="ascii")
    if plan.episodes:
        _write_episodes(plan, package)
    (package / "__init__.py").write_text(ENVIRONMENT if plan.episodes else TASKSET, encoding="utf-8")
    name = PACKAGE.replace("_", "-")
    (folder / "pyproject.toml").write_text(
        dedent(f"""\
        [project]
        name = "{name}"
        version = "0.1.0"
        requires-python = ">=3.11"
        dependencies = ["verifiers>=0.4,<0.5"]  # and memometer, from its checkout

        [build-system]
        requires = ["setuptools>=77"]
        build-backend = "setuptools.build_meta"

        [tool.setuptools]
        packages = ["{PACKAGE}"]
        package-data = {{ {PACKAGE} = ["*.jsonl", "*.json"] }}
        """),
        encoding="utf-8",
    )
    (folder / "rl.toml").write_text(_prime_rl_config(plan, name), encoding="utf-8")
    # For vf-eval, which evaluates and does not train.
    (folder / "eval.toml").write_text(
        dedent(f"""\
        model = "{plan.options.model}"
        num_rollouts = {values.num_generations}
        push = false

        [sampling]
        temperature = {values.temperature}
        top_p = {values.top_p}
        max_tokens = {values.max_completion_tokens}

        [env.taskset]
        id = "{name}"
        split = "train"

        [env.agent.harness]
        id = "null"

        [env.agent.runtime]
        type = "subprocess"
        """),
        encoding="utf-8",
    )
    return "pip install . && rl @ rl.toml"


def _prime_rl_config(plan: TrainingPlan, name: str) -> str:
    """The configuration of prime-rl's `rl` command: one GPU trains, another one serves."""
    values = plan.hyperparameters
    return dedent(f"""\
        # prime-rl: uv run rl @ rl.toml
        max_steps = {plan.steps}
        seq_len = {values.max_prompt_tokens + _response_tokens(plan)}

        [ckpt]
        interval = {plan.options.save_steps}

        [model]
        name = "{plan.options.model}"

        [trainer.model.lora]
        rank = {values.lora_rank}
        alpha = {values.lora_alpha}

        [trainer.optim]
        lr = {values.learning_rate:.10f}
        max_norm = {values.max_grad_norm}

        [orchestrator]
        batch_size = {max(1, values.prompts_per_step) * values.num_generations}
        group_size = {values.num_generations}

        [orchestrator.train.sampling]
        temperature = {values.temperature}
        max_completion_tokens = {values.max_completion_tokens}

        [[orchestrator.train.source]]
        name = "{name}"

        [orchestrator.train.source.env.taskset]
        id = "{name}"
        split = "train"

        [orchestrator.train.source.env.agent.harness]
        id = "null"

        [orchestrator.train.source.env.agent.runtime]
        type = "subprocess"

        [inference]
        """)
