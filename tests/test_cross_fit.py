"""The confirmation of a cross-fitted search in simulation: power as forecast, and few false gains."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memometer.optimize.significance import is_gain
from memometer.stats.intervals import paired
from memometer.stats.power import DISCORDANT, GAIN_SPREAD, gain_power
from tests import commands
from tests.conftest import Reply, Server, completion
from tests.test_optimize import MAGIC, conversations, fields, flags, golds, results

CONVERSATIONS, QUESTIONS = 6, 30
CLUSTERS = [f"c{number}" for number in range(CONVERSATIONS) for _ in range(QUESTIONS)]
FIRST = [number for number in range(len(CLUSTERS)) if CLUSTERS[number] in ("c1", "c3", "c5")]
"""The questions that confirm the first search."""


def differences(random: np.random.Generator, gain: float, *, spread: float = GAIN_SPREAD) -> np.ndarray:
    """Differences of 1, 0 and -1 with a mean that varies between conversations, shape (conversations * questions,)."""
    share = max(DISCORDANT, abs(gain))
    mean = np.repeat(random.normal(gain, spread, CONVERSATIONS), QUESTIONS)
    drawn = random.random(len(mean))
    return (drawn < (share + mean) / 2).astype(float) - (drawn > 1 - (share - mean) / 2)


def reported(values: np.ndarray, delivered: list[int]) -> bool:
    zeros = [0.0] * len(values)
    own = values[delivered]
    gain = paired(values.tolist(), zeros, CLUSTERS)
    return is_gain(gain, paired(own.tolist(), zeros[: len(own)], [CLUSTERS[number] for number in delivered]))


@pytest.mark.parametrize(("gain", "power"), [(0.10, 0.49), (0.12, 0.64), (0.15, 0.83), (0.20, 0.97), (0.30, 1.0)])
def test_a_gain_is_found_as_often_as_forecast(gain: float, power: float) -> None:
    random = np.random.default_rng(7)
    share = np.mean([reported(differences(random, gain), FIRST) for _ in range(400)])
    assert gain_power(gain, len(CLUSTERS), CONVERSATIONS) == pytest.approx(power, abs=0.01)
    assert share == pytest.approx(power, abs=0.06)


@pytest.mark.parametrize("noise", ["questions", "conversations"])
def test_a_prompt_without_effect_is_seldom_a_gain(noise: str) -> None:
    """Each search selects the best of eight candidates that differ from the unoptimized prompt by chance alone."""
    random = np.random.default_rng(11)
    spread = 0.0 if noise == "questions" else 2 * GAIN_SPREAD
    false = 0
    for _ in range(600):
        chosen, merged = [], np.zeros(len(CLUSTERS))
        for confirming in (FIRST, [number for number in range(len(CLUSTERS)) if number not in FIRST]):
            selection = random.choice([-1.0, 0.0, 1.0], p=[0.125, 0.75, 0.125], size=(8, QUESTIONS)).mean(axis=1)
            chosen.append(max(0.0, float(selection.max())))
            if chosen[-1]:
                merged[confirming] = differences(random, 0.0, spread=spread)[confirming]
        first = chosen[0] >= chosen[1]
        delivered = FIRST if first else [number for number in range(len(CLUSTERS)) if number not in FIRST]
        false += reported(merged, delivered)
    assert false / 600 <= 0.05


def test_two_conversations_confirm_nothing() -> None:
    values, clusters = [1.0, 1.0, 0.0] * 20, ["a", "b", "a"] * 20
    gain = paired(values, [0.0] * 60, clusters)
    assert not is_gain(gain, gain)


# ---------------------------------------------------------------- whole searches


def better_by_20_points(path: Path) -> Callable[[int, dict[str, Any]], Reply]:
    """A reader that answers 40 % of the questions, and 60 % if the magic instruction is in its prompt."""
    known, asked = golds(path), Counter[str]()

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if wanted := fields(body):
            texts = {name: json.dumps({"read": MAGIC}) if "dict" in kind else MAGIC for name, kind in wanted}
            return completion("".join(f"[[ ## {name} ## ]]\n{text}\n\n" for name, text in texts.items()))
        question = re.findall(r"Question: (.*)", body["messages"][-1]["content"])[-1]
        asked[question] += 1
        share = 60 if MAGIC in body["messages"][0]["content"] else 40
        if body.get("temperature") == 1.0 and asked[question] % 2:
            share = 60
        if zlib.crc32(question.encode()) % 100 >= share:
            return completion(" 1\nStatus: answered\nAnswer: a pelican")
        gold = known[question]
        return completion(f" 1\nStatus: answered\nAnswer: {gold}" if gold else " none\nStatus: absent\nAnswer: none")

    return answer


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["simba", "miprov2", "gepa"])
def test_a_gain_of_20_points_is_reported(
    optimizer: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "ten.json"
    data.write_text(json.dumps(conversations(10, sessions=20)))
    server.answer = better_by_20_points(data)
    words = flags(server, data, "--optimizer", optimizer, "--run-dir", "run")
    words[words.index("--num-examples") + 1] = words[words.index("--num-confirmation") + 1] = "30"
    assert commands.optimize(words) == 0
    out = capfd.readouterr().out
    found = results()
    print(out)
    assert found["gained"], out
    assert found["gain"]["n"] == len(CLUSTERS)
    low, high = found["gain"]["interval"]
    assert low > 0
    assert low < 0.2 * 0.9 < high
