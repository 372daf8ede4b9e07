"""Metrics of replies and groups, the alarm, and the reward as a trainer calls it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from memometer.train import metrics
from memometer.train.reward import MIN_RECENT, MORE, Case, RewardFunction, grade


def _steps(reward: float, strict: float, *, seed: int = 0) -> list[dict[str, Any]]:
    """A hundred steps on which reward and strict score rise by so much, with noise."""
    noise = random.Random(seed).gauss
    return [
        {"step": n, "reward": 0.2 + reward * n / 100 + noise(0, 0.05), "strict": 0.1 + strict * n / 100, "f1": 0.2}
        for n in range(100)
    ]


def test_an_alarm_when_the_reward_rises_and_nothing_else_does() -> None:
    assert "ALARM" in metrics.reward_hacking_alarm(_steps(0.3, 0.0))
    assert "ALARM" in metrics.reward_hacking_alarm(_steps(0.3, -0.1))
    assert not metrics.reward_hacking_alarm(_steps(0.3, 0.2))
    assert not metrics.reward_hacking_alarm(_steps(0.0, 0.0))
    assert not metrics.reward_hacking_alarm(_steps(0.3, 0.0)[:30])
    false = sum(bool(metrics.reward_hacking_alarm(_steps(0.0, 0.0, seed=seed))) for seed in range(200))
    assert false < 20


def test_groups_without_variance_are_counted() -> None:
    found = metrics.group_metrics([0.0, 1.0, 0.5, 0.5, 0.2, 0.2], 2)
    assert found["zero_variance"] == pytest.approx(2 / 3)
    assert found["group_variance"] == pytest.approx(0.25 / 3)


def test_replies_are_counted_by_what_they_are() -> None:
    case = Case("4", ("Sourdough",), ("D1:1",), ("D1:1",), "read")
    missing = Case("4", ("Sourdough",), ("D9:1",), ("D1:1",), "read_on", offers_more=True)
    grades = [
        grade(case, "1\nStatus: answered\nAnswer: Sourdough"),
        grade(case, "1\nStatus: absent\nAnswer: none"),
        grade(case, ""),
        grade(missing, "none\nStatus: more\nAnswer: none"),
    ]
    found = metrics.reply_metrics(grades)
    assert (found["unparseable"], found["absent"], found["more"]) == (0.25, 0.25, 0.25)
    assert (found["strict"], found["f1"]) == (0.5, 0.5)


def test_metrics_are_rewound_to_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    for step in range(1, 6):
        metrics.append(path, {"step": step, "reward": step / 10})
    with path.open("a") as file:
        file.write('{"step": 6, "rew')  # a kill in the middle of a write
    metrics.rewind(path, 3)
    assert [line["step"] for line in metrics.read_lines(path)] == [1, 2, 3]


class _At:
    global_step = 0


def test_asking_for_more_is_worth_what_the_next_round_earns(tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = []
    function = RewardFunction(steps=100, num_generations=2, log_reply=logged.append)
    first = Case("4", ("Sourdough",), ("D9:1",), ("D1:1",), "read_on", offers_more=True, halvings=1)
    last = Case("4", ("Sourdough",), ("D1:1",), ("D1:1",), "read_on", halvings=0)

    def give(case: Case, reply: str, n: int) -> list[float]:
        text = json.dumps(case.as_json())
        return function([""] * n, [reply] * n, [text] * n, _At())

    assert give(first, "none\nStatus: more\nAnswer: none", 2) == [MORE, MORE]
    worth = give(last, "1\nStatus: answered\nAnswer: rye", MIN_RECENT)[0]
    assert give(first, "none\nStatus: more\nAnswer: none", 2) == [pytest.approx(worth)] * 2
    function.save(tmp_path)
    other = RewardFunction(steps=100, num_generations=2, log_reply=logged.append)
    other.restore(tmp_path)
    assert other.more(first) == function.more(first)
    assert metrics.step_metrics(function.take_grades(), 2)["more"] > 0
    assert metrics.step_metrics(function.take_grades(), 2) == {}
