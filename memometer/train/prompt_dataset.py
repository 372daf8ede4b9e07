"""The one exporter: static reading prompts with the facts to reward replies to them, fit for any trainer.

Of each question one prompt a budget, and each prompt is what a `Reader` of the adaptive memory sends:
the same messages, line numbers and offers. Only conversations that the caller names are read.
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
from memometer.retrieval.ranker import Ranker
from memometer.systems.adaptive import AdaptiveMemory
from memometer.token_counters import TokenCounter
from memometer.train.reward import Case

Message = dict[str, str]


@dataclass(frozen=True)
class ReadingPrompt:
    """One prompt. `id` is the question's with the budget in tokens, such as `conv-26#3@512`."""

    id: str
    conversation: str
    question_id: str
    budget_tokens: int
    messages: tuple[Message, ...]
    case: Case

    @property
    def places(self) -> frozenset[str]:
        """What no other prompt of a batch may share: its question, and its evidence turns."""
        return frozenset({self.question_id, *(f"{self.conversation} {id}" for id in self.case.evidence)})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> ReadingPrompt:
        return cls(**{**value, "messages": tuple(value["messages"]), "case": Case.of_json(value["case"])})


def write(prompts: Iterable[ReadingPrompt], path: Path) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(prompt.as_json()) + "\n" for prompt in prompts), encoding="ascii")


def read(path: Path) -> tuple[ReadingPrompt, ...]:
    return tuple(ReadingPrompt.of_json(json.loads(line)) for line in path.read_text(encoding="ascii").splitlines())


# ---------------------------------------------------------------- which questions


def labelled(question: Question) -> bool:
    """Whether it is known what a prompt must show to answer it: four questions have no evidence, three some that
    names no turn."""
    return bool(question.evidence) and not question.unresolved


def chosen(
    conversations: Sequence[Conversation], n: int, *, absent_share: float, seed: int
) -> tuple[tuple[Question, ...], int]:
    """(at most `n` questions, how many were left out for want of labels). Of unanswerable questions at most
    `absent_share`, first those that ask of the one speaker what an answerable question among them asks of the other
    (the same evidence)."""
    everything = [question for conversation in conversations for question in conversation.questions]
    pool = [question for question in everything if labelled(question)]
    answerable = [question for question in pool if question.answerable]
    traps = [question for question in pool if not question.answerable]
    random.Random(f"{seed}/traps").shuffle(traps)
    # At most the share of all: of n - t answerable ones, t traps are t / n.
    if absent_share < 1:
        most = min(int(n * absent_share), int(len(answerable) * absent_share / (1 - absent_share)), len(traps))
    else:
        answerable, most = [], min(n, len(traps))
    asked = sample(answerable, n - most, seed=seed)
    twins = {(question.conversation, frozenset(question.evidence)) for question in asked}
    traps.sort(key=lambda q: (q.conversation, frozenset(q.evidence)) not in twins)
    ids = {question.id for question in (*asked, *traps[:most])}
    return tuple(question for question in pool if question.id in ids), len(everything) - len(pool)


# ---------------------------------------------------------------- prompts


class _Asking(dspy.Predict):
    """A reader that always wants more, and keeps what it was asked."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        self.asked.append(inputs)
        return dspy.Prediction(lines=[], status="more", lookup="", answer=ABSTENTION)

    @classmethod
    def like(cls, read: dspy.Predict) -> _Asking:
        asking = cls(read.signature, max_tokens=1)  # reading wants a bound on replies, and no question has a budget
        asking.demos = read.demos
        asking.asked = []
        return asking


def form_of(rounds: int) -> str:
    """The name of the signature that is read with."""
    return "read_on" if rounds > 1 else "read" if rounds else "answer"


def reading_prompts(
    conversations: Sequence[Conversation],
    questions: Sequence[Question],
    *,
    budgets: Sequence[int],
    rounds: int,
    count: TokenCounter,
    memory: str = "adaptive",
    rankers: Mapping[str, Ranker] | None = None,
    examples: bool = False,
    instructions: str | None = None,
    benchmark: str = benchmarks.DEFAULT,
) -> Iterator[ReadingPrompt]:
    """Prompts by question, then by budget.

    Args:
        budgets: of memory, in tokens, rising; with several rounds each twice the one before, a round each.
        rounds: 0 asks for the bare answer, 1 for lines and status, more offers to show more before the last.
        count: counts the memory's tokens.
        memory: `adaptive`, or `oracle` for the evidence alone.
        rankers: by conversation, weights that have not seen its labels; where there are none, those that come with
            the project.
        examples: whether the prompt's worked examples stay.
        instructions: in place of the prompt's own.
        benchmark: The name of the benchmark that the questions belong to.

    Raises ValueError for budgets that the rounds cannot have.
    """
    if rounds > 1 and list(budgets) != contexts_of(budgets[-1], rounds):
        wanted = ",".join(map(str, contexts_of(budgets[-1], rounds)))
        raise ValueError(f"each round doubles the memory: with {rounds} rounds use --budgets {wanted}")
    form = form_of(rounds)
    for conversation in conversations:
        adaptive = AdaptiveMemory(count=count, ranker=(rankers or {}).get(conversation.id))
        reader = Reader(rounds=rounds)
        asking = reader.read = _Asking.like(reader.read)
        if instructions:
            asking.signature = asking.signature.with_instructions(instructions)
        if not examples:
            asking.demos = []
        state = adaptive.new()
        for session in conversation.sessions:
            adaptive.observe(state, session.turns)
        for question in questions:
            if question.conversation != conversation.id:
                continue
            asking.asked.clear()
            shown = (
                [_evidence(asking, adaptive, reader, state, question)] * len(budgets)
                if memory == "oracle"
                else _pages(reader, adaptive, state, question, budgets)
            )
            # A smaller page than its budget can hold has been shown already: there is no larger one.
            for level, (inputs, turn_ids) in enumerate(zip(asking.asked, shown, strict=False)):
                case = Case(
                    category=question.category,
                    benchmark=benchmark,
                    keys=() if question.gold is None else (question.gold,),
                    evidence=question.evidence,
                    shown=turn_ids,
                    form=form,
                    offers_more=rounds > 1 and level + 1 < len(budgets),
                    halvings=(budgets[-1] // budgets[level]).bit_length() - 1,
                )
                yield ReadingPrompt(
                    id=f"{question.id}@{budgets[level]}",
                    conversation=conversation.id,
                    question_id=question.id,
                    budget_tokens=budgets[level],
                    messages=messages(asking, inputs),
                    case=case,
                )


def messages(read: dspy.Predict, inputs: Mapping[str, Any]) -> tuple[Message, ...]:
    """A predictor's prompt as it goes to a model."""
    formatted = PlainAdapter().format(read.signature, [dict(demo) for demo in read.demos], dict(inputs))
    return tuple({"role": str(m["role"]), "content": str(m["content"])} for m in formatted)


def _pages(
    reader: Reader, memory: AdaptiveMemory, state: Any, question: Question, budgets: Sequence[int]
) -> list[tuple[str, ...]]:
    """What each prompt shows, by line number; the prompts are in the reader's `asked`."""
    if reader.rounds > 1:
        prediction = reader(memory=memory, state=state, question=question.text, budget_tokens=budgets[-1])
        return [r.turn_ids for r in prediction.rounds]
    found = []
    for budget in budgets:
        prediction = reader(memory=memory, state=state, question=question.text, budget_tokens=budget)
        found.append(prediction.rounds[-1].turn_ids if reader.rounds else prediction.recall.turn_ids)
    return found


def _evidence(
    asking: _Asking, memory: AdaptiveMemory, reader: Reader, state: State, question: Question
) -> tuple[str, ...]:
    positions = [n for n, turn in enumerate(state.turns) if turn.id in question.evidence]
    recall = show(state, positions, memory.count, first_number=1 if reader.rounds else None)
    asking.asked.append(inputs_of(asking, recall.text, question.text))
    return recall.turn_ids


def leaks_in(prompts: Iterable[ReadingPrompt], held_out: HeldOut) -> list[Leak]:
    """What is held out and stands in a prompt, or in what rewards it."""
    return [
        leak
        for prompt in prompts
        for leak in held_out.find(
            prompt.id, "\n".join([*(message["content"] for message in prompt.messages), *prompt.case.keys])
        )
    ]


# ---------------------------------------------------------------- their order


def schedule(prompts: Sequence[ReadingPrompt], *, per_step: int, steps: int, seed: int) -> list[int]:
    """Positions in `prompts` for each step in turn, shape (steps x per_step,): pass after pass over all, shuffled by
    the seed, no two prompts of a step with the same question or evidence turn, unless there are too few others.

    It depends on its arguments only, so that a resumed training goes on with the same data.
    """
    if not prompts:
        raise ValueError("there is no prompt to order")
    random_order = random.Random(f"{seed}/order")
    queue: list[int] = []
    order: list[int] = []
    for _ in range(steps):
        step: list[int] = []
        taken: set[str] = set()
        while len(step) < per_step:
            found = next((n for n in queue if n not in step and not prompts[n].places & taken), None)
            if found is None and len(queue) < len(prompts) + per_step:
                again = list(range(len(prompts)))
                random_order.shuffle(again)
                queue += again
                continue
            found = queue[0] if found is None else found
            queue.remove(found)
            step.append(found)
            taken |= prompts[found].places
        order += step
    return order


def duplicates(prompts: Sequence[ReadingPrompt], order: Sequence[int], *, per_step: int) -> int:
    """Steps in which two prompts share a question or an evidence turn."""
    steps = [order[at : at + per_step] for at in range(0, len(order), per_step)]
    return sum(
        sum(len(prompts[n].places) for n in step) != len(frozenset().union(*(prompts[n].places for n in step)))
        for step in steps
    )
