"""Programs on disk, the examples in them, and which questions a search may see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locomo.dataset import dataset
from locomo.splits import SPLITS
from memometer.benchmarks.protocol import Dataset
from memometer.commands.optimize import parser
from memometer.optimize.optimizers import OPTIMIZERS, SIMBA_SIZES, size
from memometer.optimize.options import OptimizeOptions
from memometer.optimize.plan import SearchPlan, make_plan
from memometer.optimize.program import cut_memory, example_of, excerpt
from memometer.reader import program_file
from memometer.reader.signatures import EXAMPLES, CitedAnswer
from memory_system import MemorySystem
from tests.conftest import ROOT


def test_a_program_is_what_dspy_saves_and_reads(tmp_path: Path) -> None:
    memory = MemorySystem(rounds=1)
    memory.read.signature = memory.read.signature.with_instructions("Be brief.\n\nDé & ‘quotes’")
    memory.read.demos = memory.read.demos[:1]
    memory.read.lm = dspy.LM("openai/x", api_key="sk-secret-0123456789", api_base="http://10.0.0.1/v1")
    program_file.save(memory.read, tmp_path / "p.json", {"trained_on": ["conv-26"], "selected_on": ["conv-47"]})
    text = (tmp_path / "p.json").read_text()
    assert "sk-secret" not in text
    assert "10.0.0.1" not in text
    assert memory.read.lm, "what is saved is a copy"
    program = program_file.load(tmp_path / "p.json")
    by_dspy, by_us = MemorySystem(rounds=1), MemorySystem(rounds=1)
    by_dspy.load(tmp_path / "p.json")
    program.into(by_us)
    for read in (by_dspy.read, by_us.read):
        assert read.signature.instructions == "Be brief.\n\nDé & ‘quotes’"
        assert [dict(demo) for demo in read.demos] == [dict(memory.read.demos[0])]
        assert read.lm is None
    assert (program.rounds, program.trained_on, program.selected_on) == (1, ("conv-26",), ("conv-47",))
    assert list(tmp_path.iterdir()) == [tmp_path / "p.json"]


def test_a_place_that_cannot_be_written_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        program_file.save(MemorySystem().read, tmp_path / "nowhere" / "program.json", {})


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_a_program_belongs_to_its_signature(rounds: int, tmp_path: Path) -> None:
    program_file.save(MemorySystem(rounds=rounds).read, tmp_path / "p.json", {"rounds": rounds})
    program = program_file.load(tmp_path / "p.json")
    assert program.rounds == rounds
    program.into(MemorySystem(rounds=rounds))
    with pytest.raises(program_file.ProgramError, match=f"use --rounds {rounds}"):
        program.into(MemorySystem(rounds=1 if rounds != 1 else 0))


def test_what_is_no_program_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    program_file.save(MemorySystem(rounds=1).read, path, {})
    good = json.loads(path.read_text())
    bad: list[Any] = [[], {}, {"read": 1}, {"read": {"signature": good["read"]["signature"]}},
                      {"read": good["read"] | {"demos": [1]}}, {"read": good["read"] | {"signature": {}}}]  # fmt: skip
    for value in [*(json.dumps(each) for each in bad), "no json", "\x00"]:
        path.write_text(value)
        with pytest.raises(program_file.ProgramError, match="is not a program file"):
            program_file.load(path)
    with pytest.raises(program_file.ProgramError, match=r"nowhere.json does not exist"):
        program_file.load(tmp_path / "nowhere.json")
    other = dspy.Predict("question -> answer")
    program_file.save(other, path, {})
    with pytest.raises(program_file.ProgramError, match="prompt fields"):
        program_file.load(path)


def test_a_file_sets_nothing_but_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    program_file.save(MemorySystem(rounds=1).read, path, {})
    saved = json.loads(path.read_text())
    saved["read"] |= {"forward": "broken", "config": {"n": 50}, "lm": {"model": "openai/x", "api_base": "http://evil"}}
    path.write_text(json.dumps(saved))
    memory = MemorySystem(rounds=1)
    program_file.load(path).into(memory)
    assert callable(memory.read.forward)
    assert memory.read.config == {}
    assert memory.read.lm is None


def test_a_program_is_not_asked_what_it_was_made_from(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    program_file.save(MemorySystem(rounds=1).read, path, {"trained_on": ["conv-26"], "selected_on": ["conv-47"]})
    with pytest.raises(program_file.ProgramError, match="conv-26"):
        program_file.load_for(path, ["conv-26", "conv-42"])
    assert "conv-26" in program_file.load_for(path, ["conv-26"], unofficial_data=True)[1]
    assert "conv-47" in program_file.load_for(path, ["conv-47"])[1]
    assert program_file.load_for(path, ["conv-42"])[1] == ""


MEMORY = "# Mon 1 May 2023\n1 A: one\n2 B: 2 two\n# Tue 2 May 2023\n3 A: three\n4 B: four\n5 A: five\n"


@pytest.mark.parametrize(
    ("cited", "text", "numbers"),
    [
        ([1], "# Mon 1 May 2023\n1 A: one\n2 B: 2 two", [1]),
        ([3], "# Mon 1 May 2023\n1 B: 2 two\n# Tue 2 May 2023\n2 A: three\n3 B: four", [2]),
        ([5, 1], "# Mon 1 May 2023\n1 A: one\n2 B: 2 two\n# Tue 2 May 2023\n3 B: four\n4 A: five", [4, 1]),
        ([], "# Mon 1 May 2023\n1 A: one\n2 B: 2 two\n# Tue 2 May 2023\n3 A: three", []),
        ([99], "# Mon 1 May 2023\n1 A: one\n2 B: 2 two\n# Tue 2 May 2023\n3 A: three", []),
    ],
)
def test_an_example_keeps_what_is_cited_and_what_stands_beside_it(
    cited: list[int], text: str, numbers: list[int]
) -> None:
    assert cut_memory(MEMORY, cited) == (text, numbers)


@given(st.lists(st.integers(-1, 30), max_size=4), st.integers(0, 20))
def test_an_excerpt_points_at_the_same_lines_and_stays_as_it_is(cited: list[int], n: int) -> None:
    memory = "".join(f"# day {i // 4}\n" * (i % 4 == 0) + f"{i + 1} A: line {i + 1}\n" for i in range(n))
    text, numbers = cut_memory(memory, cited)
    lines = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in text.splitlines() if not line.startswith("#")}
    assert [lines[str(number)] for number in numbers] == [f"A: line {number}" for number in cited if 0 < number <= n]
    demo = dspy.Example(augmented=True, memory=memory, question="?", lines=cited, status="answered", answer="x")
    once = excerpt(demo)
    assert excerpt(once) == once
    assert once.memory == text
    assert set(once.keys()) == {"memory", "question", "lines", "status", "answer"}


def test_examples_by_hand_stay() -> None:
    assert [excerpt(demo) for demo in EXAMPLES[CitedAnswer]] == EXAMPLES[CitedAnswer]


def test_an_example_carries_no_label(sample: Dataset) -> None:
    for question in sample.questions:
        example = example_of(question)
        assert not example.labels().toDict()
        assert set(example.inputs().toDict()) == {"conversation", "question_id", "question"}


def plan_of(*words: str) -> SearchPlan:
    return make_plan(OptimizeOptions(**vars(parser().parse_args([*words, "--tokenizer", "o200k_base"]))))


def test_a_search_sees_training_and_validation_conversations_alone(locomo: Dataset) -> None:
    made = plan_of("--data", str(locomo.path), "--model", "openai/x", "--context-window", "8000")
    of = SPLITS["default"]
    first, second = made.folds
    assert {c.id for c in (*first.conversations, *second.conversations)} == {*of["train"], *of["validation"]}
    assert len(made.confirmation) == len({q.id for q in made.confirmation}) == 180
    for fold in (first, second):
        own = {c.id for c in fold.conversations}
        assert {q.conversation for q in (*fold.train, *fold.selection)} <= own
        assert not {q.id for q in fold.train} & {q.id for q in fold.selection}
        assert len(own) == 3
        assert not own & {q.conversation for q in fold.confirmation}
        assert (len(fold.train), len(fold.selection), len(fold.confirmation)) == (30, 30, 90)
        assert {*fold.train, *fold.selection} <= set(made.confirmation), "the unoptimized prompt answers each once"
    assert {c.id for c in made.held_out} == set(of["test"])
    assert {q.category for q in first.train} == {"1", "2", "3", "4", "5"}
    again = plan_of("--data", str(locomo.path), "--model", "openai/x", "--context-window", "8000")
    assert again.identity() == made.identity()
    other = plan_of("--data", str(locomo.path), "--model", "openai/x", "--context-window", "8000", "--seed", "1")
    assert {q.id for q in other.folds[0].train} != {q.id for q in first.train}


def test_instructions_are_paid_from_the_questions_budget() -> None:
    made = plan_of("--data", str(ROOT / "locomo/sample.json"), "--model", "openai/x", "--context-window", "8000")
    plain = MemorySystem(rounds=1)
    with_more = MemorySystem(rounds=1, question_budget=made.reader.question_budget, count=made.models["reader"].count)
    assert made.reader.question_budget
    assert 512 + 64 < made.reader.question_budget < 512 + 64 + 600
    lm = dspy.LM("openai/x", max_tokens=64)
    (conversation,) = made.data.conversations
    state = with_more.new()
    with_more.observe(state, conversation.turns)
    from memometer.models.plain_adapter import PlainAdapter
    from memometer.reader.multi_round import inputs_of, prompt_tokens

    long = plain.read.signature.instructions + " Be careful." * 60
    with_more.read.signature = with_more.read.signature.with_instructions(long)
    seen: list[int] = []

    def asked(**inputs: str) -> dspy.Prediction:
        seen.append(prompt_tokens(with_more.read, inputs, made.models["reader"].count))
        return dspy.Prediction(lines=[], status="absent", answer="none")

    with dspy.context(lm=lm, adapter=PlainAdapter()):
        before = prompt_tokens(made.reader.read, inputs_of(made.reader.read, "", "What?"), made.models["reader"].count)
        after = prompt_tokens(with_more.read, inputs_of(with_more.read, "", "What?"), made.models["reader"].count)
        with_more.read.forward = asked
        prediction = with_more(state=state, question="What?", budget_tokens=512)
    assert after - before > 100
    assert prediction.rounds[0].total_tokens <= made.reader.question_budget
    assert prediction.recall.tokens <= 512 - (after - before) + 100


@pytest.mark.parametrize("name", OPTIMIZERS)
@given(train=st.integers(1, 700), validation=st.integers(1, 200), max_demos=st.integers(0, 4))
def test_more_effort_asks_more(name: str, train: int, validation: int, max_demos: int) -> None:
    sizes = [size(name, effort, train=train, validation=validation, max_demos=max_demos) for effort in SIMBA_SIZES]
    assert sizes[0].runs < sizes[1].runs < sizes[2].runs
    assert all(each.runs > 0 and each.candidates > 1 for each in sizes)


def test_simulated_conversations_are_divided_in_their_order(sample: Dataset) -> None:
    conversation = sample.conversations[0]
    many = dataset([replace(conversation, id=str(n)) for n in range(10)], sample.path, "", "SIMULATED")
    assert [len(many.part(name)) for name in ("train", "validation", "test", "all")] == [4, 2, 4, 10]
    assert sample.part("test") == sample.part("train") == sample.conversations
