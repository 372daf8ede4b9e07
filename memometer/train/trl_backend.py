"""Training on this machine with TRL and LoRA, on a GPU or, for small models, on the CPU.

PyTorch is imported inside functions, because the project works without it.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from memometer.errors import UserError
from memometer.models.errors import describe
from memometer.models.replay_cache import SearchStopped
from memometer.run.folder import RunFolder
from memometer.run.interrupts import stopping
from memometer.train import checkpoints, distillation, local_model, metrics
from memometer.train.chat_format import ChatFormat, declared_ends
from memometer.train.checkpoints import Validation
from memometer.train.episodes import longest_episode
from memometer.train.local_model import LocalModel
from memometer.train.lookup_environment import check_template
from memometer.train.options import Hyperparameters
from memometer.train.plan import Outcome, TrainingPlan
from memometer.train.prompt_dataset import PromptOrder
from memometer.train.results import finish
from memometer.train.reward import RewardFunction
from memometer.train.trl_trainers import grpo_trainer, sft_trainer


def check(plan: TrainingPlan) -> None:
    """Raise UserError for a configuration that would fail later. Writes nothing."""
    options = plan.options
    local_model.require(*local_model.PACKAGES)
    if options.teacher:
        distillation.load_teacher(plan)
    import torch

    on_gpu = torch.cuda.is_available()
    needed = {"vllm": options.vllm, "bitsandbytes": options.quantize, "unsloth": options.unsloth}
    local_model.require(*(package for package, wanted in needed.items() if wanted))
    if options.attn == "flash_attention_2" and not (on_gpu and importlib.util.find_spec("flash_attn")):
        raise UserError("--attn flash_attention_2 needs a GPU and pip install flash-attn; use --attn sdpa.")
    if options.packing and options.attn != "flash_attention_2":
        raise UserError(
            "--packing without flash attention lets prompts attend to each other; add --attn flash_attention_2."
        )
    if options.packing and options.mode == "train":
        raise UserError("--packing is for --mode sft and --mode distill; leave it out.")
    if options.vllm and not on_gpu:
        raise UserError("--vllm needs a GPU, and there is none; leave it out to sample with transformers on the CPU.")
    _check_lengths(plan)


def _check_lengths(plan: TrainingPlan) -> None:
    """Check the longest prompt with the model's own tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    name, values = plan.options.model, plan.hyperparameters
    source = local_model.dense_source(name)
    try:
        tokenizer, config = AutoTokenizer.from_pretrained(source), AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(local_model.explain_load_error(name, error)) from error
    longest = max((*plan.train, *plan.validation), key=lambda p: sum(len(m["content"]) for m in p.messages))
    chat = ChatFormat.of(tokenizer, declared_ends(SimpleNamespace(config=config)), plan.options.chat_template_kwargs)
    _check_end_token(plan, chat)
    messages: Sequence[Mapping[str, str]] = longest.messages
    if plan.episodes:
        check_template(chat, name)
        messages = longest_episode(plan.episodes, longest.question_id)
    tokens, reply = len(chat.prompt_ids(messages)), values.max_completion_tokens
    if tokens > values.max_prompt_tokens:
        raise UserError(
            f"the longest prompt has {tokens:,} tokens of {name}, and --max-prompt-tokens is "
            f"{values.max_prompt_tokens:,}; use --max-prompt-tokens {tokens + 64}, or smaller --budgets."
        )
    window = getattr(config, "max_position_embeddings", None)
    if window and tokens + reply > window:
        raise UserError(
            f"a prompt of {tokens:,} tokens and a reply of {reply:,} exceed the context window of {name} "
            f"({window:,}); use smaller --budgets."
        )


def _check_end_token(plan: TrainingPlan, chat: ChatFormat) -> None:
    """Refuse a training that could not teach the model to end its replies."""
    model, options = plan.options.model, plan.options
    if not chat.end_token:
        raise UserError(f"{model} has no end token, so its replies would never end; use another --model.")
    if not chat.end_is_new:
        return
    if options.unsloth or (options.vllm and options.mode == "train"):
        flag = "--unsloth" if options.unsloth else "--vllm"
        raise UserError(
            f"{model} may have no trained embedding of its end token {chat.end_token}, and {flag} cannot train one; "
            f"leave out {flag}, or use the instruction-tuned model."
        )
    plan.eprint(f"The embedding of the end token {chat.end_token} is trained, because {model} declares another end.")


def train(plan: TrainingPlan, folder: RunFolder) -> Outcome:
    """Train from the start, or from the newest checkpoint in the folder."""
    import torch

    try:
        with stopping() as stop:
            outcome = _fit(plan, folder, load_with_adapter(plan), stop)
    except SearchStopped as reason:
        plan.eprint(f"Stopped: {reason}. Continue with: python train.py --resume {folder.path}")
        return reason.outcome
    except torch.OutOfMemoryError as error:
        plan.eprint(explain_out_of_memory(error, plan.hyperparameters))
        return "failed"
    except Exception as error:
        if not is_disk_full(error):
            raise
        plan.eprint(
            f"The disk of {folder.path} is full ({describe(error)}). Free some space, then continue with: "
            f"python train.py --resume {folder.path}"
        )
        return "failed"
    if outcome == "stopped":
        plan.eprint(f"Stopped. Continue with: python train.py --resume {folder.path}")
    return finish(plan, folder) if outcome == "valid" else outcome


def load_with_adapter(plan: TrainingPlan) -> LocalModel:
    """Load the base model with a new LoRA adapter, or with the one in `--adapter`."""
    options, values = plan.options, plan.hyperparameters
    local = local_model.load(
        options.model,
        precision=values.precision,
        quantize=options.quantize,
        attn=options.attn,
        unsloth=options.unsloth,
        window=values.max_prompt_tokens + values.max_completion_tokens,
        template_kwargs=options.chat_template_kwargs,
    )
    if options.adapter:
        return local.with_adapter(Path(options.adapter), trainable=True)
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    set_seed(options.seed)  # the initial weights of the adapter are random
    targets = values.lora_targets
    lora = LoraConfig(
        r=values.lora_rank,
        lora_alpha=values.lora_alpha,
        lora_dropout=values.lora_dropout,
        target_modules=targets if targets == "all-linear" else targets.split(","),
        task_type="CAUSAL_LM",
        trainable_token_indices=_end_rows(local),
    )
    if options.quantize:
        local.model = prepare_model_for_kbit_training(local.model)
    try:
        if options.unsloth:
            from unsloth import FastLanguageModel

            model = FastLanguageModel.get_peft_model(
                local.model, r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=lora.lora_dropout
            )
        else:
            model = get_peft_model(local.model, lora)
    except ValueError as error:
        raise UserError(f"--lora-targets {targets} does not fit {options.model} ({describe(error)}).") from error
    local_model.expose_head_bias(model)
    return LocalModel(local.name, model, local.format)


def _end_rows(local: LocalModel) -> dict[str, list[int]] | None:
    """The rows of the embedding and of the output layer that are trained: the end token of a base model."""
    if not local.format.end_is_new:
        return None
    model, rows = local.model, [local.format.end_id]
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    found = {names[id(model.get_input_embeddings())]: rows}
    if not getattr(model.config, "tie_word_embeddings", False):
        found[names[id(model.get_output_embeddings())]] = rows
    return found


def _fit(plan: TrainingPlan, folder: RunFolder, local: LocalModel, stop: threading.Event) -> Outcome:
    from transformers.trainer_callback import PrinterCallback

    newest = checkpoints.newest_checkpoint(folder.path)
    step = checkpoints.step_of(newest) if newest else 0
    for name in (metrics.STEPS, metrics.VALIDATIONS, metrics.REPLIES):
        metrics.rewind(folder.path / name, step)
    reward = RewardFunction(
        steps=plan.steps,
        num_generations=plan.hyperparameters.num_generations,
        log_reply=lambda record: metrics.append(folder.path / metrics.REPLIES, record),
        grade_episode=plan.episodes.grade if plan.episodes else None,
    )
    if plan.options.mode == "train":
        per_step = plan.hyperparameters.prompts_per_step
        reward.order = PromptOrder(plan.train, per_step=per_step, seed=plan.options.seed)
    if newest:
        plan.eprint(f"Continuing after step {step:,}.")
        if plan.options.mode == "train":
            reward.restore(newest)
    if step >= plan.steps or _is_patient_enough(plan, folder.path):
        return "valid"
    if plan.options.adapter:
        checkpoints.copy_start(Path(plan.options.adapter), folder.path)
    validation = Validation(plan, folder.path, local)
    callback = _callback(plan, folder.path, reward, validation, stop)
    if plan.options.mode == "train":
        trainer = grpo_trainer(plan, folder.path, local, reward, callback)
    else:
        trainer = sft_trainer(plan, folder, local, callback)
    trainer.remove_callback(PrinterCallback)
    if 0 not in [line["step"] for line in metrics.read_lines(folder.path / metrics.VALIDATIONS)]:
        validation.run(0)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    return callback.outcome or "valid"


def _callback(
    plan: TrainingPlan, folder: Path, reward: RewardFunction, validation: Validation, stop: threading.Event
) -> Any:
    from transformers import TrainerCallback

    def validates(step: int) -> bool:
        return step % plan.options.eval_steps == 0 or step == plan.steps

    class Callback(TrainerCallback):
        """Writes metrics, validates, saves, and stops the training if necessary."""

        outcome = ""
        alarmed = False

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            logs = logs or {}
            if "loss" not in logs:
                return
            names = metrics.TRL_LOG_NAMES
            record = {"step": state.global_step}
            record |= {ours: float(logs[name]) for name, ours in names.items() if logs.get(name) is not None}
            record |= metrics.step_metrics(reward.take_grades(), reward.num_generations)
            metrics.append(folder / metrics.STEPS, record)
            plan.eprint(metrics.format_line(record))
            if not all(math.isfinite(record.get(name, 0.0)) for name in ("loss", "grad_norm")):
                self.outcome = "failed"
                control.should_training_stop, control.should_save = True, False
                other = " or --loss dr_grpo" if plan.options.mode == "train" else ""
                plan.eprint(f"The loss or its gradient is not a number; use a lower --learning-rate{other}.")
            if not self.alarmed and (alarm := metrics.reward_hacking_alarm(metrics.read_lines(folder / metrics.STEPS))):
                self.alarmed = True
                plan.eprint(alarm)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if validates(state.global_step):
                control.should_save = True
            if stop.is_set() and not self.outcome:
                self.outcome = "stopped" if state.global_step < plan.steps else ""
                control.should_save = control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoint = folder / f"checkpoint-{state.global_step}"
            reward.save(checkpoint)
            if validates(state.global_step):
                validation.run(state.global_step)
                if _is_patient_enough(plan, folder):
                    control.should_training_stop = True
            # Last: after a kill before this, training resumes at the checkpoint before and validates again.
            checkpoints.mark_complete(checkpoint)

    return Callback()


def _is_patient_enough(plan: TrainingPlan, folder: Path) -> bool:
    """True if the last --patience validations were not better than an earlier one."""
    rewards = [line["reward"] for line in metrics.read_lines(folder / metrics.VALIDATIONS)]
    patience = plan.options.patience
    if not patience or len(rewards) <= patience or max(rewards[-patience:]) > max(rewards[:-patience]):
        return False
    plan.eprint(f"The last {patience} validations are not better than an earlier one, so the training ends.")
    return True


DISK_FULL = ("no space left", "disk quota", "file too large", "pytorchstreamwriter failed", "unexpected pos")
"""Words of a full disk in the errors of Python, safetensors and PyTorch, whose types differ."""


def is_disk_full(error: BaseException) -> bool:
    """Return true if a checkpoint could not be written because the disk is full."""
    return any(words in str(error).lower() for words in DISK_FULL)


def explain_out_of_memory(error: BaseException, values: Hyperparameters) -> str:
    """Return a sentence that names the option to change and its new value."""
    reason = str(error).splitlines()[0] if str(error) else "out of memory"
    if values.batch_size > 1:
        half = values.batch_size // 2
        more = values.batch_size * values.gradient_accumulation // half
        advice = f"--batch-size {half} --gradient-accumulation {more} halves the need and trains the same"
    else:
        fewer = values.max_completion_tokens // 2
        advice = f"--quantize 4bit, --max-completion-tokens {fewer} or smaller --budgets lowers the need"
    return f"Out of GPU memory ({reason[:200]}); {advice}. With vLLM, a smaller --vllm-memory also helps."
