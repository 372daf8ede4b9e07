"""Training on one machine: TRL's GRPOTrainer and SFTTrainer with LoRA, on a GPU or, for small models, without one.

PyTorch is imported inside functions: the project installs and runs without it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import threading
from pathlib import Path
from typing import Any

from memometer.harness.plan import Refused
from memometer.models.errors import describe
from memometer.models.replay_cache import SearchStopped
from memometer.run.folder import RunFolder
from memometer.run.interrupts import stopping
from memometer.run.progress import eprint
from memometer.train import adapters, distillation, local_model, metrics, supervised
from memometer.train.checkpoint_selection import Validation
from memometer.train.hyperparameters import prompts_per_step
from memometer.train.local_model import LocalModel
from memometer.train.plan import Job, Outcome
from memometer.train.prompt_dataset import schedule
from memometer.train.trl_reward import Rewarding

EPSILON = 0.2


def check(job: Job) -> None:
    """Raises Refused for what would fail later, before anything is written."""
    config = job.config
    local_model.require(*local_model.NEEDED)
    if config["teacher"]:
        distillation.load(job)
    import torch

    on_gpu = torch.cuda.is_available()
    if config["vllm"]:
        local_model.require("vllm")
    if config["quantize"]:
        local_model.require("bitsandbytes")
    if config["unsloth"]:
        local_model.require("unsloth")
    if config["attn"] == "flash_attention_2" and not (on_gpu and importlib.util.find_spec("flash_attn")):
        raise Refused("--attn flash_attention_2 needs a GPU and pip install flash-attn; use --attn sdpa.")
    if config["packing"] and config["attn"] != "flash_attention_2":
        raise Refused("--packing without flash attention lets one prompt see another; add --attn flash_attention_2.")
    if config["packing"] and config["mode"] == "train":
        raise Refused("--packing is for --mode sft and --mode distill; leave it out.")
    if config["vllm"] and not on_gpu:
        raise Refused("--vllm needs a GPU and none is found; leave it out, and transformers samples on the CPU.")
    _check_lengths(job)


def _check_lengths(job: Job) -> None:
    """The model's own tokenizer decides how long a prompt is."""
    from transformers import AutoConfig, AutoTokenizer

    source = local_model.dense(job.config["model"])
    try:
        tokenizer, its = AutoTokenizer.from_pretrained(source), AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise Refused(local_model.not_loadable(job.config["model"], error)) from error
    longest = max((*job.train, *job.validation), key=lambda p: sum(len(m["content"]) for m in p.messages))
    tokens = len(local_model.prompt_ids(tokenizer, longest.messages))
    most, reply = job.values["max_prompt_tokens"], job.values["max_completion_tokens"]
    if tokens > most:
        raise Refused(
            f"the longest prompt takes {tokens:,} tokens of {job.config['model']} and --max-prompt-tokens is {most:,}; "
            f"give --max-prompt-tokens {tokens + 64}, or smaller --budgets."
        )
    window = getattr(its, "max_position_embeddings", None)
    if window and tokens + reply > window:
        raise Refused(
            f"a prompt of {tokens:,} tokens and a reply of {reply:,} do not fit the {window:,} of "
            f"{job.config['model']}; use smaller --budgets."
        )


def train(job: Job, folder: RunFolder) -> Outcome:
    """Train from the start, or from the newest checkpoint in the folder."""
    import torch

    try:
        with stopping() as stop:
            local = _load(job)
            outcome = _fit(job, folder, local, stop)
    except SearchStopped as why:
        eprint(f"{job.data.prefix}Stopped: {why}. Go on with: python train.py --resume {folder.path}")
        return why.outcome
    except torch.OutOfMemoryError as error:
        eprint(f"{job.data.prefix}{out_of_memory(error, job.values)}")
        return "failed"
    if outcome == "stopped":
        eprint(f"{job.data.prefix}Stopped. Go on with: python train.py --resume {folder.path}")
    if outcome != "valid":
        return outcome
    return adapters.conclude(job, folder)


def _load(job: Job) -> LocalModel:
    config, values = job.config, job.values
    local = local_model.load(
        config["model"],
        precision=values["precision"],
        quantize=config["quantize"],
        attn=config["attn"],
        unsloth=config["unsloth"],
        window=values["max_prompt_tokens"] + values["max_completion_tokens"],
    )
    if config["adapter"]:
        return local.adapter(Path(config["adapter"]), trainable=True)
    from peft import LoraConfig, get_peft_model

    targets = values["lora_targets"]
    torch_seed(config["seed"])
    lora = LoraConfig(
        r=values["lora_rank"],
        lora_alpha=values["lora_alpha"],
        lora_dropout=values["lora_dropout"],
        target_modules=targets if targets == "all-linear" else targets.split(","),
        task_type="CAUSAL_LM",
    )
    if config["quantize"]:
        from peft import prepare_model_for_kbit_training

        local.model = prepare_model_for_kbit_training(local.model)
    try:
        if config["unsloth"]:
            from unsloth import FastLanguageModel

            model = FastLanguageModel.get_peft_model(
                local.model, r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=lora.lora_dropout
            )
        else:
            model = get_peft_model(local.model, lora)
    except ValueError as error:
        raise Refused(f"--lora-targets {targets} does not fit {config['model']} ({describe(error)}).") from error
    return LocalModel(local.name, model, local.tokenizer)


def torch_seed(seed: int) -> None:
    """So that an adapter begins with the same weights."""
    from transformers import set_seed

    set_seed(seed)


def _fit(job: Job, folder: RunFolder, local: LocalModel, stop: threading.Event) -> Outcome:
    from transformers.trainer_callback import PrinterCallback

    newest = adapters.newest_checkpoint(folder.path)
    step = adapters.step_of(newest) if newest else 0
    for name in ("steps.jsonl", "validation_scores.jsonl", "replies.jsonl"):
        metrics.rewind(folder.path / name, step)
    rewarding = Rewarding(
        steps=job.steps,
        num_generations=job.values.get("num_generations", 1),
        keep=lambda record: metrics.append(folder.path / "replies.jsonl", record),
    )
    if newest and job.config["mode"] == "train":
        rewarding.restore(newest)
    if newest:
        eprint(f"{job.data.prefix}Going on after step {step:,}.")
    if step >= job.steps:
        return "valid"
    validation = Validation(job, folder, local)
    callback = _callback(job, folder, rewarding, validation, stop)
    if job.config["mode"] == "train":
        trainer = _grpo(job, folder, local, rewarding, callback)
    else:
        trainer = supervised.trainer(job, folder, local, callback)
    trainer.remove_callback(PrinterCallback)
    if not newest:
        validation.look(0)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    return callback.outcome if callback.outcome else "valid"


def _grpo(job: Job, folder: RunFolder, local: LocalModel, rewarding: Rewarding, callback: Any) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    values, config = job.values, job.config
    import torch

    on_gpu = torch.cuda.is_available()
    vllm = config["vllm"] if config["vllm"] is not None else on_gpu and importlib.util.find_spec("vllm") is not None
    per_step = prompts_per_step(values)
    chat = bool(local.tokenizer.chat_template)
    rows = []
    for n in schedule(job.train, per_step=per_step, steps=job.steps, seed=config["seed"]):
        prompt = job.train[n]
        rows.append(
            {
                "prompt": list(prompt.messages) if chat else local_model.plain(prompt.messages),
                "case": json.dumps(prompt.case.as_json()),
            }
        )
    arguments = GRPOConfig(
        **arguments_for_both(job, folder, on_gpu=on_gpu),
        num_generations=values["num_generations"],
        max_completion_length=values["max_completion_tokens"],
        temperature=values["temperature"],
        top_p=values["top_p"],
        beta=values["beta"],
        epsilon=EPSILON,
        epsilon_high=values["clip_high"],
        loss_type=values["loss"],
        scale_rewards=values["scale_rewards"],
        mask_truncated_completions=values["mask_truncated"],
        importance_sampling_level=values["importance_sampling"],
        cast_lm_head_to_fp32=on_gpu and values["precision"] == "bf16" and not _tied(local),
        shuffle_dataset=False,  # `schedule` has settled the order
        remove_unused_columns=False,
        use_vllm=vllm,
        **({"vllm_mode": "colocate", "vllm_gpu_memory_utilization": config["vllm_memory"]} if vllm else {}),
    )
    return GRPOTrainer(
        model=local.model,
        reward_funcs=rewarding,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=local.tokenizer,
        callbacks=[callback],
    )


def arguments_for_both(job: Job, folder: RunFolder, *, on_gpu: bool) -> dict[str, Any]:
    """Of GRPOConfig and SFTConfig alike."""
    values = job.values
    return {
        "output_dir": str(folder.path),
        "per_device_train_batch_size": values["batch_size"],
        "gradient_accumulation_steps": values["gradient_accumulation"],
        "learning_rate": values["learning_rate"],
        "lr_scheduler_type": values["lr_scheduler"],
        "warmup_steps": min(values["warmup_steps"], job.steps),
        "max_grad_norm": values["max_grad_norm"],
        "max_steps": job.steps,
        "save_strategy": "steps",
        "save_steps": job.config["save_steps"],
        "save_total_limit": 3,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log a loss that is not a number as 0
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        "seed": job.config["seed"],
        "data_seed": job.config["seed"],
        "use_cpu": not on_gpu,
        "bf16": on_gpu and values["precision"] == "bf16",
        "dataloader_pin_memory": on_gpu,
        **({"gradient_checkpointing": True} if on_gpu else {}),
    }


def _tied(local: LocalModel) -> bool:
    return bool(getattr(local.model.config, "tie_word_embeddings", False))


def _callback(job: Job, folder: RunFolder, rewarding: Rewarding, validation: Validation, stop: threading.Event) -> Any:
    from transformers import TrainerCallback

    class Watching(TrainerCallback):
        """Writes figures, validates, saves, stops."""

        outcome = ""
        alarmed = False

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            logs = logs or {}
            if "loss" not in logs:
                return
            record = {"step": state.global_step}
            record |= {ours: float(logs[name]) for name, ours in metrics.OF_STEP.items() if logs.get(name) is not None}
            record |= rewarding.taken()
            metrics.append(folder.path / "steps.jsonl", record)
            eprint(f"{job.data.prefix}{metrics.line(record)}")
            if not all(math.isfinite(record.get(name, 0.0)) for name in ("loss", "grad_norm")):
                self.outcome = "failed"
                control.should_training_stop, control.should_save = True, False
                knob = "a lower --learning-rate" + (" or --loss dr_grpo" if "loss" in job.values else "")
                eprint(f"{job.data.prefix}The loss or its gradient is not a number; use {knob}.")
            if not self.alarmed and (told := metrics.alarm(metrics.read_lines(folder.path / "steps.jsonl"))):
                self.alarmed = True
                eprint(f"{job.data.prefix}{told}")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % job.eval_steps == 0 or state.global_step == job.steps:
                control.should_save = True
            if stop.is_set() and not self.outcome:
                self.outcome = "stopped" if state.global_step < job.steps else ""
                control.should_save = control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoint = folder.path / f"checkpoint-{state.global_step}"
            rewarding.save(checkpoint)
            if state.global_step % job.eval_steps == 0 or state.global_step == job.steps:
                validation.look(state.global_step)
            adapters.complete(checkpoint)  # a kill before this trains from the one before, and validates again

    return Watching()


def out_of_memory(error: BaseException, values: dict[str, Any]) -> str:
    """Which knob, and by how much."""
    said = str(error).splitlines()[0] if str(error) else "out of memory"
    batch, accumulation = values["batch_size"], values["gradient_accumulation"]
    if batch > 1:
        half = batch // 2
        more = batch * accumulation // half
        knob = f"--batch-size {half} --gradient-accumulation {more} takes half of it and trains the same"
    else:
        fewer = values["max_completion_tokens"] // 2
        knob = f"--quantize 4bit, --max-completion-tokens {fewer} or smaller --budgets takes less"
    return f"Out of GPU memory ({said[:200]}); {knob}, and with vLLM so does a smaller --vllm-memory."
