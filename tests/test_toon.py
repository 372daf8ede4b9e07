"""Turns as TOON, JSON, YAML and CSV: what is printed can be read back, and is what the budget counts."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import toons
import yaml
from hypothesis import given
from hypothesis import strategies as st

from locomo.dataset import SAMPLE
from memometer import systems
from memometer.budget import show
from memometer.commands import evaluate
from memometer.harness.make_plan import make_plan
from memometer.harness.plan import Plan
from memometer.memory import BudgetTooSmall, Memory, Turn
from memometer.reader.context_formats import FORMATS, form, record
from memometer.run.options import OptionError
from memometer.systems.baselines import Oracle
from memometer.token_counters import Tiktoken, Utf8Bytes
from tests import commands
from tests.conftest import sampled
from tests.test_memory_contract import build, conversations, observed

SYSTEMS = [name for name in systems.SYSTEMS if systems.load(name).shows_turns]
READ: dict[str, Callable[[str], Any]] = {
    "toon": toons.loads,
    "json": json.loads,
    "yaml": yaml.safe_load,
    "csv": lambda text: list(csv.DictReader(io.StringIO(text, newline=""))),
}


def printed_as(name: str, memory: Memory[Any]) -> Memory[Any]:
    memory.form = form(name)
    return memory


@pytest.mark.parametrize("name", READ)
@sampled(20)
@given(turns=conversations())
def test_what_is_printed_is_read_back(name: str, turns: list[Turn]) -> None:
    memory: Memory[Any] = Memory()
    state = observed(memory, turns)
    text = show(state, range(len(turns)), Utf8Bytes(), form=form(name)).text
    assert READ[name](text) == [record(turn, line) for turn, line in zip(turns, state.lines, strict=True)]
    assert text.endswith("\n")


def test_a_record_says_what_the_line_says() -> None:
    turn = Turn("D1:1", "Nadia", 'Well: it\'s  blue, "really".', 1, datetime(2024, 5, 8), "a bowl")
    assert record(turn, turn.line) == {
        "date": "Wed 8 May 2024",
        "speaker": "Nadia",
        "text": 'Well: it\'s blue, "really". [image: a bowl]',
    }
    assert record(turn, "Nadia:\n") == {"date": "Wed 8 May 2024", "speaker": "Nadia", "text": ""}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("system", SYSTEMS)
@sampled(6)
@given(turns=conversations(), question=st.sampled_from(["Vienna?", "Who has a blue bowl?"]), budget=st.integers(0, 900))
def test_no_format_exceeds_the_budget(name: str, system: str, turns: list[Turn], question: str, budget: int) -> None:
    memory = printed_as(name, build(system, Tiktoken("o200k_base")))
    state = observed(memory, turns)
    try:
        recall = memory.checked_recall(state, question, budget)
    except BudgetTooSmall:
        assert memory.shows_everything
        return
    order = [turn.id for turn in turns]
    assert list(recall.turn_ids) == sorted(set(recall.turn_ids), key=order.index)
    assert len(READ[name](recall.text) if recall.text else ()) == len(recall.turn_ids)
    assert bool(recall.text) == bool(recall.turn_ids)


@pytest.mark.parametrize("name", READ)
def test_the_budget_is_filled(name: str, sample: Any) -> None:
    memory = printed_as(name, build("bm25", Tiktoken("o200k_base")))
    state = observed(memory, list(sample.conversations[0].turns))
    for question in sample.questions:
        assert memory.recall(state, question.text, 300).tokens > 260
    oracle = printed_as(name, Oracle(count=Tiktoken("o200k_base")))
    state = oracle.reveal(state, ["D1:1", "D2:1"])
    assert len(READ[name](oracle.recall(state, "Who?", 300).text)) == 2


def test_lines_are_the_default_and_no_format_is_unknown() -> None:
    assert form("lines") is None
    assert [systems.form(name) is None for name in FORMATS] == [True, False, False, False, False]
    with pytest.raises(ValueError, match="'xml'.*lines, toon, json, yaml, csv"):
        form("xml")
    (choices,) = [a.choices for a in evaluate.parser()._actions if a.dest == "context_format"]
    assert tuple(choices or ()) == FORMATS


MODEL = ("--model", "openai/x", "--context-window", "8000", "--tokenizer", "o200k_base", "--judge-model", "none")


def planned(*words: str) -> Plan:
    return make_plan(evaluate.options_of(["--data", str(SAMPLE), "--no-mlflow", *words]))


def test_what_cannot_be_printed_so_is_refused() -> None:
    words = ("--context-format", "toon", "--systems")
    with pytest.raises(OptionError, match="adaptive is read in rounds, which cite numbered lines; leave out --roun"):
        planned(*MODEL, "--rounds", "2", *words, "adaptive")
    for system in ("summary", "entity", "rewritten_notes", "knowledge_graph", "summary_buffer"):
        assert not systems.load(system).shows_turns
    memories = planned("--recall-only", *words, "bm25,adaptive").systems.memories
    assert {memory.form.name for memory in memories.values() if memory.form} == {"toon"}
    assert all(memory.form for memory in memories.values()), "the controls too"


def test_a_run_prints_as_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of a run at a budget that holds more lines than records."""
    monkeypatch.chdir(tmp_path)
    recalled = {}
    for name in ("lines", "toon"):
        words = ["--data", str(SAMPLE), "--recall-only", "--no-mlflow", "--systems", "bm25", "--budget-tokens", "120"]
        assert commands.evaluate([*words, "--context-format", name, "--run-dir", str(tmp_path / name)]) == 0
        records = (tmp_path / name / "records.jsonl").read_text().splitlines()
        recalled[name] = [json.loads(line) for line in records]
        assert all(each["recall"]["tokens"] <= each["budget_tokens"] for each in recalled[name])
    lines, toon = (
        sum(len(each["recall"]["turn_ids"]) for each in recalled[name] if each["system"] == "bm25") for name in recalled
    )
    assert lines > toon > 0


# ---------------------------------------------------------------- the library


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], "[2]{a,b}:\n  1,x\n  2,y"),
        ([{"a": "1"}, {"a": "true"}], '[2]{a}:\n  "1"\n  "true"'),
        ([{"a": "x, y"}, {"a": "k: v"}, {"a": ""}], '[3]{a}:\n  "x, y"\n  "k: v"\n  ""'),
        ([{"a": "- x"}, {"a": "[1]"}, {"a": 'say "x"\n'}], '[3]{a}:\n  "- x"\n  "[1]"\n  "say \\"x\\"\\n"'),
        ([{"a": " x "}, {"a": "naïve 🎹"}, {"a": "C:\\"}], '[3]{a}:\n  " x "\n  naïve 🎹\n  "C:\\\\"'),
        ([], "[]"),
        ({"tags": ["x", "y"], "n": None}, "tags[2]: x,y\nn: null"),
    ],
)
def test_the_library_writes_toon(value: Any, text: str) -> None:
    """What the specification says of tables and quoting, in cases of our own."""
    assert toons.dumps(value) == text
    assert toons.loads(text) == value


@pytest.mark.parametrize("text", ["[2]{a,b}:\n  1,x", "[1]{a,b}:\n  1", "[1]:\n x", 'a: "x', "a: 1\n   b: 2"])
def test_the_library_refuses_what_is_no_toon(text: str) -> None:
    with pytest.raises(toons.ToonDecodeError):
        toons.loads(text)


GONE = {"keyFolding", "flattenDepth", "expandPaths"}
"""Options of TOON 3, which 4 has no more."""

NEW = {"uses list format for objects with nested values"}
"""Cases of TOON 3 that 4.1 writes another way: objects of one shape are a table, nested ones too."""


def test_the_library_passes_the_formats_own_fixtures() -> None:
    """The package @toon-format/spec of the npm registry holds them; they are no part of this project."""
    if not (folder := os.environ.get("TOON_FIXTURES")):
        pytest.skip("TOON_FIXTURES names no folder; npm pack @toon-format/spec and unpack it: package/tests/fixtures")
    passed = 0
    for path in sorted(Path(folder).glob("*/*.json")):
        fixtures = json.loads(path.read_bytes())
        for case in fixtures["tests"]:
            options = case.get("options", {})
            if GONE & options.keys() or (fixtures["version"] < "4" and case["name"] in NEW):
                continue
            how = {key: options[name] for name, key in (("delimiter", "delimiter"), ("indent", "indent_size"),
                                                        ("strict", "strict")) if name in options}  # fmt: skip
            work = toons.dumps if fixtures["category"] == "encode" else toons.loads
            if case.get("shouldError"):
                with pytest.raises(ValueError):  # noqa: PT011 - any refusal is right
                    work(case["input"], **how)
            else:
                assert work(case["input"], **how) == case["expected"], f"{path.stem}: {case['name']}"
            passed += 1
    assert passed > 300
