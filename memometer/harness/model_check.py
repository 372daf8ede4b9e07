"""A first call to a model before a run is paid for: reachable, listed, window, usage, thoughts, refused parameters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.lm15 import LM15Error

from memometer.judging.judge import Judge
from memometer.models.bounded_retries import BoundedRetryLM
from memometer.models.errors import FATAL, describe
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.replies import observed_replies
from memometer.models.resolve_models import REASONING_TOKENS, Model
from memometer.models.server_facts import ServerFacts, server_facts
from memometer.models.usage import Usage, metered
from memometer.reader.reader import Reader
from memometer.token_counters import TokenCounter, Utf8Bytes

MEMORY, QUESTION, ANSWER = "# Mon 8 May 2023\nAnn: I moved to Oslo last week.", "Where does Ann live?", "Oslo"

ROOM_OF_UNKNOWN_WINDOW = 4_096
"""Tokens for a reply with thoughts if the context window is not known."""

SMALLEST_ROOM = 256
"""Tokens of a reply below which thoughts hardly fit."""


@dataclass
class ModelCheck:
    """The result of a first call.

    Attributes:
        model: the model.
        facts: the facts that its servers report.
        failure: the description of the error; empty if the model answered.
        is_fatal: True if every further call would fail the same way.
        reply: the reply's text.
        usage: calls and tokens.
        counted: tokens of the prompt as this program counts them.
        has_thoughts: True if the model reasons before it answers.
        room: tokens that a reply with thoughts now has; 0 if the limit is unchanged.
        refused: the parameters that the server refuses.
    """

    model: Model
    facts: ServerFacts = field(default_factory=ServerFacts)
    failure: str = ""
    is_fatal: bool = False
    reply: str = ""
    usage: Usage = field(default_factory=Usage)
    counted: int = 0
    has_thoughts: bool = False
    room: int = 0
    refused: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float | None:
        """Completion tokens a second, with the time for the prompt; None if the server reports no usage."""
        tokens, seconds = self.usage.completion_tokens, self.usage.seconds
        return tokens / seconds if tokens and seconds else None

    def rows(self) -> list[tuple[str, str]]:
        """Return the result as (name, sentence) for a screen."""
        window = self.model.context_tokens or self.facts.context_tokens
        unit = "bytes" if isinstance(self.model.count, Utf8Bytes) else "tokens"
        named = self.facts.tokenizer
        tokenizer = self.model.count.name if unit == "tokens" else "unknown, so budgets count bytes"
        if unit == "bytes" and named:
            tokenizer += f"; the server names --tokenizer {named}"
        rows = [("address", ", ".join(self.model.addresses) or "the provider's own")]
        if self.failure:
            return [*rows, ("model", self._listed()), ("failure", self.failure)]
        speed = self.tokens_per_second
        return [
            *rows,
            ("reachable", f"yes, {self.usage.seconds:.2f} s for the reply {self.reply[:60]!r}"),
            ("model", self._listed()),
            ("window", f"{window:,} tokens" if window else "unknown; name it with --context-window"),
            ("tokenizer", tokenizer),
            ("usage", self._usage(unit)),
            ("thoughts", self._thoughts()),
            ("refused", ", ".join(self.refused) or "no parameter"),
            ("speed", f"{speed:,.1f} tokens a second" if speed else "unknown"),
        ]

    def findings(self) -> list[str]:
        """Return sentences about everything that a run must know."""
        found = []
        if self.facts.lists_model is False:
            found.append(f"The server does not list {self.model.name}; it lists {_some(self.facts.models or ())}.")
        if self.usage.unreported:
            found.append("The server reports no token usage, so costs are lower bounds.")
        if self.room:
            found.append(f"{self.model.name} writes thoughts first, so its replies get up to {self.room:,} tokens.")
        if self.refused:
            found.append(f"{self.model.name} refuses {', '.join(self.refused)}; the calls leave it out.")
        if isinstance(self.model.count, Utf8Bytes) and self.facts.tokenizer:
            found.append(f"The server names the tokenizer {self.facts.tokenizer}: --tokenizer {self.facts.tokenizer}.")
        return found

    def _listed(self) -> str:
        if self.facts.lists_model is None:
            return f"{self.model.name}; no list of models"
        listed = "listed" if self.facts.lists_model else f"not listed; the server has {_some(self.facts.models or ())}"
        return f"{self.model.name}, {listed}"

    def _usage(self, unit: str) -> str:
        if self.usage.unreported:
            return "not reported, so costs are lower bounds"
        thoughts = f", {self.usage.reasoning_tokens:,} of them thoughts" if self.usage.reasoning_tokens else ""
        return (
            f"{self.usage.prompt_tokens:,} prompt tokens ({self.counted:,} {unit} counted), "
            f"{self.usage.completion_tokens:,} completion tokens{thoughts}"
        )

    def _thoughts(self) -> str:
        if not self.has_thoughts:
            return "none"
        return f"yes; replies get up to {self.room or self.model.max_tokens:,} tokens"


def check_reader(model: Model, *, room: int = 0) -> ModelCheck:
    """Ask a model the question of a tiny memory, as an evaluation does.

    Args:
        model: the model that answers.
        room: tokens to give a reply if the model writes thoughts first; 0 leaves the limit.
    """
    read = Reader().read
    with dspy.context(adapter=PlainAdapter()):
        counted = count_prompt(read, model.count, memory=MEMORY, question=QUESTION)
    return _check(model, lambda: read(memory=MEMORY, question=QUESTION).answer, counted=counted, room=room)


def check_judge(model: Model, judge: Judge, *, room: int = 0) -> ModelCheck:
    """Let a judge grade one answer.

    Args:
        model: the judge's model.
        judge: the judge.
        room: as for `check_reader`.
    """

    def grade() -> str:
        verdict = judge(QUESTION, ANSWER, f"In {ANSWER}")
        if verdict.failure:
            raise _JudgeFailed(verdict.failure)
        return verdict.raw

    return _check(model, grade, counted=0, room=room)


def room_for_thoughts(context_tokens: int | None, *, needed: int = 0) -> int:
    """Return the tokens that a reply with thoughts may have.

    Args:
        context_tokens: the context window; None if unknown.
        needed: tokens of the longest prompt.
    """
    if context_tokens is None:
        return ROOM_OF_UNKNOWN_WINDOW
    return min(REASONING_TOKENS, max(0, context_tokens - needed))


def count_prompt(predict: dspy.Predict, count: TokenCounter, **inputs: Any) -> int:
    """Count the tokens of a prompt's texts, without the chat template."""
    messages = PlainAdapter().format(predict.signature, predict.demos, inputs)
    return sum(count(str(message["content"])) for message in messages)


class _JudgeFailed(Exception):
    """The judge's call failed; the message is its description."""


def _check(model: Model, ask: Callable[[], str], *, counted: int, room: int) -> ModelCheck:
    found = ModelCheck(model, counted=counted)
    try:
        found.facts = server_facts(model)
    except LM15Error as error:  # no call would arrive, so none is made
        found.failure, found.is_fatal = describe(error), True
        return found
    _call(found, ask)
    if found.has_thoughts and room >= SMALLEST_ROOM and room > model.lm.max_tokens:
        model.lm.give_room(room)
        found.room = room
        if found.failure:
            _call(found, ask)
    return found


def _call(found: ModelCheck, ask: Callable[[], str]) -> None:
    lm = found.model.lm
    started = time.perf_counter()
    found.failure = ""
    with observed_replies() as replies, metered() as usage:
        try:
            with dspy.context(lm=lm, adapter=PlainAdapter(), disable_history=True):
                found.reply = str(ask())
        except _JudgeFailed as error:
            found.failure = str(error)
        except Exception as error:  # noqa: BLE001 - every failure of a first call is its result
            found.failure, found.is_fatal = describe(error), isinstance(error, FATAL)
    usage.seconds = time.perf_counter() - started
    found.usage = usage
    found.has_thoughts = any(
        reply.has_thoughts or (reply.finish_reason == "length" and not reply.text) for reply in replies
    )
    found.refused = tuple(lm.refused) if isinstance(lm, BoundedRetryLM) else ()


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "") if names else "no model"
