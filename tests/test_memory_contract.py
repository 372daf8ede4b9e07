"""The contract of every memory system. A new system is covered as soon as memometer.systems names it."""

from __future__ import annotations

import copy
import json
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memometer import systems
from memometer.memory import BudgetExceeded, BudgetTooSmall, Memory, Recall, Turn
from memometer.reader.reader import Reader, predictors_of
from memometer.retrieval.features import features
from memometer.retrieval.late_interaction import Projection
from memometer.retrieval.ranker import Ranker
from memometer.retrieval.turn_index import TurnIndex
from memometer.systems.adaptive import AdaptiveMemory
from memometer.systems.baselines import Oracle
from memometer.token_counters import HuggingFace, Tiktoken, TokenCounter, Utf8Bytes
from memory_system import MemorySystem
from tests.conftest import HashEncoder, HashTokenEncoder, sampled, writing


def any_ranker() -> Ranker:
    """Weights of no merit for the features that an encoder adds to."""
    index = TurnIndex()
    index.add([Turn("D1:1", "Nadia", "A blue bowl.", 1, datetime(2024, 1, 1))])
    names = features(index, "Who?", dict.fromkeys(("late", "dense", "both"), np.zeros(1, np.float32))).names
    n = len(names)
    ones = np.ones(n, np.float32)
    weights = np.random.default_rng(0).normal(size=(3, n)).astype(np.float32)
    return Ranker(names, 0 * ones, ones, weights, -ones, ones)


SYSTEMS = {
    **{name: systems.load(name) for name in (*systems.SYSTEMS, *systems.BASELINES)},
    "adaptive with an encoder": partial(
        AdaptiveMemory,
        encoder=HashTokenEncoder(),
        projection=Projection.identity(HashTokenEncoder.dimensions),
        ranker=any_ranker(),
    ),
}

WAYS_TO_PACK = ["adaptive", "session", "summary", "summary_buffer", "full_context", "episodic"]
"""A system for each piece of code that fills a budget. Only this code counts tokens; ranking does not."""

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=120)
words = st.sampled_from(
    ["accordion", "reed", "Vienna", "blue", "bowl", "yesterday", "3 May", "🎹", "naïve", "  ", "\n/"]
)
lines = st.one_of(texts, st.lists(words, max_size=30).map(" ".join))


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    turns = []
    for session in range(1, draw(st.integers(1, 4)) + 1):
        said_at = datetime(2024, 1, 1) + timedelta(days=9 * session)
        for i in range(draw(st.integers(1, 8))):
            speaker = draw(st.sampled_from(["Nadia", "Oskar"]))
            caption = draw(st.one_of(st.none(), lines))
            turns.append(Turn(f"D{session}:{i + 1}", speaker, draw(lines), session, said_at, caption))
    return turns


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Five tokenizers of different kinds; the tokenizer.json ones are trained here, on our own sample."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    sample = (Path(__file__).parent.parent / "locomo" / "sample.json").read_text()
    built = {"bytes": Utf8Bytes(), "o200k": Tiktoken("o200k_base"), "cl100k": Tiktoken("cl100k_base")}
    for name, model, trainer, pre in (
        ("bpe", models.BPE(), trainers.BpeTrainer(vocab_size=600, show_progress=False,
         initial_alphabet=pre_tokenizers.ByteLevel.alphabet()), pre_tokenizers.ByteLevel()),
        ("wordpiece", models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(vocab_size=600,  # type: ignore[call-arg]
         show_progress=False, special_tokens=["[UNK]"]), pre_tokenizers.BertPreTokenizer()),
    ):  # fmt: skip
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre
        tokenizer.train_from_iterator(sample.splitlines(), trainer)
        path = tmp_path_factory.mktemp(name) / "tokenizer.json"
        tokenizer.save(str(path))
        built[name] = HuggingFace(path)
    return built


def build(name: str, count: TokenCounter | None = None) -> Memory[Any]:
    """The system, with an encoder that needs no weights where it takes one."""
    kind = SYSTEMS[name]
    needs_encoder = getattr(kind, "needs_encoder", False)
    return kind(count=count, encoder=HashEncoder()) if needs_encoder else kind(count=count)


def observed(memory: Memory[Any], turns: list[Turn]) -> Any:
    state = memory.new()
    with writing():
        for session in sorted({turn.session for turn in turns}):
            memory.observe(state, [turn for turn in turns if turn.session == session])
    if isinstance(memory, Oracle):
        state = memory.reveal(state, [turn.id for turn in turns[::2]])
    return state


def recalled(memory: Memory[Any], state: Any, question: str, budget: int) -> Recall | None:
    try:
        return memory.recall(state, question, budget)
    except BudgetTooSmall:
        assert memory.shows_everything
        return None


@pytest.mark.parametrize(
    ("counter", "name"),
    [("bytes", name) for name in SYSTEMS]
    + [(counter, name) for counter in ("o200k", "cl100k", "bpe", "wordpiece") for name in WAYS_TO_PACK],
)
@sampled(15)
@given(turns=conversations(), question=lines, budget=st.integers(0, 8192))
def test_no_recall_exceeds_its_budget(
    counter: str, name: str, counters: dict[str, Any], turns: list[Turn], question: str, budget: int
) -> None:
    count = counters[counter]
    memory = build(name, count)
    recall = recalled(memory, observed(memory, turns), question, budget)
    if recall is not None:
        assert recall.tokens == count(recall.text) <= budget
        order = [turn.id for turn in turns]
        assert list(recall.turn_ids) == sorted(set(recall.turn_ids), key=order.index), "each turn once, in time order"


@pytest.mark.parametrize("name", SYSTEMS)
@sampled(10)
@given(turns=conversations(), questions=st.lists(lines, min_size=2, max_size=4), budget=st.integers(0, 600))
def test_recall_is_deterministic_and_leaves_the_state_alone(
    name: str, turns: list[Turn], questions: list[str], budget: int
) -> None:
    memory = build(name)
    state = observed(memory, turns)
    before = copy.deepcopy(vars(state))
    forwards = [recalled(memory, state, question, budget) for question in questions]
    backwards = [recalled(memory, state, question, budget) for question in reversed(questions)]
    assert forwards == backwards[::-1], "the order of the questions changes nothing"
    assert vars(state) == before


@pytest.mark.parametrize("name", SYSTEMS)
@sampled(10)
@given(first=conversations(), second=conversations(), question=lines)
def test_two_conversations_share_nothing(name: str, first: list[Turn], second: list[Turn], question: str) -> None:
    alone = build(name)
    shared = build(name)
    observed(shared, first)
    expected = recalled(alone, observed(alone, second), question, 400)
    assert recalled(shared, observed(shared, second), question, 400) == expected


@pytest.mark.parametrize("name", SYSTEMS)
@sampled(10)
@given(turns=conversations())
def test_observing_at_once_or_by_session_gives_the_same_state(name: str, turns: list[Turn]) -> None:
    memory = build(name)
    at_once = memory.new()
    with writing():
        memory.observe(at_once, turns)
    if isinstance(memory, Oracle):
        at_once = memory.reveal(at_once, [turn.id for turn in turns[::2]])
    assert vars(at_once) == vars(observed(memory, turns))


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_empty_memory_recalls_nothing(name: str) -> None:
    memory = build(name)
    assert memory.recall(memory.new(), "Who repaired the accordion?", 1000) == Recall()


@pytest.mark.parametrize("name", SYSTEMS)
def test_predictors_are_found(name: str) -> None:
    memory = build(name)
    first, *others = predictors_of(memory, Reader())
    assert first == "read"
    assert bool(others) == memory.needs_model


def test_a_memory_system_saves_as_a_program_without_its_state(tmp_path: Path, sample: Any) -> None:
    """DSPy's optimisers find the predictor, copy the program, and save it without any text of a conversation."""
    system = MemorySystem()
    system.observe(system.new(), list(sample.conversations[0].turns))
    assert [name for name, _ in system.named_predictors()] == ["read"]
    system.deepcopy().save(tmp_path / "program.json")
    assert "accordion" not in (tmp_path / "program.json").read_text()
    assert json.loads((tmp_path / "program.json").read_text())["read"]["demos"]


def test_the_adaptive_memory_finds_the_answer_in_a_third_of_the_conversation(sample: Any) -> None:
    memory = AdaptiveMemory(count=Tiktoken("o200k_base"))
    state = observed(memory, list(sample.conversations[0].turns))
    for question in sample.questions:
        if question.category == "4":
            assert set(question.evidence) <= set(memory.recall(state, question.text, 200).turn_ids), question.text


def test_the_budget_is_filled_when_there_is_enough(locomo: Any) -> None:
    memory = AdaptiveMemory(count=Tiktoken("o200k_base"))
    conversation = locomo.conversations[0]
    state = observed(memory, list(conversation.turns))
    for budget in (512, 1024, 4096):
        filled = [
            memory.recall(state, question.text, budget).tokens / budget for question in conversation.questions[:40]
        ]
        assert sum(filled) / len(filled) >= 0.98


def test_full_context_is_never_cut(sample: Any) -> None:
    memory = SYSTEMS["full_context"]()
    state = observed(memory, list(sample.conversations[0].turns))
    with pytest.raises(BudgetTooSmall, match="full_context needs .* tokens, the budget is 100"):
        memory.recall(state, "anything", 100)
    assert len(memory.recall(state, "anything", 10_000).turn_ids) == len(sample.conversations[0].turns)


def test_a_memory_that_breaks_its_budget_is_found_out(sample: Any) -> None:
    class Greedy(Memory[Any]):
        def recall(self, state: Any, question: str, budget_tokens: int) -> Recall:
            return Recall("far too much", budget_tokens)

    memory = Greedy()
    with pytest.raises(BudgetExceeded, match="3 tokens and reports 2"):
        memory.checked_recall(memory.new(), "anything", 2)


def test_an_unknown_system_is_answered_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="known: adaptive, bm25, .*, recent, .*session, simple"):
        systems.load("mem1")


@pytest.mark.parametrize("name", ["recent", "bm25", "session"])
def test_a_session_across_midnight_shows_the_day_of_each_turn(name: str) -> None:
    evening = datetime(2024, 3, 3, 23, 50)
    turns = [
        Turn(f"t{n}", "Nadia", f"Bread number {n}.", 1, evening + timedelta(minutes=9 * n), role="user")
        for n in range(4)
    ]
    memory = systems.load(name)(count=Utf8Bytes())
    state = memory.new()
    memory.observe(state, turns)
    everything = memory.recall(state, "bread", 10_000)
    assert [line for line in everything.text.splitlines() if line.startswith("#")] == [
        "# Sun 3 March 2024",
        "# Mon 4 March 2024",
    ]
    assert memory.recall(state, "bread", everything.tokens).turn_ids == everything.turn_ids
    assert memory.recall(state, "bread", everything.tokens - 1).tokens < everything.tokens
