"""A model learns by reinforcement when to ask for more memory: in half of the questions it is right, in half it costs.

The model has two layers. It begins with the form of the replies and asks at random. Questions about a hidden colour
need a lookup; questions about a shown colour do not, and asking spends tokens. Needs PyTorch and TRL.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tests import commands
from tests.tiny_models import write_tiny_model

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("trl", reason="TRL is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NAMES = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal")
ASK = "none\nStatus: more\nLookup: box\nAnswer: ?"
SHOWN, HIDDEN = "none\nStatus: answered\nAnswer: red", "none\nStatus: answered\nAnswer: blue"


def _data(folder: Path) -> Path:
    """Conversations in which each person has a red ball and hides something blue in a box."""
    conversations = []
    for number, month in enumerate(("March", "April", "June", "July", "May")):  # no question is asked twice
        turns = [{"id": "t0", "speaker": "Ada", "text": "Hello!", "time": "2024-03-03T18:00:00"}]
        questions: list[dict[str, Any]] = []
        for n, name in enumerate(NAMES):
            turns += [
                {"id": f"a{n}", "speaker": name, "text": "My ball is red."},
                {"id": f"b{n}", "speaker": name, "text": "The box is blue."},
            ]
            questions += [
                {"id": f"qa{n}", "text": f"Shown by {name} in {month}?", "answer": "red", "evidence": [f"a{n}"]},
                {"id": f"qb{n}", "text": f"Hidden by {name} in {month}?", "answer": "blue", "evidence": [f"b{n}"]},
            ]
        conversations.append({"id": f"c{number}", "turns": turns, "questions": questions})
    path = folder / "balls.json"
    path.write_text(json.dumps({"name": "balls", "conversations": conversations}))
    return path


FLAGS = ["--mode", "train", "--backend", "trl", "--episodes", "--rounds", "2", "--budgets", "16,32", "--no-mlflow",
         "--token-price", "0.5", "--absent-share", "0", "--max-completion-tokens", "56", "--num-val", "16",
         "--num-train-steps", "36", "--eval-steps", "12", "--batch-size", "64", "--gradient-accumulation", "1",
         "--num-generations", "8", "--learning-rate", "0.001", "--lora-rank", "16", "--warmup-steps", "0"]  # fmt: skip


def _warm_start(folder: Path, data: Path) -> Path:
    """A model that knows the form of the replies, asks by a biased coin, and answers blue after a lookup."""
    import torch
    from transformers import AutoModelForCausalLM

    from memometer.commands import train
    from memometer.train import local_model
    from memometer.train.plan import make_plan

    write_tiny_model(folder, window=2048, hidden=64)
    flags = [*FLAGS, "--data", str(data), "--model", str(folder)]
    plan = make_plan(train.options_of(vars(train.parser().parse_args(flags))))
    local = local_model.load(str(folder), precision="fp32")
    episodes, coin, rows = plan.episodes, random.Random(0), []
    assert episodes is not None
    for _ in range(16):
        for prompt in plan.train:
            reading = episodes.open(prompt.question_id)
            likely = 0.65 if "Hidden" in prompt.messages[-1]["content"] else 0.35
            asks = coin.random() < likely
            reply = ASK if asks else SHOWN
            ids, labels = list(local.prompt_ids(episodes.messages(reading))), []
            labels = [-100] * len(ids)
            replied = local.format.reply_ids(reply)
            ids, labels = ids + replied, labels + replied
            if episodes.take(reading, reply):
                whole = local.prompt_ids(episodes.messages(reading))
                replied = local.format.reply_ids(HIDDEN)
                labels += [-100] * (len(whole) - len(ids)) + replied
                ids = list(whole) + replied
            rows.append((ids, labels))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(400):
        chosen = [rows[(8 * step + n) % len(rows)] for n in range(8)]
        longest = max(len(ids) for ids, _ in chosen)
        pad = local.tokenizer.pad_token_id
        batch = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in chosen])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in chosen])
        labels = torch.tensor([some + [-100] * (longest - len(some)) for _, some in chosen])
        loss = model(input_ids=batch, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def test_a_model_learns_when_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memometer.commands import train
    from memometer.train import local_model
    from memometer.train.checkpoints import Validation
    from memometer.train.plan import make_plan

    monkeypatch.chdir(tmp_path)
    data = _data(tmp_path)
    model = _warm_start(tmp_path / "model", data)
    flags = [*FLAGS, "--data", str(data), "--model", str(model)]
    assert commands.train(flags) == 0
    plan = make_plan(train.options_of(vars(train.parser().parse_args(flags))))
    local = local_model.load(str(model), precision="fp32").with_adapter(tmp_path / "grpo_checkpoints" / "best")
    assert plan.episodes is not None
    _, grades = Validation(plan, tmp_path, local)._read_episodes(plan.episodes)
    ids = [prompt.question_id for prompt in plan.validation]
    texts = [plan.episodes.questions[id].text for id in ids]
    hidden = [grade.calls for text, grade in zip(texts, grades, strict=True) if "Hidden" in text]
    shown = [grade.calls for text, grade in zip(texts, grades, strict=True) if "Shown" in text]
    assert fmean(hidden) > 1.8, "asks where the answer is hidden"
    assert fmean(shown) < 1.2, "and only there"
    constant = [fmean(plan.episodes.grade(id, replies).reward for id in ids) for replies in ([SHOWN], [ASK, HIDDEN])]
    assert fmean(grade.reward for grade in grades) > max(constant) + 0.2, "better than asking always, or never"
