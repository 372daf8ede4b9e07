"""Kills, faults and nonsense in a search: no reply is paid twice or lost, and every fault is one sentence."""

# ruff: noqa: F401, F811  (the fixtures of tests.test_optimize)
from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memometer.models.replay_cache import CallStore
from tests import commands
from tests.conftest import Reply, Server, completion, failure
from tests.test_optimize import _in_a_folder_of_its_own, fields, flags, golds, results, simulated


def moody(path: Path) -> Callable[[int, dict[str, Any]], Reply]:
    """A reader that is right now and then, and a writer that never proposes the same: no request is answered alike."""
    known, mood = golds(path), random.Random(0)

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if wanted := fields(body):
            text = f"Look {mood.randrange(10**6)} times at the lines."
            texts = {name: json.dumps({"read": text}) if "dict" in kind else text for name, kind in wanted}
            return completion("".join(f"[[ ## {name} ## ]]\n{text}\n\n" for name, text in texts.items()))
        gold = known[re.findall(r"Question: (.*)", body["messages"][-1]["content"])[-1]]
        if mood.random() < 0.5:
            return completion(" 1\nStatus: answered\nAnswer: a pelican")
        return completion(f" 1\nStatus: answered\nAnswer: {gold}" if gold else " none\nStatus: absent\nAnswer: none")

    return answer


@pytest.mark.parametrize("optimizer", ["simba", "miprov2", "gepa", "bootstrap"])
def test_every_reply_that_was_kept_is_read_again(
    optimizer: str,
    server: Server,
    simulated: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four threads; the file is cut where a kill may have cut it."""
    server.answer = moody(simulated)
    demos = [] if optimizer == "gepa" else ["--max-demos", "2"]
    words = flags(server, simulated, "--optimizer", optimizer, "--num-threads", "4", *demos, "--run-dir", "run")
    words[words.index("--num-examples") + 1] = "6"
    assert commands.optimize(words) == 0
    kept = Path("run/calls.jsonl")
    whole = kept.read_bytes()
    assert len(server.requests) == whole.count(b"\n"), "each call once"
    known = {json.loads(line)["key"] for line in whole.splitlines()[: whole.count(b"\n") * 2 // 3]}
    kept.write_bytes(b"".join(whole.splitlines(keepends=True)[: len(known)]) + b'{"key": "cut sh')
    used: set[str] = set()
    reply = CallStore.reply
    monkeypatch.setattr(CallStore, "reply", lambda self, key, *rest: used.add(key) or reply(self, key, *rest))
    server.requests.clear()
    assert commands.optimize(["--resume", "run"]) == 0
    assert known <= used, "the search comes by all that it had"
    assert len(server.requests) == kept.read_bytes().count(b"\n") - len(known)


@pytest.mark.parametrize("writes", [completion(""), failure(500)])
def test_a_prompt_model_that_writes_nothing_ends_in_a_sentence(
    writes: Reply,
    server: Server,
    simulated: Path,
    capfd: Any,
) -> None:
    reads = moody(simulated)
    server.answer = lambda number, body: writes if fields(body) else reads(number, body)
    words = flags(server, simulated, "--optimizer", "miprov2", "--run-dir", "run", "--fail-on-error", "0.9")
    assert commands.optimize(words) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "Stopped: no prompts could be written: " in last
    assert last.endswith("Continue with: python optimize.py --resume run")


@pytest.mark.parametrize("line", ["nonsense", "[1]", "{}", '{"key": "a", "role": "reader", "outputs": [], "usage": 3}'])
def test_a_damaged_store_is_told_by_its_line(line: str, server: Server, simulated: Path, capfd: Any) -> None:
    server.answer = moody(simulated)
    assert (
        commands.optimize(flags(server, simulated, "--run-dir", "run", "--cost-limit", "0.0001", "--price", "1,1")) == 4
    )
    with Path("run/calls.jsonl").open("a") as file:
        file.write(f"{line}\n")
    number = len(Path("run/calls.jsonl").read_text().splitlines())
    capfd.readouterr()
    assert commands.optimize(["--resume", "run"]) == 2
    said = capfd.readouterr().err
    assert f"line {number} of run/calls.jsonl" in said
    assert said.count("\n") == 1


def test_an_output_folder_that_cannot_be_made(simulated: Path, capfd: Any) -> None:
    Path("taken").write_text("a file")
    words = ["--target", "retrieval", "--out", "taken/weights", "--data", str(simulated)]
    assert commands.optimize(words) == 2
    out, err = capfd.readouterr()
    assert not out
    assert "--out taken/weights" in err
    assert err.count("\n") == 1


def test_retrieval_weights_of_an_installed_package_need_a_folder(
    tmp_path: Path, simulated: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from memometer.retrieval import ranker

    installed = tmp_path / "site-packages" / "memometer" / "retrieval"
    installed.mkdir(parents=True)
    monkeypatch.setattr(ranker, "FOLDER", installed)
    assert commands.optimize(["--target", "retrieval", "--data", str(simulated)]) == 2
    assert "--out FOLDER" in capfd.readouterr().err
    assert not list(installed.iterdir())
