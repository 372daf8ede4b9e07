"""One training step without the model: a prompt, four rewards, Arbor's schemas, and TRL with a tiny model."""

from __future__ import annotations

import importlib.util
import io
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

from memometer import benchmarks
from memometer.errors import UserError
from memometer.token_counters import counter_for
from memometer.train import prompt_dataset
from memometer.train.arbor_request import Problem, gpu_ids, initialize_request
from memometer.train.options import Hyperparameters, TrainOptions
from memometer.train.plan import load_data
from memometer.train.prompt_dataset import ReadingPrompt
from memometer.train.reward import ABSTENTION, gold_reply, grade


def example_group(options: TrainOptions) -> tuple[str, ReadingPrompt, dict[str, float]]:
    """Make the first training prompt that shows all evidence, and grade four replies to it.

    Uses the data of `--data` or a local copy of the benchmark, otherwise the sample. Nothing is downloaded.

    Returns:
        The prefix of lines about the data, the prompt, and the rewards by kind of reply.

    Raises:
        ValueError: There is no such prompt.
    """
    local_file = benchmarks.load(options.benchmark).local_file
    if options.data is None and local_file:
        options = replace(options, data=str(local_file()))
    data = load_data(options)
    conversations = data.part("train")[:1]
    questions = [q for q in conversations[0].questions if q.answerable and prompt_dataset.is_labelled(q)][:4]
    prompts = prompt_dataset.reading_prompts(
        conversations,
        questions,
        budgets=options.budgets,
        rounds=options.rounds,
        count=counter_for(),
        memory=options.memory,
        examples=options.examples,
        benchmark=data.benchmark,
    )
    prompt = next((p for p in prompts if p.case.complete), None)
    if prompt is None:
        raise ValueError("no prompt shows all evidence of its question")
    honest = gold_reply(prompt.case)
    absent = honest.replace("answered", "absent") if prompt.case.form != "answer" else ABSTENTION
    replies = {
        "honest": honest,
        "absent": absent,
        "copied memory": prompt.messages[-1]["content"],
        "empty": "",
    }
    return data.prefix, prompt, {name: grade(prompt.case, reply).reward for name, reply in replies.items()}


TOKENIZER_MARGIN = 1.15
"""Upper bound of a model's tokens, with its chat template, per o200k_base token."""


def longest_prompt(options: TrainOptions, limit: int) -> int:
    """Return the tokens of the longest training prompt, at most `limit`, estimated with o200k_base.

    Uses the same data as `example_group`, and a sample of its questions, or all of them with `--memory oracle`. Without
    usable data it returns the limit.
    """
    local_file = benchmarks.load(options.benchmark).local_file
    if options.data is None and local_file:
        options = replace(options, data=str(local_file()))
    try:
        data = load_data(options)
        conversations = data.part("train")
        # Evidence alone is read at once, and its length varies most.
        n = options.num_train if options.memory == "oracle" else QUESTIONS
        asked, _ = prompt_dataset.choose_questions(conversations, n, absent_share=0.1, seed=options.seed)
        count = counter_for()
        prompts = prompt_dataset.reading_prompts(
            conversations,
            asked,
            budgets=options.budgets[-1:] if options.rounds < 2 else options.budgets,
            rounds=options.rounds,
            count=count,
            memory=options.memory,
            examples=options.examples,
            benchmark=data.benchmark,
        )
        tokens = max(sum(count(m["content"]) for m in prompt.messages) for prompt in prompts)
    except (UserError, ValueError, KeyError):
        return limit
    return min(limit, int(tokens * TOKENIZER_MARGIN) + CHAT_TOKENS)


QUESTIONS = 40
"""Questions in the sample from which the longest prompt is estimated."""
CHAT_TOKENS = 16
"""Tokens of a chat template around a prompt."""


def schema_problems(
    path: Path,
    options: TrainOptions,
    values: Hyperparameters,
    prompt: ReadingPrompt,
    rewards: Mapping[str, float],
) -> Iterator[Problem]:
    """Yield a problem for each request that the schemas of an installed Arbor reject. Imports only their file."""
    from pydantic import ValidationError

    spec = importlib.util.spec_from_file_location("arbor_schemas", path)
    if spec is None or spec.loader is None:
        return
    schemas = importlib.util.module_from_spec(spec)
    sys.modules["arbor_schemas"] = schemas  # pydantic resolves annotations there
    spec.loader.exec_module(schemas)
    group = [
        {
            "messages": list(prompt.messages),
            "completion": {"role": "assistant", "content": name},
            "reward": reward,
        }
        for name, reward in rewards.items()
    ]
    bodies = {
        "GRPOInitializeRequest": initialize_request(
            values,
            model=options.model,
            run_name="doctor",
            steps=1,
            inference_gpus=gpu_ids(options.inference_gpus),
            training_gpus=gpu_ids(options.training_gpus),
        ),
        "GRPOStepRequest": {"job_id": "grpo:x", "model": "grpo:x", "batch_id": 0, "batch": group},
        "GRPOCheckpointRequest": {"job_id": "grpo:x", "checkpoint_name": "step-1"},
        "GRPOTerminateRequest": {"job_id": "grpo:x"},
    }
    for name, body in bodies.items():
        try:
            getattr(schemas, name).model_validate(body)
        except (ValidationError, AttributeError) as error:
            message = " ".join(str(error).split())[:200]
            yield Problem(f"the installed Arbor rejects {name}: {message}", "install the pinned version")


def trl_problems(values: Hyperparameters) -> Iterator[Problem]:
    """Yield a problem if TRL cannot make one GRPO step with a model of two layers and random weights."""
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                loss = _tiny_step(values, folder)
    except Exception as error:  # noqa: BLE001 - any error of the installed packages is a finding
        message = str(error).splitlines()[0] if str(error) else ""
        yield Problem(
            f"TRL could not make a step: {type(error).__name__}: {message[:200]}", "see the versions in the first line"
        )
        return
    if loss != loss:
        yield Problem("TRL's loss is not a number", "use --loss dapo --no-mask-truncated")


def _tiny_step(values: Hyperparameters, folder: str) -> float:
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = {word: n for n, word in enumerate(["<pad>", "<end>", "<unk>", *"abcdefghijklmnop"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", padding_side="left"
    )
    shape = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=LlamaForCausalLM(shape),
        reward_funcs=lambda completions, **_: [float(ord(text[-1:] or "a")) for text in completions],
        args=GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, report_to="none", max_steps=1, disable_tqdm=True,
            per_device_train_batch_size=2, num_generations=2, max_completion_length=4, logging_steps=1,
            beta=values.beta, loss_type=values.loss, scale_rewards=values.scale_rewards,
            mask_truncated_completions=values.mask_truncated, epsilon_high=values.clip_high,
            importance_sampling_level=values.importance_sampling, save_strategy="no",
            dataloader_pin_memory=False, gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a b c", "d e f"]}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    return float(trainer.train().training_loss)
