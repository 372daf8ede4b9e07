"""Reading prompts: they equal those of an evaluation, and come from training conversations only."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from hypothesis import given
from hypothesis import strategies as st

from memometer import benchmarks
from memometer.benchmarks.protocol import Conversation, Question
from memometer.harness.contamination import HeldOut
from memometer.models.plain_adapter import PlainAdapter
from memometer.token_counters import counter_for
from memometer.train import prompt_dataset
from memometer.train.anonymize_speakers import anonymize
from memometer.train.prompt_dataset import (
    PromptOrder,
    ReadingPrompt,
    choose_questions,
    find_leaks,
    reading_prompts,
    schedule,
)
from memometer.train.reward import Case
from memory_system import MemorySystem


class Insatiable:
    """A model that always asks for more, and keeps the messages that it was sent."""

    def __init__(self) -> None:
        self.sent: list[list[dict[str, str]]] = []

    def complete(self, request: Any) -> Any:
        messages = [{"role": "system", "content": request.system}]
        self.sent.append(messages + [{"role": m.role, "content": m.text} for m in request.messages])
        return lm15.Response(
            id=None,
            model=request.model,
            finish_reason="stop",
            message=lm15.Message.assistant("none\nStatus: more\nAnswer: No information available"),
            usage=lm15.Usage(input_tokens=1, output_tokens=1),
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Insatiable:
        return self


def _exported(conversation: Conversation, questions: list[Question], **settings: Any) -> list[ReadingPrompt]:
    return list(reading_prompts([conversation], questions, count=counter_for(), **settings))


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_prompts_are_those_that_a_reader_is_asked(sample: Any, rounds: int) -> None:
    conversation = sample.conversations[0]
    questions = [q for q in conversation.questions if q.evidence][:4]
    budgets = [64, 128, 256]
    prompts = _exported(conversation, questions, budgets=budgets, rounds=rounds, examples=True)
    engine = Insatiable()
    lm = dspy.LM("local/insatiable", engine=engine, temperature=0.0, max_tokens=32, cache=False)
    memory = MemorySystem(count=counter_for(), rounds=rounds)
    state = memory.new()
    memory.observe(state, conversation.turns)
    for question in questions:
        with dspy.context(lm=lm, adapter=PlainAdapter(), disable_history=True):
            for budget in budgets if rounds < 2 else budgets[-1:]:
                memory(state=state, question=question.text, budget_tokens=budget)
    assert [list(prompt.messages) for prompt in prompts] == engine.sent
    assert [prompt.case.offers_more for prompt in prompts[:3]] == ([True, True, False] if rounds > 1 else [False] * 3)
    assert [prompt.case.halvings for prompt in prompts[:3]] == [2, 1, 0]


def test_cases_say_what_is_shown(sample: Any) -> None:
    conversation = sample.conversations[0]
    questions = [q for q in conversation.questions if q.evidence]
    for prompt in _exported(conversation, questions, budgets=[64, 128], rounds=2):
        text = "".join(message["content"] for message in prompt.messages if message["role"] == "user")
        turns = {turn.id: turn for turn in conversation.turns}
        for number, id in enumerate(prompt.case.shown, start=1):
            assert f"\n{number} {turns[id].speaker}: " in text
        replies = [message for message in prompt.messages if message["role"] == "assistant"]
        assert len(replies) == (not prompt.case.offers_more), "no examples, and in the second round the first reply"
        assert ReadingPrompt.of_json(prompt.as_json()) == prompt


def test_the_oracle_shows_the_evidence_and_nothing_else(sample: Any) -> None:
    conversation = sample.conversations[0]
    questions = [q for q in conversation.questions if q.evidence]
    for prompt in _exported(conversation, questions, budgets=[512], rounds=0, memory="oracle"):
        assert set(prompt.case.shown) == set(prompt.case.evidence)
        assert prompt.case.complete


def test_rounds_need_budgets_that_double(sample: Any) -> None:
    with pytest.raises(ValueError, match="use --budgets 100,200,400"):
        _exported(sample.conversations[0], [], budgets=[100, 250, 400], rounds=3)


def test_files_give_back_what_was_written(sample: Any, tmp_path: Path) -> None:
    conversation = sample.conversations[0]
    prompts = _exported(conversation, list(conversation.questions[:3]), budgets=[64], rounds=1)
    prompt_dataset.write_prompts(prompts, tmp_path / "train.jsonl")
    assert list(prompt_dataset.read_prompts(tmp_path / "train.jsonl")) == prompts


def test_questions_are_labelled_and_few_are_traps(locomo: Any) -> None:
    train = locomo.part("train")
    questions, left_out = choose_questions(train, 600, absent_share=0.1, seed=0)
    counts = Counter(question.category for question in questions)
    assert len(questions) == 600
    assert counts["5"] == 60
    assert left_out == 2  # conv-26 #30, #46
    assert all(question.evidence and not question.unresolved for question in questions)
    answerable = {(q.conversation, frozenset(q.evidence)) for q in questions if q.answerable}
    assert all((q.conversation, frozenset(q.evidence)) in answerable for q in questions if not q.answerable)
    few, _ = choose_questions(train, 50, absent_share=0.1, seed=0)
    assert len(few) == 50
    assert Counter(q.category for q in few)["5"] == 5


def test_training_prompts_hold_nothing_of_the_test_conversations(locomo: Any) -> None:
    train = [c for c in locomo.part("train") if c.id == "conv-30"]  # the shortest
    questions, _ = choose_questions(train, 40, absent_share=0.1, seed=0)
    prompts = list(reading_prompts(train, questions, budgets=(512, 1024), rounds=2, count=counter_for()))
    held_out = HeldOut.of(locomo)
    assert not find_leaks(prompts, held_out)
    assert {prompt.conversation for prompt in prompts} <= {c.id for c in train}
    question = locomo.part("test")[0].questions[0]
    leaking = replace(prompts[0], messages=({"role": "user", "content": question.text},))
    assert [leak.of for leak in find_leaks([leaking], held_out)] == [question.id]


# ---------------------------------------------------------------- order


def _prompt(n: int, evidence: set[int]) -> ReadingPrompt:
    case = Case("4", ("x",), tuple(f"D1:{e}" for e in sorted(evidence)), (), "read")
    return ReadingPrompt(f"c#{n}@64", "c", f"c#{n}", 64, (), case)


@given(
    st.lists(st.sets(st.integers(0, 30), min_size=1, max_size=2), min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(0, 5),
)
def test_a_step_shares_no_evidence_where_that_can_be(
    evidences: list[set[int]], per_step: int, steps: int, seed: int
) -> None:
    prompts = [_prompt(n, evidence) for n, evidence in enumerate(evidences)]
    order = schedule(prompts, per_step=per_step, steps=steps, seed=seed)
    assert len(order) == per_step * steps
    assert order == schedule(prompts, per_step=per_step, steps=steps, seed=seed)
    # A longer training begins as a shorter one: steps can be added without changing what came before.
    assert schedule(prompts, per_step=per_step, steps=steps + 3, seed=seed)[: len(order)] == order
    if len(order) >= len(prompts) * 3:
        assert set(order) == set(range(len(prompts)))


def test_real_prompts_never_share_evidence_in_a_step() -> None:
    prompts = [_prompt(n, {n % 40}) for n in range(120)]  # each turn is the evidence of three prompts
    order = schedule(prompts, per_step=8, steps=60, seed=1)
    for at in range(0, len(order), 8):
        assert len({source for n in order[at : at + 8] for source in prompts[n].sources}) == 16
    counts = Counter(order)
    assert max(counts.values()) - min(counts[n] for n in range(120)) <= 2


def test_prompts_without_reward_variance_are_left_out_of_the_next_pass() -> None:
    prompts = [_prompt(n, {n}) for n in range(6)]
    order = PromptOrder(prompts, per_step=2, seed=0)
    first = [order.at(position) for position in range(6)]
    order.drop(4)
    saved = json.loads(json.dumps(order.as_json()))
    second = [order.at(position) for position in range(6, 16)]
    assert set(first) == set(range(6))
    assert 4 not in second
    again = PromptOrder(prompts, per_step=2, seed=0)
    again.restore(saved)
    assert [again.at(position) for position in range(16)] == first + second
    for n in range(4):
        order.drop(n)
    assert not order.dropped, "too few would be left"


def test_speakers_get_other_names_everywhere(sample: Any) -> None:
    conversation, benchmark = sample.conversations[0], benchmarks.load()
    other = anonymize(conversation, benchmark, seed=3)
    assert other == anonymize(conversation, benchmark, seed=3)
    assert other != anonymize(conversation, benchmark, seed=4)
    texts = [turn.line for turn in other.turns] + [f"{q.text} {q.gold}" for q in other.questions]
    for name in conversation.speakers:
        assert name not in other.speakers
        assert not any(name in text.replace("'s", "").split() for text in texts)
    assert [q.evidence for q in other.questions] == [q.evidence for q in conversation.questions]
    assert [turn.id for turn in other.turns] == [turn.id for turn in conversation.turns]
