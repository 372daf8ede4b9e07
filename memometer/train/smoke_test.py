"""A step of training without the model that is to be trained: the prompts, the rewards, and what a trainer makes of
them."""

from __future__ import annotations

import importlib.util
import io
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from memometer.token_counters import counter_for
from memometer.train import prompt_dataset
from memometer.train.arbor_request import Problem, gpu_ids, request
from memometer.train.hyperparameters import Values
from memometer.train.prompt_dataset import ReadingPrompt
from memometer.train.reward import gold_reply, grade


def group(config: Mapping[str, Any]) -> tuple[str, ReadingPrompt, dict[str, float]]:
    """(what begins a line about the data, the first answerable training prompt, what four replies to it earn). Raises
    ValueError without one.

    The data are those of --data where they are on this machine, else our sample: nothing is downloaded.
    """
    from memometer import benchmarks
    from memometer.train.plan import data_of

    given = config["data"]
    benchmark = benchmarks.load(config.get("benchmark"))
    data = data_of(config) if given or not benchmark.local_file else benchmark.load(benchmark.local_file())
    conversations = data.part("train")[:1]
    questions = [q for q in conversations[0].questions if q.answerable and prompt_dataset.labelled(q)][:4]
    prompts = list(
        prompt_dataset.reading_prompts(
            conversations,
            questions,
            budgets=config["budgets"],
            rounds=len(config["budgets"]) if config["rounds"] is None else config["rounds"],
            count=counter_for(),
            memory=config["memory"],
            examples=config["examples"],
        )
    )
    prompt = next((p for p in prompts if p.case.complete), None)
    if prompt is None:
        raise ValueError("no prompt shows the evidence of its question")
    honest = gold_reply(prompt.case)
    replies = {
        "honest": honest,
        "absent": honest.replace("answered", "absent"),
        "copied memory": prompt.messages[-1]["content"],
        "nothing": "",
    }
    return data.prefix, prompt, {name: grade(prompt.case, reply).reward for name, reply in replies.items()}


def schema_problems(
    path: Path, config: Mapping[str, Any], values: Values, prompt: ReadingPrompt, rewards: Mapping[str, float]
) -> Iterator[Problem]:
    """What the request models of an installed Arbor, loaded from their file alone, do not accept."""
    from pydantic import ValidationError

    spec = importlib.util.spec_from_file_location("arbor_schemas", path)
    if spec is None or spec.loader is None:
        return
    schemas = importlib.util.module_from_spec(spec)
    sys.modules["arbor_schemas"] = schemas  # pydantic looks there for the names in annotations
    spec.loader.exec_module(schemas)
    sent = [{"role": "assistant", "content": name} for name in rewards]
    samples = [
        {"messages": list(prompt.messages), "completion": completion, "reward": reward}
        for completion, reward in zip(sent, rewards.values(), strict=True)
    ]
    bodies = {
        "GRPOInitializeRequest": request(
            values,
            model=config["model"],
            run_name="doctor",
            steps=1,
            inference_gpus=gpu_ids(config["inference_gpus"]),
            training_gpus=gpu_ids(config["training_gpus"]),
        ),
        "GRPOStepRequest": {"job_id": "grpo:x", "model": "grpo:x", "batch_id": 0, "batch": samples},
        "GRPOCheckpointRequest": {"job_id": "grpo:x", "checkpoint_name": "step-1"},
        "GRPOTerminateRequest": {"job_id": "grpo:x"},
    }
    for name, body in bodies.items():
        try:
            getattr(schemas, name).model_validate(body)
        except (ValidationError, AttributeError) as error:
            said = " ".join(str(error).split())[:200]
            yield Problem(f"the installed Arbor does not take our {name}: {said}", "install the version that is pinned")


def trl_problems(values: Values) -> Iterator[Problem]:
    """What goes wrong when TRL takes one GRPO step with a model of two small layers and random weights."""
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                loss = _tiny_step(values, folder)
    except Exception as error:  # noqa: BLE001 - whatever the installed packages raise is what is looked for
        first = str(error).splitlines()[0] if str(error) else ""
        yield Problem(f"TRL took no step: {type(error).__name__}: {first[:200]}", "see the versions in the first line")
        return
    if loss != loss:
        yield Problem("TRL's loss is not a number", "use --loss dapo --no-mask-truncated")


def _tiny_step(values: Values, folder: str) -> float:
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
            beta=values["beta"], loss_type=values["loss"], scale_rewards=values["scale_rewards"],
            mask_truncated_completions=values["mask_truncated"], epsilon_high=values["clip_high"],
            importance_sampling_level=values["importance_sampling"], save_strategy="no",
            dataloader_pin_memory=False, gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a b c", "d e f"]}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    return float(trainer.train().training_loss)
