"""Episodes of lookups: the reward of an episode, and its training with TRL's environments."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from dspy import lm15

from memometer.models.plain_adapter import PlainAdapter
from memometer.reader.reader import Reader
from memometer.run.environment import digest
from memometer.train.episodes import Episodes
from memometer.train.lookup_environment import wants_more

MORE = "none\nStatus: more\nLookup: {}\nAnswer: No information available"


def episodes_of(sample: Any, **settings: Any) -> Episodes:
    questions = [q for c in sample.conversations for q in c.questions if q.evidence]
    settings = {"rounds": 3, "budget_tokens": 256, "reply_tokens": 32, **settings}
    return Episodes(sample.conversations, questions, **settings)


class Script:
    """A model that replies from a script and keeps the messages that it was sent."""

    def __init__(self, replies: list[str]) -> None:
        self.replies, self.sent = list(replies), []  # type: ignore[var-annotated]

    def complete(self, request: Any) -> Any:
        messages = [{"role": "system", "content": request.system}]
        self.sent.append(messages + [{"role": m.role, "content": m.text} for m in request.messages])
        return lm15.Response(
            id=None,
            model=request.model,
            finish_reason="stop",
            message=lm15.Message.assistant(self.replies[len(self.sent) - 1]),
            usage=lm15.Usage(input_tokens=1, output_tokens=1),
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Script:
        return self


@pytest.mark.parametrize("question_budget", [None, 1000])
def test_an_episode_sends_what_an_evaluation_sends(sample: Any, question_budget: int | None) -> None:
    episodes = episodes_of(sample, question_budget=question_budget)
    for question in list(episodes.questions.values())[:4]:
        script = [MORE.format("the garden"), MORE.format("a trip"), "1\nStatus: answered\nAnswer: x"]
        engine = Script(script)
        reader = Reader(rounds=3, question_budget=question_budget)
        reader.read.demos = []
        lm = dspy.LM("local/script", engine=engine, temperature=0.0, max_tokens=32, cache=False)
        with dspy.context(lm=lm, adapter=PlainAdapter(), disable_history=True):
            state = episodes.state(question.conversation)
            prediction = reader(memory=episodes.memory, state=state, question=question.text, budget_tokens=256)
        reading, sent = episodes.open(question.id), []
        for reply in script:
            sent.append(episodes.messages(reading))
            if not episodes.take(reading, reply):
                break
        assert sent == engine.sent
        found = episodes.grade(question.id, script)
        assert found.calls == len(prediction.rounds) == len(sent)
        if question_budget:
            assert found.total_tokens <= sum(call.total_tokens for call in prediction.rounds) <= question_budget


def test_asking_pays_only_where_the_answer_needs_it(sample: Any) -> None:
    """The last answer is graded minus the tokens of all calls, so a needless request costs, and a needed one pays."""
    episodes = episodes_of(sample, rounds=2, budget_tokens=256)
    paid = needless = 0
    for question in episodes.questions.values():
        if not question.answerable:
            continue
        first, after = episodes.open(question.id), episodes.replay(question.id, [MORE.format("")])
        answer = f"none\nStatus: answered\nAnswer: {question.reference}"
        absent = "none\nStatus: absent\nAnswer: No information available"
        direct, asked = (episodes.grade(question.id, replies) for replies in ([answer], [MORE.format(""), answer]))
        assert asked.total_tokens > direct.total_tokens
        if set(question.evidence) <= set(first.shown):
            needless += 1
            assert direct.reward > asked.reward
        elif set(question.evidence) <= set(after.shown):
            paid += 1
            assert asked.reward > episodes.grade(question.id, [absent]).reward
    assert paid
    assert needless


def test_the_memory_of_an_episode_is_frozen(sample: Any) -> None:
    episodes = episodes_of(sample)
    question = next(iter(episodes.questions))
    state = episodes.state(episodes.questions[question].conversation)
    before = digest([[turn.id for turn in state.turns], list(state.lines)])
    rewards = [episodes.grade(question, [MORE.format("the dog"), MORE.format("x"), "1\nAnswer: y"]) for _ in range(3)]
    assert digest([[turn.id for turn in state.turns], list(state.lines)]) == before
    assert len(set(rewards)) == 1, "an episode does not change the next one"


@pytest.mark.parametrize(
    ("replies", "calls", "status"),
    [
        ([""], 1, "unparseable"),
        (["Answer: x"], 1, "answered"),
        ([MORE.format("x"), ""], 2, "unparseable"),
        ([MORE.format("x")] * 9, 3, "answered"),
        (["none\nStatus: absent\nAnswer: none", "never read"], 1, "absent"),
    ],
)
def test_every_sequence_of_replies_has_a_grade(sample: Any, replies: list[str], calls: int, status: str) -> None:
    episodes = episodes_of(sample)
    found = episodes.grade(next(iter(episodes.questions)), replies)
    assert found.calls == calls
    assert found.status in (status, "absent"), "an answer may be an abstention"
    assert found.reward <= 1


def test_a_request_is_granted_only_as_an_evaluation_repeats_it() -> None:
    """Otherwise the trained sequence would have an earlier reply that no evaluation sends."""
    offered, last = "… Offered: answered, more, absent\n\nLines:", "… Offered: answered, absent\n\nLines:"
    assert wants_more(offered, MORE.format("x"))
    assert not wants_more(last, MORE.format("x"))
    for other in (f" {MORE.format('x')}", "Status: more\nAnswer: x", "none\nStatus: answered\nAnswer: x", "", "more"):
        assert not wants_more(offered, other)
