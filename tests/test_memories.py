"""What each memory is for, one by one; the promises that all of them keep are in test_memory_contract.py."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import dspy
import pytest
from dspy import lm15

from memometer import systems
from memometer.harness.make_plan import make_plan
from memometer.memory import Memory, Turn
from memometer.models.plain_adapter import PlainAdapter
from memometer.run.options import OptionError
from memometer.systems import entity, knowledge_graph
from memometer.systems.notes import REPLY_TOKENS, sentences
from memometer.token_counters import Utf8Bytes
from tests.conftest import HashEncoder

SAID = (
    ("Ann", "I bought a kayak."),
    ("Ben", "My sister Eva lives in Oslo."),
    ("Ann", "I sold the kayak again."),
    ("Ben", "Eva moved to Bergen."),
    ("Ann", "Good night."),
)
TURNS = [
    Turn(f"D{1 + i // 2}:{1 + i % 2}", speaker, text, 1 + i // 2, datetime(2024, 3, 1 + 7 * (i // 2)))
    for i, (speaker, text) in enumerate(SAID)
]


class Writer:
    """A model that gives these replies in turn, then the last one for good."""

    def __init__(self, *replies: str | Exception) -> None:
        self.replies = list(replies)
        self.prompts: list[str] = []
        self.max_tokens: list[int | None] = []

    def complete(self, request: Any) -> Any:
        self.prompts.append(request.messages[-1].text)
        self.max_tokens.append(request.config.max_tokens)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return lm15.Response(id=None, model=request.model, finish_reason="stop",
                             message=lm15.Message.assistant(reply),
                             usage=lm15.Usage(input_tokens=1, output_tokens=1))  # fmt: skip

    def __deepcopy__(self, memo: dict[int, object]) -> Writer:
        return self


def observe(memory: Memory[Any], writer: Writer, turns: list[Turn] = TURNS, state: Any = None) -> Any:
    state = memory.new() if state is None else state
    lm = dspy.LM("local/writer", engine=writer, temperature=0.0, max_tokens=64, cache=False, num_retries=0)
    with dspy.context(lm=lm, adapter=PlainAdapter()):
        memory.observe(state, turns)
    return state


def build(name: str) -> Memory[Any]:
    kind = systems.load(name)
    count = Utf8Bytes()
    return kind(count=count, encoder=HashEncoder()) if kind.needs_encoder else kind(count=count)


def seen(name: str, question: str, budget: int, *replies: str) -> list[str]:
    memory = build(name)
    return memory.recall(observe(memory, Writer(*replies)), question, budget).text.splitlines()


def test_recent_shows_the_newest() -> None:
    assert seen("recent", "kayak?", 50) == ["# Fri 15 March 2024", "Ann: Good night."]


@pytest.mark.parametrize("name", ["bm25", "vector"])
def test_the_turn_most_like_the_question_comes_first(name: str) -> None:
    # The vector of the tests knows words only as they are written.
    assert seen(name, "Ben: My sister Eva lives in Oslo.", 60) == [
        "# Fri 1 March 2024",
        "Ben: My sister Eva lives in Oslo.",
    ]


def test_a_session_is_whole_or_skipped() -> None:
    assert seen("session", "Who lives in Oslo?", 80) == ["# Fri 1 March 2024", "Ann: I bought a kayak.",
                                                         "Ben: My sister Eva lives in Oslo."]  # fmt: skip
    assert seen("session", "Who lives in Oslo?", 60) == ["# Fri 15 March 2024", "Ann: Good night."]


def test_a_summary_is_rewritten_with_every_session() -> None:
    writer = Writer(
        "- Ann bought a kayak. Eva lives in Oslo.", "1. Eva lives in Bergen.\n\n2. Eva lives in Bergen.", " "
    )
    memory = build("summary")
    state = observe(memory, writer)
    assert "Ann bought a kayak" in writer.prompts[1]
    assert "Ann: I sold the kayak again." in writer.prompts[1]
    assert memory.recall(state, "anything", 100).text == "Eva lives in Bergen.\n", "an empty reply leaves it as it was"
    assert writer.max_tokens == [REPLY_TOKENS] * 3, "more room than an answer has"
    assert seen("summary", "anything", 25, "Ann bought a kayak. Eva lives in Oslo.") == ["Ann bought a kayak."]


def test_a_summary_buffer_sums_up_what_the_buffer_does_not_show() -> None:
    replies = ("After one.", "After two.", "After three.")
    assert seen("summary_buffer", "x", 80, *replies) == ["After two.", "# Fri 15 March 2024", "Ann: Good night."]
    shown = seen("summary_buffer", "x", 240, *replies)
    assert shown[:2] == ["After one.", "# Fri 8 March 2024"]
    assert not any("After" in line for line in seen("summary_buffer", "x", 1000, *replies))


def test_entities_of_the_question_come_first() -> None:
    replies = (
        "Ann: bought a kayak\nEva:\n- lives in Oslo\nnot a fact of anyone: ",
        "**Eva**: moved to Bergen",
        "Ann: bought a kayak",
    )
    lines = seen("entity", "Where does Eva live?", 1000, *replies)
    assert lines == ["Ann: bought a kayak (1 March 2024)", "Eva: lives in Oslo (1 March 2024)",
                     "Eva: moved to Bergen (8 March 2024)"]  # fmt: skip
    assert all(line.startswith("Eva") for line in seen("entity", "Where does Eva live?", 80, *replies))


def test_messy_facts_are_read_or_dropped() -> None:
    lines = [
        "Ann: kayak",
        "ann bought it",
        "???",
        "9: nine",
        "This is a rather long heading indeed: x",
        "Eva:",
        "in Oslo",
    ]
    assert entity.parse(lines, ["Ann"]) == [("Ann", "kayak"), ("Ann", "ann bought it"), ("Eva", "in Oslo")]


def test_triples_are_found_by_their_entities_and_name_their_turns() -> None:
    replies = (
        "1 | Ann | bought | a kayak\n2 | Eva | lives in | Oslo\n77 | Oslo | is in | Norway",
        "1 | Ann | sold | it",
        "-",
    )
    memory = build("knowledge_graph")
    state = observe(memory, Writer(*replies))
    recall = memory.recall(state, "Where does Eva live?", 66)
    assert recall.text.splitlines() == ["Eva lives in Oslo (1 March 2024)", "Oslo is in Norway (1 March 2024)"], (
        "one step away is nearer than what shares no entity"
    )
    assert recall.turn_ids == ("D1:2",), "a turn that is not there is named by nobody"


def test_messy_triples_are_read_or_dropped() -> None:
    lines = ["| number | subject | relation | object |", "|---|---|---|---|", "| 2 | Ann | has | a kayak |",
             "two | parts", "(Ann, likes, tea, and cake)", "Line 3 | Ben | is | tired", "no triple at all",
             "2 | Ann | has | a kayak"]  # fmt: skip
    assert knowledge_graph.parse(lines) == [
        (2, "Ann", "has", "a kayak"), (0, "Ann", "likes", "tea, and cake"), (3, "Ben", "is", "tired")]  # fmt: skip


def test_an_evolving_state_is_compressed_above_its_limit() -> None:
    writer = Writer("short", "word " * 80, "Ann sold it\n" + "word " * 70, "x")
    memory = build("rewritten_notes")
    state = observe(memory, writer, TURNS[:4])
    assert len(writer.prompts) == 3, "two sessions, and one of them too long"
    assert [note.line for note in state.notes] == ["Ann sold it\n"], "what is too long even then is cut"


@pytest.mark.parametrize(
    "name", ["summary", "summary_buffer", "entity", "knowledge_graph", "rewritten_notes", "fact_augmented"]
)
def test_a_failed_call_leaves_the_session_out_whole(name: str) -> None:
    memory = build(name)
    state = memory.new()
    replies = ("Ann: kayak", lm15.ServerError("down"))
    with pytest.raises(dspy.utils.exceptions.LMError):
        observe(memory, Writer(*replies), state=state)
    assert [turn.id for turn in state.turns] == ["D1:1", "D1:2"]
    observe(memory, Writer("Ann: kayak"), TURNS[2:], state)
    assert len(state.turns) == len(TURNS)


def test_a_session_in_two_parts_is_read_once() -> None:
    writer = Writer("Ann: kayak")
    memory = build("summary_buffer")
    observe(memory, writer, TURNS[1:2], observe(memory, writer, TURNS[:1]))
    assert ["bought" in prompt for prompt in writer.prompts] == [True, False]


def test_prose_is_cut_where_sentences_end() -> None:
    assert list(sentences(["He left. She stayed at No. 4 Main St. They met", "One"])) == [
        "He left.", "She stayed at No. 4 Main St.", "They met", "One"]  # fmt: skip


def test_what_a_system_needs_is_asked_for_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from locomo.dataset import SAMPLE
    from memometer.commands import evaluate

    def refused(*words: str) -> str:
        with pytest.raises(OptionError) as refusal:
            make_plan(evaluate.options_of(["--data", str(SAMPLE), "--recall-only", *words]))
        return str(refusal.value)

    assert "summary writes its memory with a model, but --recall-only" in refused("--systems", "summary")
    assert "vector needs an encoder: unknown encoder 'none'" in refused("--systems", "vector", "--encoder", "none")
