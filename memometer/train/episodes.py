"""Lookups as an episode: a question, up to R calls of the model, and one reward for the last answer.

An episode is read exactly as `evaluate.py --rounds R` reads a question (memometer.reader.multi_round): each request for
more memory adds a message with new lines to the conversation, within the question's budgets. Nothing is written to a
memory. The reward is that of the last answer minus a price for the tokens of all calls, so that asking for more pays
only if the answer needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from memometer import benchmarks
from memometer.benchmarks.protocol import Conversation, Question
from memometer.benchmarks.reward import TOKEN_PRICE
from memometer.models.plain_adapter import PlainAdapter
from memometer.reader.multi_round import Reading
from memometer.reader.reader import Reader
from memometer.reader.signatures import MultiRound
from memometer.systems.adaptive import AdaptiveMemory
from memometer.token_counters import TokenCounter, counter_for
from memometer.train.reward import Case, Grade, grade

Message = dict[str, str]
FORM = "read_on"


class Episodes:
    """Opens episodes on frozen memories. Several episodes of one conversation share its memory, which they only read.

    Args:
        conversations: The conversations; each is remembered once, at its first episode.
        questions: Questions about them.
        rounds: Calls of the model at most.
        budget_tokens: Tokens of memory in the last call; each call before has half of the next one's.
        reply_tokens: Limit of one reply.
        question_budget: Bound on all tokens of all calls; None sets no bound.
        token_price: Deduction from the reward per 1,000 tokens of all calls.
        examples: True keeps the worked examples in the prompt.
        benchmark: Name of the benchmark whose rules score an answer.
        count: Counts tokens.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        questions: Sequence[Question],
        *,
        rounds: int,
        budget_tokens: int,
        reply_tokens: int,
        question_budget: int | None = None,
        token_price: float = TOKEN_PRICE,
        examples: bool = False,
        benchmark: str = benchmarks.DEFAULT,
        count: TokenCounter | None = None,
    ) -> None:
        self.conversations = {conversation.id: conversation for conversation in conversations}
        self.questions = {question.id: question for question in questions}
        self.rounds, self.budget_tokens, self.question_budget = rounds, budget_tokens, question_budget
        self.reply_tokens, self.token_price, self.benchmark = reply_tokens, token_price, benchmark
        self.count = count or counter_for()
        self.memory = AdaptiveMemory(count=self.count)
        self.predict = dspy.Predict(MultiRound, max_tokens=reply_tokens)
        self.predict.demos = Reader(rounds=rounds).read.demos if examples else []
        self._states: dict[str, Any] = {}

    def state(self, conversation: str) -> Any:
        """Return the memory of a conversation."""
        if conversation not in self._states:
            state = self.memory.new()
            for session in self.conversations[conversation].sessions:
                self.memory.observe(state, session.turns)
            self._states[conversation] = state
        return self._states[conversation]

    def open(self, question_id: str) -> Reading:
        """Return a new reading of a question, before its first call.

        Raises:
            QuestionBudgetTooSmall: The question budget does not hold one prompt.
        """
        question = self.questions[question_id]
        with dspy.context(adapter=PlainAdapter()):
            return Reading(
                self.predict,
                question.text,
                more=self.memory.pages(self.state(question.conversation), question.text),
                count=self.count,
                rounds=self.rounds,
                budget_tokens=self.budget_tokens,
                question_budget=self.question_budget,
            )

    def messages(self, reading: Reading) -> list[Message]:
        """Return the messages of the next call."""
        inputs = dict(reading.inputs)
        demos = inputs.pop("demos", self.predict.demos)
        formatted = PlainAdapter().format(self.predict.signature, [dict(demo) for demo in demos], inputs)
        return [{"role": str(m["role"]), "content": str(m["content"])} for m in formatted]

    def take(self, reading: Reading, reply: str) -> bool:
        """Pass a reply to a reading; return True if another call follows. A reply that does not parse ends it."""
        try:
            parsed = PlainAdapter().parse(MultiRound, reply)
        except AdapterParseError:
            return False
        with dspy.context(adapter=PlainAdapter()):
            return reading.take(SimpleNamespace(**parsed))

    def case(self, question_id: str, reading: Reading) -> Case:
        """Return the facts that the reward of the current call's answer needs."""
        question = self.questions[question_id]
        return Case(
            category=question.category,
            keys=() if question.gold is None else (question.gold,),
            evidence=question.evidence,
            shown=reading.shown,
            form=FORM,
            offers_more=reading.offers_more,
            benchmark=self.benchmark,
        )

    def grade(self, question_id: str, replies: Sequence[str], *, progress: float = 0.0) -> Grade:
        """Grade the replies of one episode.

        Args:
            question_id: The question.
            replies: The model's replies, one per call. Replies after the end of the episode do not count.
            progress: Share of the training that is done, 0 to 1.

        Returns:
            The grade of the last answer. `calls` is the number of calls, `total_tokens` the tokens of all calls.
        """
        reading = self.open(question_id)
        tokens = calls = 0
        reply = ""
        for calls, reply in enumerate(replies, start=1):  # noqa: B007 - both are used after the loop
            prompt = self.messages(reading)
            tokens += sum(self.count(message["content"]) for message in prompt) + self.count(reply)
            case = self.case(question_id, reading)
            if not self.take(reading, reply):
                break
        # A request that was not granted is not graded as one: its answer counts, as in an evaluation.
        wants_more = bool(reading.calls) and reading.calls[-1].status == "more"
        found = grade(replace(case, offers_more=False) if wants_more else case, reply, progress=progress)
        return replace(found, reward=found.reward - self.token_price * tokens / 1000, calls=calls, total_tokens=tokens)

    def replay(self, question_id: str, replies: Sequence[str]) -> Reading:
        """Return a reading after some replies."""
        reading = self.open(question_id)
        for reply in replies:
            self.take(reading, reply)
        return reading


def longest_episode(episodes: Episodes, question_id: str) -> list[Message]:
    """Return the messages of an episode in which the model asks for more in every round."""
    reading = episodes.open(question_id)
    while episodes.take(reading, "none\nStatus: more\nAnswer: No information available"):
        pass
    return episodes.messages(reading)


def messages_after(before: Sequence[Mapping[str, str]], after: Sequence[Mapping[str, str]]) -> str:
    """Return the text of the message that a request for more added.

    Args:
        before: Messages of the call with the request.
        after: Messages of the next call: the same, the reply, and the new message.
    """
    return after[len(before) + 1]["content"]
