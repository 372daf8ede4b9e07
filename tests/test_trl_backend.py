"""Training with TRL, on a model of two layers with random weights. Needs PyTorch and TRL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from tests import commands
from tests.conftest import ROOT
from tests.tiny_models import write_tiny_model

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("trl", reason="TRL is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # what the training libraries deprecate is theirs

SAMPLE = str(ROOT / "locomo" / "sample.json")
GRPO = ["--mode", "train", "--backend", "trl", "--data", SAMPLE, "--rounds", "0", "--budgets", "64"]
SIZES = ["--num-train", "8", "--num-val", "3", "--batch-size", "4", "--gradient-accumulation", "1"]
SHORT = ["--num-generations", "4", "--max-completion-tokens", "8", "--lora-rank", "4", "--learning-rate", "0.01"]
REST = ["--warmup-steps", "0", "--num-test", "0", "--no-mlflow", "--save-steps", "2", "--eval-steps", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def _start(*flags: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(ROOT / "train.py"), *flags],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )


def _run(*flags: str, cwd: Path) -> str:
    process = _start(*flags, cwd=cwd)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def _steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def _adapter(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(str(folder / "adapter_model.safetensors")))


def test_a_killed_training_goes_on_with_the_same_data_and_ends_the_same(model: Path, tmp_path: Path) -> None:
    import torch

    flags = [*GRPO, *SIZES, *SHORT, *REST, "--model", str(model), "--num-train-steps", "6"]
    flags += ["--max-completion-tokens", "48"]  # long enough that random letters differ in what their length costs
    said = _run(*flags, "--output-dir", "whole", cwd=tmp_path)
    assert "Best at step" in said
    killed = _start(*flags, "--output-dir", "killed", cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "checkpoint-2" / "complete").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(_steps(tmp_path / "killed")) < 6
    said = _run("--resume", "killed", cwd=tmp_path)
    assert "Continuing after step" in said
    assert _steps(tmp_path / "killed") == _steps(tmp_path / "whole")
    ends = [_adapter(tmp_path / name / "checkpoint-6") for name in ("whole", "killed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    # The adapter has learned something, and whoever is given it is told under which terms.
    assert any(tensor.abs().sum() > 0 for name, tensor in ends[0].items() if "lora_B" in name)
    assert all(abs(step["loss"]) < float("inf") for step in _steps(tmp_path / "whole"))
    card = (tmp_path / "whole" / "best" / "README.md").read_text()
    assert "license: mit" in card
    assert (tmp_path / "grpo_optimized_memory_qa.json").exists()


def test_an_adapter_is_told_from_its_base_and_merged(model: Path, tmp_path: Path) -> None:
    flags = ["--mode", "sft", "--data", SAMPLE, "--memory", "oracle", "--budgets", "128", *SIZES, "--lora-rank", "4"]
    rest = ["--max-completion-tokens", "8", "--learning-rate", "0.01", *REST[:-2], "--eval-steps", "4", "--merge"]
    said = _run(*flags, *rest, "--model", str(model), "--num-train-steps", "8", cwd=tmp_path)
    losses = [step["loss"] for step in _steps(tmp_path / "sft_checkpoints")]
    assert losses[-1] < losses[0]
    assert (tmp_path / "sft_checkpoints" / "merged" / "model.safetensors").exists()
    asked = ["--mode", "evaluate", "--adapter", "sft_checkpoints/best", "--num-test", "3", "--data", SAMPLE]
    said = _run(*asked, "--no-mlflow", "--run-dir", "run", cwd=tmp_path)
    (line,) = [line for line in said.splitlines() if "Log-probability" in line]
    assert "changes nothing" not in line
    assert "adapter against base" in said
    assert "adapter against base with style rules" in said
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["model"] == str(model), "whose adapter it is, not what --model would be"
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    arms = {"adapter", "base", "base with examples", "base with style rules"}
    assert {record["system"] for record in records} == arms
    assert not (tmp_path / "grpo_optimized_memory_qa.json").exists(), "another mode's file"
    again = _run(*asked, "--no-mlflow", "--run-dir", "run", cwd=tmp_path)  # nothing is asked twice
    assert len((tmp_path / "run" / "records.jsonl").read_text().splitlines()) == len(records)
    assert "Log-probability" in again
    assert "sample-1" in again
    # GRPO from there: the supervised adapter is an arm of its own, and its share is separate.
    flags = ["--mode", "train", "--backend", "trl", "--data", SAMPLE, "--memory", "oracle", "--budgets", "128"]
    flags += ["--num-train", "4", "--num-val", "2", "--batch-size", "4", "--gradient-accumulation", "1"]
    flags += ["--num-generations", "4", "--max-completion-tokens", "8", "--num-train-steps", "1", "--no-mlflow"]
    said = _run(*flags, "--adapter", "sft_checkpoints/best", "--model", str(model), "--num-test", "2", cwd=tmp_path)
    assert "adapter against supervised" in said
    assert "supervised against base with examples" in said


def test_a_kill_while_the_last_step_is_validated_loses_no_validation(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memometer.train.checkpoints import Validation

    monkeypatch.chdir(tmp_path)
    validate = Validation.run

    def killed(self: Validation, step: int) -> None:
        if step == 3:
            raise SystemExit(9)
        validate(self, step)

    monkeypatch.setattr(Validation, "run", killed)
    flags = [*GRPO, *SIZES, *SHORT, *REST, "--model", str(model), "--num-train-steps", "3", "--beta", "0.04"]
    assert commands.train([*flags, "--eval-steps", "3"]) == 9
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert commands.train(["--resume", "grpo_checkpoints"]) == 0
    best = tmp_path / "grpo_checkpoints" / "best"
    assert json.loads((best / "training.json").read_text())["validation"]["step"] == 3
    assert not [path for path in best.iterdir() if path.is_dir()], "the adapter alone, not what TRL measures it against"


def test_a_loss_that_is_not_a_number_ends_the_training(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    broken = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, task_type="CAUSAL_LM"))
    for name, parameter in broken.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, float("nan"))
    broken.save_pretrained("broken")
    flags = ["--mode", "sft", "--data", SAMPLE, "--memory", "oracle", "--budgets", "128", *SIZES, *REST]
    flags += ["--max-completion-tokens", "8", "--adapter", "broken", "--model", str(model)]
    assert commands.train([*flags, "--num-train-steps", "4"]) == 1
    assert "is not a number; use a lower --learning-rate" in capsys.readouterr().err
    assert len(_steps(tmp_path / "sft_checkpoints")) == 1


class _Letters:
    """A rule that can be learned: letters of the alphabet, and nothing else."""

    __name__ = "letters"

    def __init__(self) -> None:
        self.means: list[float] = []
        self.order = None

    def __call__(self, prompts: Any, completions: Any, **_: Any) -> list[float]:
        texts = [said[0]["content"] for said in completions]
        rewards = [sum(c.isascii() and c.isalpha() for c in text) / max(1, len(text)) for text in texts]
        self.means.append(fmean(rewards))
        return rewards


def test_the_reward_rises_where_there_is_something_to_learn(model: Path, tmp_path: Path) -> None:
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    from memometer.commands import train
    from memometer.train import trl_backend, trl_trainers
    from memometer.train.plan import make_plan

    flags = [*GRPO, "--num-train", "8", "--num-val", "3", *SHORT, *REST, "--batch-size", "8", "--num-generations", "8"]
    flags += ["--gradient-accumulation", "1", "--model", str(model), "--num-train-steps", "60"]
    plan = make_plan(train.options_of(vars(train.parser().parse_args([*flags, "--output-dir", str(tmp_path / "out")]))))
    trl_backend.check(plan)
    local = trl_backend.load_with_adapter(plan)
    letters = _Letters()
    trainer = trl_trainers.grpo_trainer(plan, plan.output, local, letters, TrainerCallback())  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    early, late = letters.means[:15], letters.means[-15:]
    error = (stdev(early) ** 2 / 15 + stdev(late) ** 2 / 15) ** 0.5
    assert fmean(late) - fmean(early) > 3 * error, letters.means


def test_a_training_that_does_not_improve_ends_early_and_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--mode", "sft", "--data", SAMPLE, "--memory", "oracle", "--budgets", "128", *SIZES, "--no-mlflow"]
    flags += ["--model", str(model), "--num-train-steps", "8", "--eval-steps", "1", "--patience", "2"]
    assert commands.train([*flags, "--learning-rate", "1e-9", "--max-completion-tokens", "8"]) == 0
    assert len(_steps(tmp_path / "sft_checkpoints")) == 2
    out = capsys.readouterr().out
    assert "did not help" in out
    assert json.loads((tmp_path / "sft_checkpoints" / "results.json").read_text())["gain"]["difference"] <= 0
    assert not (tmp_path / "runs").exists(), "the test split is scored on request only"


EPISODES = [
    "--mode",
    "train",
    "--backend",
    "trl",
    "--data",
    SAMPLE,
    "--episodes",
    "--rounds",
    "2",
    "--budgets",
    "32,64",
]
LOOKUP = "none\nStatus: more\nLookup: kayak\nAnswer: No information available"
REPLY = "1\nStatus: answered\nAnswer: 7 May 2023"


def _episode_trainer(model: Path, folder: Path, *flags: str) -> tuple[Any, Any, Any]:
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    from memometer.commands import train
    from memometer.train import trl_backend, trl_trainers
    from memometer.train.plan import make_plan
    from memometer.train.reward import RewardFunction

    given = [*EPISODES, *SIZES, *SHORT, *REST, "--max-completion-tokens", "64", "--model", str(model), *flags]
    plan = make_plan(train.options_of(vars(train.parser().parse_args([*given, "--output-dir", str(folder)]))))
    trl_backend.check(plan)
    local = trl_backend.load_with_adapter(plan)
    assert plan.episodes is not None
    reward = RewardFunction(steps=2, num_generations=4, log_reply=lambda _: None, grade_episode=plan.episodes.grade)
    trainer = trl_trainers.grpo_trainer(plan, folder, local, reward, TrainerCallback())
    trainer.remove_callback(PrinterCallback)
    return plan, local, trainer


def test_an_episode_trains_on_the_replies_alone(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token ids are those of an evaluation, and the loss leaves the memory out."""
    plan, local, trainer = _episode_trainer(model, tmp_path, "--num-train-steps", "1")
    batches: list[Any] = []
    calls: list[list[list[int]]] = []

    def generated(prompt_ids: Any, *_: Any, **__: Any) -> Any:  # half of the rollouts ask for more, once
        calls.append([list(ids) for ids in prompt_ids])
        replies = [LOOKUP if len(calls) == 1 and n % 2 else REPLY for n in range(len(prompt_ids))]
        return [local.format.reply_ids(reply) for reply in replies], None

    monkeypatch.setattr(trainer, "_generate_single_turn", generated)
    score = trainer._generate_and_score_completions
    monkeypatch.setattr(
        trainer, "_generate_and_score_completions", lambda inputs: batches.append(score(inputs)) or batches[-1]
    )
    trainer.train()
    (batch,) = batches
    assert len(calls) == 2, "the last round offers no more"
    assert len(calls[1]) == len(calls[0]) // 2
    prompt = plan.train[trainer.train_dataset[0]["number"]]
    reading = plan.episodes.open(prompt.question_id)
    assert calls[0][0] == local.prompt_ids(plan.episodes.messages(reading)), "the prompt of an evaluation"
    plan.episodes.take(reading, LOOKUP)
    assert calls[1][0] == local.prompt_ids(plan.episodes.messages(reading)), "also after a lookup"
    trained = (batch["completion_mask"] * batch["tool_mask"]).bool()
    for n in range(len(calls[0])):
        replies = [LOOKUP, REPLY] if n % 2 else [REPLY]
        expected = [id for reply in replies for id in local.format.reply_ids(reply)]
        assert batch["completion_ids"][n][trained[n]].tolist() == expected


def test_a_killed_training_on_episodes_ends_the_same(model: Path, tmp_path: Path) -> None:
    import torch

    flags = [*EPISODES, *SIZES, *SHORT, *REST, "--model", str(model), "--num-train-steps", "4", "--output-dir"]
    said = _run(*flags, "whole", "--num-test", "2", cwd=tmp_path)
    assert "Best at step" in said
    assert "adapter against adapter, one call (the effect of lookups, at equal total tokens)" in said
    killed = _start(*flags, "killed", cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "checkpoint-2" / "complete").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    _run("--resume", "killed", cwd=tmp_path)
    assert _steps(tmp_path / "killed") == _steps(tmp_path / "whole")
    ends = [_adapter(tmp_path / name / "checkpoint-4") for name in ("whole", "killed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
