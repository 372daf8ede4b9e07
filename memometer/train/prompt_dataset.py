"""Reading prompts for training, with the facts that their reward needs. They are independent of the trainer.

Each question gives one prompt per budget. A prompt is exactly what the evaluation shows to a reader that always asks
for more: the same messages, line numbers and offers. Only conversations that the caller passes are used.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy

from memometer import benchmarks
from memometer.benchmarks.protocol import Conversation, Question
from memometer.benchmarks.sampling import sample
from memometer.budget import show
from memometer.harness.contamination import HeldOut, Leak
from memometer.memory import State
from memometer.models.plain_adapter import PlainAdapter
from memometer.reader.multi_round import inputs_of
from memometer.reader.reader import Reader
from memometer.reader.signatures import ABSTENTION
from memometer.report.multi_round_analysis import contexts_of
from memometer.systems.adaptive import AdaptiveMemory
from memometer.token_counters import TokenCounter
from memometer.train.episodes import Episodes
from memometer.train.reward import Case

Message = dict[str, str]


@dataclass(frozen=True)
class ReadingPrompt:
    """One prompt. `id` is the question's id with the budget in tokens, such as `conv-26#3@512`."""

    id: str
    conversation: str
    question_id: str
    budget_tokens: int
    messages: tuple[Message, ...]
    case: Case

    @property
    def sources(self) -> frozenset[str]:
        """The question and its evidence turns. Prompts of one batch should not share any of them."""
        return frozenset({self.question_id, *(f"{self.conversation} {id}" for id in self.case.evidence)})

    def as_json(self) -> dict[str, Any]:
        """Return the prompt as JSON data."""
        return asdict(self)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> ReadingPrompt:
        """Return the prompt in JSON data."""
        return cls(**{**value, "messages": tuple(value["messages"]), "case": Case.of_json(value["case"])})


def write_prompts(prompts: Iterable[ReadingPrompt], path: Path) -> None:
    """Write prompts as JSON Lines."""
    path.write_text("".join(json.dumps(prompt.as_json()) + "\n" for prompt in prompts), encoding="ascii")


def read_prompts(path: Path) -> tuple[ReadingPrompt, ...]:
    """Read prompts from JSON Lines."""
    return tuple(ReadingPrompt.of_json(json.loads(line)) for line in path.read_text(encoding="ascii").splitlines())


# ---------------------------------------------------------------- questions


def is_labelled(question: Question) -> bool:
    """Return true if all evidence of a question is known. Seven questions of LOCOMO lack a usable label."""
    return bool(question.evidence) and not question.unresolved


def choose_questions(
    conversations: Sequence[Conversation], n: int, *, absent_share: float, seed: int
) -> tuple[tuple[Question, ...], int]:
    """Sample training questions.

    Unanswerable questions are preferred if a chosen answerable question has the same evidence, so that they differ in
    the speaker only.

    Args:
        conversations: The conversations to sample from.
        n: Number of questions at most.
        absent_share: Share of unanswerable questions at most.
        seed: Seed of the sample.

    Returns:
        The questions in the order of the data, and the number of questions without usable labels.
    """
    everything = [question for conversation in conversations for question in conversation.questions]
    pool = [question for question in everything if is_labelled(question)]
    answerable = [question for question in pool if question.answerable]
    unanswerable = [question for question in pool if not question.answerable]
    random.Random(f"{seed}/traps").shuffle(unanswerable)
    if absent_share < 1:  # with m answerable and k unanswerable questions, the share is k / (m + k)
        limit = int(len(answerable) * absent_share / (1 - absent_share))
        most = min(int(n * absent_share), limit, len(unanswerable))
    else:
        answerable, most = [], min(n, len(unanswerable))
    chosen = sample(answerable, n - most, seed=seed)
    evidence = {(question.conversation, frozenset(question.evidence)) for question in chosen}
    unanswerable.sort(key=lambda q: (q.conversation, frozenset(q.evidence)) not in evidence)
    ids = {question.id for question in (*chosen, *unanswerable[:most])}
    return tuple(question for question in pool if question.id in ids), len(everything) - len(pool)


# ---------------------------------------------------------------- prompts


class _Recorder(dspy.Predict):
    """A predictor that records its inputs in `calls` and always asks for more memory."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        self.calls.append(inputs)
        return dspy.Prediction(lines=[], status="more", lookup="", answer=ABSTENTION)

    @classmethod
    def like(cls, read: dspy.Predict) -> _Recorder:
        recorder = cls(read.signature, max_tokens=1)  # the reader needs some reply limit; it has no effect here
        recorder.demos = read.demos
        recorder.calls = []
        return recorder


def signature_name(rounds: int) -> str:
    """Return the key of memometer.train.reward.SIGNATURES for a number of rounds."""
    return "read_on" if rounds > 1 else "read" if rounds else "answer"


def reading_prompts(
    conversations: Sequence[Conversation],
    questions: Sequence[Question],
    *,
    budgets: Sequence[int],
    rounds: int,
    count: TokenCounter,
    memory: str = "adaptive",
    examples: bool = False,
    benchmark: str = benchmarks.DEFAULT,
) -> Iterator[ReadingPrompt]:
    """Yield prompts by question, then by budget.

    Args:
        conversations: The conversations.
        questions: Questions about them.
        budgets: Tokens of memory, ascending. With several rounds, one per round, each twice the one before.
        rounds: 0 asks for the bare answer, 1 for lines and status; more offer to show more before the last round.
        count: Counts the tokens of the memory.
        memory: `adaptive`, or `oracle` for the evidence only.
        examples: True keeps the worked examples in the prompt.
        benchmark: Name of the benchmark whose rules score an answer.

    Raises:
        ValueError: The budgets do not fit the rounds.
    """
    if rounds > 1 and list(budgets) != contexts_of(budgets[-1], rounds):
        wanted = ",".join(map(str, contexts_of(budgets[-1], rounds)))
        raise ValueError(f"each round doubles the memory: with {rounds} rounds use --budgets {wanted}")
    for conversation in conversations:
        system = AdaptiveMemory(count=count)
        reader = Reader(rounds=rounds)
        recorder = reader.read = _Recorder.like(reader.read)
        if not examples:
            recorder.demos = []
        state = system.new()
        for session in conversation.sessions:
            system.observe(state, session.turns)
        for question in questions:
            if question.conversation != conversation.id:
                continue
            recorder.calls.clear()
            if memory == "oracle":
                shown = [_show_evidence(recorder, reader, system, state, question)] * len(budgets)
            else:
                shown = _show_memory(reader, system, state, question, budgets)
            # If a budget already showed all turns, there are no further calls.
            for level, (inputs, turn_ids) in enumerate(zip(recorder.calls, shown, strict=False)):
                case = Case(
                    category=question.category,
                    keys=() if question.gold is None else (question.gold,),
                    evidence=question.evidence,
                    shown=turn_ids,
                    form=signature_name(rounds),
                    offers_more=rounds > 1 and level + 1 < len(budgets),
                    halvings=(budgets[-1] // budgets[level]).bit_length() - 1,
                    benchmark=benchmark,
                )
                yield ReadingPrompt(
                    id=f"{question.id}@{budgets[level]}",
                    conversation=conversation.id,
                    question_id=question.id,
                    budget_tokens=budgets[level],
                    messages=_messages(recorder, inputs),
                    case=case,
                )


def first_prompts(episodes: Episodes, questions: Iterable[Question]) -> Iterator[ReadingPrompt]:
    """Yield the first prompt of each question's episode.

    Raises:
        QuestionBudgetTooSmall: The question budget does not hold a prompt.
    """
    for question in questions:
        reading = episodes.open(question.id)
        yield ReadingPrompt(
            id=f"{question.id}@{episodes.budget_tokens}",
            conversation=question.conversation,
            question_id=question.id,
            budget_tokens=episodes.budget_tokens,
            messages=tuple(episodes.messages(reading)),
            case=episodes.case(question.id, reading),
        )


def _messages(read: dspy.Predict, inputs: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages that a predictor sends to a model."""
    values = dict(inputs)
    demos = values.pop("demos", read.demos)  # with the calls before, in a later round
    formatted = PlainAdapter().format(read.signature, [dict(demo) for demo in demos], values)
    return tuple({"role": str(m["role"]), "content": str(m["content"])} for m in formatted)


def _show_memory(
    reader: Reader, memory: AdaptiveMemory, state: State, question: Question, budgets: Sequence[int]
) -> list[tuple[str, ...]]:
    """Make the recorder's calls for all budgets; return the turns that each shows, by line number."""

    def ask(budget: int) -> dspy.Prediction:
        return reader(memory=memory, state=state, question=question.text, budget_tokens=budget)

    if reader.rounds > 1:
        return [r.turn_ids for r in ask(budgets[-1]).rounds]
    predictions = [ask(budget) for budget in budgets]
    return [p.rounds[-1].turn_ids if reader.rounds else p.recall.turn_ids for p in predictions]


def _show_evidence(
    recorder: _Recorder, reader: Reader, memory: AdaptiveMemory, state: State, question: Question
) -> tuple[str, ...]:
    positions = [n for n, turn in enumerate(state.turns) if turn.id in question.evidence]
    recall = show(state, positions, memory.count, first_number=1 if reader.rounds else None)
    recorder.calls.append(inputs_of(recorder, recall.text, question.text))
    return recall.turn_ids


def find_leaks(prompts: Iterable[ReadingPrompt], held_out: HeldOut) -> list[Leak]:
    """Return the held-out texts in the prompts or in their gold answers."""
    return [
        leak
        for prompt in prompts
        for leak in held_out.find(
            prompt.id, "\n".join([*(message["content"] for message in prompt.messages), *prompt.case.keys])
        )
    ]


# ---------------------------------------------------------------- order


class PromptOrder:
    """The order of the training prompts, made as the training needs it.

    All prompts are used in each pass, shuffled. Prompts of one step share no question and no evidence turn, unless too
    few others are left. A prompt whose completions all earned the same teaches nothing, and later passes leave it out.
    The order depends on the arguments and on the dropped prompts only, so a resumed training continues with the same
    data.

    Args:
        prompts: The prompts.
        per_step: Prompts per training step.
        seed: Seed of the shuffles.

    Raises:
        ValueError: There are no prompts.
    """

    def __init__(self, prompts: Sequence[ReadingPrompt], *, per_step: int, seed: int) -> None:
        if not prompts:
            raise ValueError("there are no prompts to order")
        self.prompts, self.per_step, self.seed = prompts, per_step, seed
        self.order: list[int] = []
        self.dropped: set[int] = set()
        self._queue: list[int] = []
        self._passes = 0

    def at(self, position: int) -> int:
        """Return the prompt at a position of the order."""
        while len(self.order) <= position:
            self._add_step()
        return self.order[position]

    def drop(self, prompt: int) -> None:
        """Leave a prompt out of later passes."""
        self.dropped.add(prompt)
        if len(self.prompts) - len(self.dropped) < self.per_step:
            self.dropped.clear()

    def _add_step(self) -> None:
        step: list[int] = []
        used: set[str] = set()
        queue = self._queue
        while len(step) < self.per_step:
            found = next((n for n in queue if n not in step and not self.prompts[n].sources & used), None)
            if found is None and len(queue) < len(self.prompts) + self.per_step:
                again = [n for n in range(len(self.prompts)) if n not in self.dropped]
                random.Random(f"{self.seed}/order/{self._passes}").shuffle(again)
                self._passes += 1
                queue += again
                continue
            found = queue[0] if found is None else found
            queue.remove(found)
            step.append(found)
            used |= self.prompts[found].sources
        self.order += step

    def as_json(self) -> dict[str, Any]:
        """Return the state, for a checkpoint."""
        return {
            "order": self.order,
            "queue": self._queue,
            "passes": self._passes,
            "dropped": sorted(self.dropped),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the state from a checkpoint."""
        self.order, self._queue, self._passes = list(state["order"]), list(state["queue"]), int(state["passes"])
        self.dropped = set(state["dropped"])


def schedule(prompts: Sequence[ReadingPrompt], *, per_step: int, steps: int, seed: int) -> list[int]:
    """Return the order of the prompts for a number of steps, without dropping any.

    Returns:
        Positions in `prompts`, shape (steps x per_step,).

    Raises:
        ValueError: There are no prompts.
    """
    order = PromptOrder(prompts, per_step=per_step, seed=seed)
    order.at(per_step * steps - 1)
    return order.order
