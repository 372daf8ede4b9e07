"""Reading: hard budgets over all rounds, lines mapped back to turns, replies of every kind, and when to abstain."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

import dspy
import numpy as np
import pytest
from dspy import lm15
from dspy.utils.exceptions import AdapterParseError
from hypothesis import given
from hypothesis import strategies as st

from memometer.memory import Turn
from memometer.models.embedded import ONE_LINE, _grammar
from memometer.models.plain_adapter import PlainAdapter
from memometer.reader.multi_round import MESSAGE_TOKENS, QuestionBudgetTooSmall
from memometer.reader.signatures import EXAMPLES, LAST, NOT_LAST, CitedAnswer, MultiRound
from memometer.retrieval.speakers import named_speaker, speaker_gap
from memometer.token_counters import Tiktoken, Utf8Bytes
from memory_system import MemorySystem
from tests.conftest import sampled
from tests.test_memory_contract import conversations, lines, observed

REPLY_TOKENS = 40


class Scripted:
    """Says what it is told to, and counts what it is asked, as a provider would: every message, and the reply."""

    def __init__(self, count: Any, *replies: str) -> None:
        self.count, self.replies = count, list(replies)
        self.prompts: list[str] = []
        self.tokens: list[int] = []
        self.sent: list[list[str]] = []
        self.lock = threading.Lock()

    def complete(self, request: lm15.Request) -> lm15.Response:
        texts = [str(request.system or ""), *(str(message.text) for message in request.messages)]
        with self.lock:
            reply = self.replies[min(len(self.prompts), len(self.replies) - 1)]
            self.prompts.append(texts[-1])
            self.sent.append(texts)
            self.tokens.append(sum(self.count(text) + MESSAGE_TOKENS for text in texts) + REPLY_TOKENS)
        usage = lm15.Usage(input_tokens=1, output_tokens=1)
        message = lm15.Message.assistant(reply)
        return lm15.Response(id=None, model=request.model, finish_reason="stop", message=message, usage=usage)

    def __deepcopy__(self, memo: dict[int, object]) -> Scripted:
        return self


def ask(memory: MemorySystem, state: Any, engine: Scripted, question: str, budget_tokens: int) -> dspy.Prediction:
    lm = dspy.LM("local/scripted", engine=engine, max_tokens=REPLY_TOKENS, cache=False, num_retries=0)
    with dspy.context(lm=lm, adapter=PlainAdapter()):
        return memory(state=state, question=question, budget_tokens=budget_tokens)


def talk(*texts: str) -> list[Turn]:
    return [
        Turn(f"D{i // 4 + 1}:{i % 4 + 1}", ("Nadia", "Oskar")[i % 2], text, i // 4 + 1, datetime(2024, 1, 1 + i // 4))
        for i, text in enumerate(texts)
    ]


REED = talk(
    "My accordion needs a new reed.", "Oh no.", "A man in Vienna repairs them.", "Good.",
    "I paid him 120 euros.", "Fair.", "The bowl is blue.", "Nice.",
)  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (" 3, 7\nStatus: answered\nAnswer: Sourdough", ([3, 7], "answered", "", "Sourdough")),
        ("Lines: 3, 7\nStatus: answered\nAnswer: Sourdough", ([3, 7], "answered", "", "Sourdough")),
        ("none\nStatus: more\nLookup: prize, award\nAnswer: none yet", ([], "more", "prize, award", "none yet")),
        ("none\nStatus: more\nLookup: none\nAnswer: none", ([], "more", "", "none")),
        ("**Lines:** 3\n**Status:** Answered.\n**Answer:** *Sourdough*", ([3], "answered", "", "Sourdough")),
        ('{"lines": [3, 7], "status": "absent", "answer": "No information available"}',
         ([3, 7], "absent", "", "No information available")),
        ("Lines: 3 Status: answered Answer: Sourdough", ([3], "answered", "", "Sourdough")),
        ("Sourdough", ([], "answered", "", "Sourdough")),
        ("5 March 2021", ([], "answered", "", "5 March 2021")),
        ("2021", ([], "answered", "", "2021")),
        ("Answer: Sourdough", ([], "answered", "", "Sourdough")),
        ("[2]\nAnswer:\nSourdough\n\nMemory:\n1 Tom: Hi\nAnswer: Rye", ([2], "answered", "", "Sourdough")),
        ("<think>Lines: 9</think>2\nStatus: answered\nAnswer: Rye", ([2], "answered", "", "Rye")),
        ("2\nStatus: perhaps\nAnswer: Rye", ([2], "answered", "", "Rye")),
        ("line 2 and 4-5\nAnswer: Rye", ([2, 4, 5], "answered", "", "Rye")),
        ("99999999999999999999\nAnswer: Rye", ([], "answered", "", "Rye")),
        ("Lines:\nStatus: absent\nAnswer: No information available", ([], "absent", "", "No information available")),
        ("2\nSTATUS = absent\nanswer = no", ([2], "absent", "", "no")),
    ],
)  # fmt: skip
def test_messy_replies_are_read(reply: str, expected: tuple[list[int], str, str, str]) -> None:
    parsed = PlainAdapter().parse(MultiRound, reply)
    assert (parsed["lines"], parsed["status"], parsed["lookup"], parsed["answer"]) == expected


@pytest.mark.parametrize("reply", ["", "  \n", "<think>Lines: 3", "1, 2, 3, 4,", "3\nStatus: answered", "Answer:"])
def test_a_reply_without_an_answer_is_a_failure(reply: str) -> None:
    with pytest.raises(AdapterParseError, match="contains no answer"):
        PlainAdapter().parse(CitedAnswer, reply)


@given(st.text(max_size=200) | st.lists(st.sampled_from(["Lines:", "Status:", "Answer:", "more", "3,", "\n", "{", "x"]))
       .map(" ".join))  # fmt: skip
def test_no_reply_crashes(reply: str) -> None:
    try:
        parsed = PlainAdapter().parse(MultiRound, reply)
    except AdapterParseError:
        return
    assert parsed["answer"]
    assert parsed["status"] in ("answered", "more", "absent")
    assert all(type(line) is int for line in parsed["lines"])


def test_the_prompt_of_several_outputs() -> None:
    example, *_ = EXAMPLES[MultiRound]
    messages = PlainAdapter().format(
        MultiRound, [dict(example)], {"memory": "1 Ann: Hi", "question": "Who?", "offered": LAST}
    )
    assert messages[0]["content"].endswith("Lines: …\nStatus: …\nLookup: …\nAnswer: …")
    assert messages[2]["content"] == "1\nStatus: answered\nAnswer: 5 March 2021"
    assert messages[3]["content"] == "Memory: 1 Ann: Hi\n\nQuestion: Who?\n\nOffered: answered, absent\n\nLines:"


def test_reading_stays_far_below_the_cost_of_the_chat_format() -> None:
    count = Tiktoken("o200k_base")
    for signature, most in ((CitedAnswer, 220), (MultiRound, 330)):
        inputs = dict.fromkeys(signature.input_fields, "")
        messages = PlainAdapter().format(signature, [dict(example) for example in EXAMPLES[signature]], inputs)
        assert sum(count(message["content"]) for message in messages) < most


def test_the_grammar_follows_the_examples() -> None:
    def form(*replies: str) -> tuple[str, str]:
        user = lm15.Message.user("?")
        messages = [m for reply in replies for m in (user, lm15.Message.assistant(reply))]
        return _grammar(lm15.Request(model="x", messages=(*messages, user)))

    assert form("Sourdough", "5 March 2021") == (ONE_LINE, "\n")
    grammar, end = form("1\nStatus: answered\nAnswer: x", "none\nStatus: more\nLookup: y\nAnswer: z")
    assert end == "\n\n"
    assert r'value ("\nStatus: " value) ("\nLookup: " value)? "\nAnswer: "' in grammar


def test_one_round_cites_turns_and_never_offers_more() -> None:
    memory = MemorySystem(count=Tiktoken("o200k_base"), rounds=1)
    engine = Scripted(memory.memory.count, "1, 3, 77, 3\nStatus: more\nAnswer: a man in Vienna")
    prediction = ask(memory, observed(memory, REED), engine, "Who repairs the accordion?", 300)
    numbered = [line for line in prediction.recall.text.splitlines() if not line.startswith("#")]
    assert [line.split()[0] for line in numbered] == [str(n) for n in range(1, 9)], "every line is numbered, no date is"
    assert prediction.citations == ("D1:1", "D1:3"), "numbers that no line has are dropped"
    assert (prediction.answer, prediction.status) == ("a man in Vienna", "answered")
    (told,) = prediction.rounds
    assert not told.offers_more
    assert "more" not in engine.prompts[0].lower()
    assert prediction.recall.tokens == memory.memory.count(prediction.recall.text) <= 300


def test_more_brings_what_the_lookup_names_and_keeps_the_prefix() -> None:
    memory = MemorySystem(count=Tiktoken("o200k_base"), rounds=3)
    engine = Scripted(
        memory.memory.count,
        "none\nStatus: more\nLookup: euros paid\nAnswer: ?",
        "4\nStatus: answered\nAnswer: 120 euros",
    )
    prediction = ask(memory, observed(memory, REED), engine, "What did the accordion cost?", 200)
    first, second = engine.prompts
    sent_first, sent_second = engine.sent
    assert sent_second[: len(sent_first)] == sent_first, "a call begins with the messages of the call before"
    assert sent_second[len(sent_first) :] == [engine.replies[0], second], "then come the reply and the new lines"
    assert "reed" not in second.partition("Question:")[0], "no line is shown twice"
    assert f"Offered: {NOT_LAST}" in first
    assert [told.status for told in prediction.rounds] == ["more", "answered"]
    assert prediction.rounds[0].lookup == "euros paid"
    assert set(prediction.rounds[0].turn_ids) < set(prediction.rounds[1].turn_ids)
    assert "D2:1" in prediction.rounds[1].turn_ids
    assert "D2:1" not in prediction.rounds[0].turn_ids
    assert all(told.context_tokens <= budget for told, budget in zip(prediction.rounds, (50, 100), strict=True))
    line = next(n for n, id in enumerate(prediction.recall.turn_ids, start=1) if id == "D2:1")
    assert f"\n{line} Nadia: I paid him 120 euros." in prediction.recall.text


def test_an_excerpt_is_shown_whole_in_a_later_round() -> None:
    memory = MemorySystem(count=Tiktoken("o200k_base"), rounds=3)
    engine = Scripted(memory.memory.count, "1\nStatus: more\nAnswer: ?", "1, 2\nStatus: answered\nAnswer: blue")
    long = "Now about the weather again. " * 60 + "The deploy key is in the blue folder. " + "It rained a lot. " * 60
    prediction = ask(memory, observed(memory, talk(long)), engine, "Where is the deploy key?", 2000)
    assert [(told.turn_ids, told.partial_ids) for told in prediction.rounds] == [
        (("D1:1",), ("D1:1",)),
        (("D1:1",), ()),
    ]
    assert prediction.recall.whole_ids == ("D1:1",)
    assert prediction.citations == ("D1:1",)
    assert prediction.recall.tokens <= 2000


def test_the_last_round_does_not_offer_more() -> None:
    memory = MemorySystem(count=Tiktoken("o200k_base"), rounds=2)
    engine = Scripted(memory.memory.count, "none\nStatus: more\nLookup: bowl\nAnswer: so far so good")
    prediction = ask(memory, observed(memory, REED), engine, "What did the accordion cost?", 100)
    assert [f"Offered: {NOT_LAST}" in prompt for prompt in engine.prompts] == [True, False]
    assert [f"Offered: {LAST}" in prompt for prompt in engine.prompts] == [False, True]
    assert [told.offers_more for told in prediction.rounds] == [True, False]
    assert (prediction.status, prediction.answer) == ("answered", "so far so good")


def test_nothing_new_ends_the_rounds() -> None:
    memory = MemorySystem(count=Tiktoken("o200k_base"), rounds=3)
    engine = Scripted(memory.memory.count, "none\nStatus: more\nAnswer: No information available")
    prediction = ask(memory, observed(memory, REED), engine, "What did the accordion cost?", 4000)
    assert len(engine.prompts) == 1, "everything was shown at once"
    assert prediction.status == "absent"


def test_a_question_budget_that_holds_no_prompt_is_refused() -> None:
    memory = MemorySystem(count=Tiktoken("o200k_base"), rounds=2, question_budget=100)
    with pytest.raises(QuestionBudgetTooSmall, match="without memory takes 4"):
        ask(memory, observed(memory, REED), Scripted(memory.memory.count, "1\nAnswer: x"), "Who?", 1000)


def replies() -> st.SearchStrategy[str]:
    return st.sampled_from(
        [
            "none\nStatus: more\nLookup: reed Vienna\nAnswer: x",
            "2\nStatus: more\nLookup: 3 May bowl\nAnswer: z",
            "1\nStatus: more\nAnswer: ",
            "1\nStatus: answered\nAnswer: x",
            "y",
        ]
    )


@pytest.mark.parametrize("count", [Utf8Bytes(), Tiktoken("o200k_base")])
@sampled(30)
@given(
    turns=conversations(),
    question=lines,
    script=st.lists(replies(), min_size=1, max_size=5),
    rounds=st.integers(1, 5),
    budget=st.integers(0, 4000),
    question_budget=st.integers(1, 12_000) | st.none(),
)
def test_no_script_makes_reading_exceed_its_budgets(
    count: Any,
    turns: list[Turn],
    question: str,
    script: list[str],
    rounds: int,
    budget: int,
    question_budget: int | None,
) -> None:
    memory = MemorySystem(count=count, rounds=rounds, question_budget=question_budget)
    engine = Scripted(count, *script)
    try:
        prediction = ask(memory, observed(memory, turns), engine, question, budget)
    except QuestionBudgetTooSmall:
        assert not engine.prompts, "refused before anything was spent"
        return
    except AdapterParseError:
        prediction = None
    assert len(engine.tokens) <= rounds
    assert question_budget is None or sum(engine.tokens) <= question_budget
    if prediction is None:
        return
    assert sum(engine.tokens) <= sum(told.total_tokens for told in prediction.rounds)
    assert not prediction.rounds[-1].offers_more or len(prediction.rounds) < rounds
    assert prediction.recall.tokens == count(prediction.recall.text) <= budget
    assert len(set(prediction.recall.turn_ids)) == len(prediction.recall.turn_ids)
    assert set(prediction.citations) <= set(prediction.recall.turn_ids)
    for told, prompt in zip(prediction.rounds, engine.prompts, strict=True):
        assert (f"Offered: {NOT_LAST}" in prompt) == told.offers_more


def test_who_is_named() -> None:
    speakers = ["Nadia", "Oskar"]
    assert named_speaker("What did Nadia's bowl cost?", speakers) == "Nadia"
    assert named_speaker("What did nadia and OSKAR buy?", speakers) is None
    assert named_speaker("Who lives in Oskarshamn?", speakers) is None


NAMES = ("Nadia", "Oskar")


def test_the_gap_is_larger_where_the_other_one_said_it() -> None:
    assert speaker_gap(np.array([3.0, 0.0, 1.0, 0.0]), [False, True, False, True]) == pytest.approx(
        2 / np.std([3, 0, 1, 0])
    )
    assert speaker_gap(np.zeros(2), [False, True]) == 0.0
    assert speaker_gap(np.ones(2), [False, False]) is None
    memory = MemorySystem()
    state = observed(memory, REED)
    # Learned scores favour whoever is named, so that zero is no boundary; the order of the two is what a rule needs.
    said, swapped = (memory.recall(state, f"What did {name} pay for the accordion?", 500).speaker_gap for name in NAMES)
    assert said is not None
    assert swapped is not None
    assert swapped > said
    assert memory.recall(state, "What did the accordion cost?", 500).speaker_gap is None
    assert memory.recall(memory.new(), "What did Nadia pay?", 500).speaker_gap is None
