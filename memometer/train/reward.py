"""The training reward: a pure function of a prompt's facts and the reply, without a judge.

    reply                                       reward
    unparseable                                 -1
    answered, answerable question               0.8 A + 0.2 E x decay
                                                - 0.1 per 128 tokens beyond the gold answer's length + 12
                                                + 0.05 per halving of the memory, if A > 0.5
    absent, answerable question                 0.05 if evidence is missing in the last round, otherwise 0
    absent, unanswerable question               1 (answered: 0)
    more, before the last round                 0.45 if evidence is missing (answerable question), otherwise 0

The reply is parsed as the evaluation parses it. A is the highest answer score over the gold answers
(memometer.benchmarks.reward), E the F1 of the cited lines against the evidence that is shown. `decay` falls from 1 to 0
in the first half of the training. A prompt that asks for no lines gives A in place of 0.8 A + 0.2 E. Length is never
rewarded, and only answers pay for it. Words beside the answer cost more than their length: A has precision, also for
lists, which LOCOMO's official score of category 1 has not.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import dspy
from dspy.utils.exceptions import AdapterParseError

from memometer import benchmarks
from memometer.benchmarks.metrics import abstains
from memometer.benchmarks.protocol import Question
from memometer.benchmarks.reward import (
    ANSWER_WEIGHT,
    CITATION_WEIGHT,
    RIGHT,
    RIGHTLY_ABSENT,
    Reply,
    answer_score,
    balanced_f1,
    citation_score,
)
from memometer.models.plain_adapter import PlainAdapter
from memometer.reader.signatures import ABSTENTION, Answer, CitedAnswer, MultiRound
from memometer.token_counters import counter_for

UNPARSEABLE = -1.0
MORE = 0.45
"""Reward of a needed request for more memory, until the mean reward of the next round is known."""
PER_HALVING = 0.05
"""Reward for each halving of the memory, if the answer is right."""
FREE_TOKENS, TOKENS_PER_PRICE, LENGTH_PRICE = 12, 128, 0.1

SIGNATURES: dict[str, type[dspy.Signature]] = {"answer": Answer, "read": CitedAnswer, "read_on": MultiRound}


@dataclass(frozen=True, slots=True)
class Case:
    """The facts of one prompt, as JSON can represent them.

    Attributes:
        category: Category of the question.
        keys: Accepted answers; none if the question is unanswerable.
        evidence: Ids of the turns that contain the answer.
        shown: Ids of the turns in the prompt, by line number.
        form: Key of SIGNATURES.
        offers_more: True before the last round, where the reply may ask for more memory.
        halvings: Number of times the memory was halved from the largest budget.
        benchmark: Name of the benchmark whose rules score an answer.
    """

    category: str
    keys: tuple[str, ...]
    evidence: tuple[str, ...]
    shown: tuple[str, ...]
    form: str
    offers_more: bool = False
    halvings: int = 0
    benchmark: str = benchmarks.DEFAULT

    @property
    def answerable(self) -> bool:
        """True if the conversation contains an answer."""
        return bool(self.keys)

    @property
    def complete(self) -> bool:
        """True if all evidence is shown."""
        return set(self.evidence) <= set(self.shown)

    def questions(self) -> list[Question]:
        """Return one question per accepted answer, for scoring."""
        kind = benchmarks.load(self.benchmark).question_type
        return [kind("", 0, "", self.category, key, self.evidence) for key in self.keys]

    def as_json(self) -> dict[str, Any]:
        """Return the case as JSON data."""
        return asdict(self)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Case:
        """Return the case in JSON data. Sequences may be lists or arrays, as file formats return them."""
        # Files of version 0.1 have numbers as categories and no benchmark.
        value = {"benchmark": benchmarks.DEFAULT, **value, "category": str(value["category"])}
        found = {field.name: value[field.name] for field in fields(cls)}
        sequences = {name: tuple(map(str, found[name])) for name in ("keys", "evidence", "shown")}
        return cls(**{**found, **sequences})


@dataclass(frozen=True, slots=True)
class Grade:
    """The grade of a reply. Only `reward` is trained on.

    Attributes:
        reward: The reward, at most 1 plus PER_HALVING for each halving.
        status: answered, absent, more or unparseable.
        answer: The parsed answer.
        f1: The benchmark's official score of the answer.
        balanced_f1: The same with precision also for lists, which the reward uses.
        strict: 1 if the answer equals a gold answer or its date, or is a correct abstention; otherwise 0.
        tokens: Length of the reply in o200k_base tokens.
        calls: Calls of the model; more than one in an episode of lookups.
        total_tokens: Tokens of all calls of an episode; 0 for a single prompt, where the reward does not use them.
    """

    reward: float
    status: str
    answer: str
    f1: float
    strict: float
    tokens: int
    balanced_f1: float = 0.0
    calls: int = 1
    total_tokens: int = 0


@cache
def _counter() -> Callable[[str], int]:
    return counter_for()


def grade(case: Case, completion: str, *, progress: float = 0.0, more: float = MORE) -> Grade:
    """Grade one completion.

    Args:
        case: The facts of its prompt.
        completion: The reply.
        progress: Share of the training that is done, 0 to 1.
        more: Reward of a needed request for more memory.

    Returns:
        The grade.
    """
    tokens = _counter()(completion)
    try:
        parsed = PlainAdapter().parse(SIGNATURES[case.form], completion)
    except AdapterParseError:
        return Grade(UNPARSEABLE, "unparseable", "", 0.0, 0.0, tokens)
    answer: str = parsed["answer"]
    if case.offers_more and parsed.get("status") == "more":
        needed = case.answerable and not case.complete
        return Grade(more if needed else 0.0, "more", answer, 0.0, 0.0, tokens)
    if parsed.get("status") == "absent" or abstains(answer):
        correct = float(not case.answerable)
        excused = RIGHTLY_ABSENT if case.answerable and not (case.complete or case.offers_more) else 0.0
        return Grade(correct or excused, "absent", ABSTENTION, correct, correct, tokens, correct)
    if not case.answerable:
        return Grade(0.0, "answered", answer, 0.0, 0.0, tokens)
    questions = case.questions()
    right = max(answer_score(question, answer) for question in questions)
    value = right
    if "lines" in parsed:
        cited = (case.shown[line - 1] for line in parsed["lines"] if 1 <= line <= len(case.shown))
        evidence = citation_score(questions[0], Reply(answer, case.shown, 0, cited=tuple(dict.fromkeys(cited))))
        value = ANSWER_WEIGHT * right + CITATION_WEIGHT * evidence * max(0.0, 1.0 - 2 * progress)
    excess = tokens - max(_counter()(key) for key in case.keys) - FREE_TOKENS
    value -= LENGTH_PRICE * max(0, excess) / TOKENS_PER_PRICE
    if right > RIGHT:
        value += PER_HALVING * case.halvings
    f1 = max(question.score(answer) for question in questions)
    balanced = max(balanced_f1(question, answer) for question in questions)
    return Grade(value, "answered", answer, f1, float(right == 1.0), tokens, balanced)


def reward(case: Case, completion: str) -> float:
    """Return the reward at the start of the training, for other training frameworks."""
    return grade(case, completion).reward


def gold_reply(case: Case) -> str:
    """Return the reply of an honest reader that knows the evidence.

    It answers with the gold answer and its lines if all evidence is shown. Otherwise it asks for more if it may, and
    else it abstains. The answer is the part of the gold answer that the benchmark scores.
    """
    reference = case.questions()[0].reference if case.answerable else ""
    if not case.answerable:
        status = "absent"
    else:
        status = "answered" if case.complete else "more" if case.offers_more else "absent"
    lines = [case.shown.index(id) + 1 for id in case.evidence if id in case.shown]
    values = {
        "lines": sorted(lines) if case.answerable else [],
        "status": status,
        "lookup": "",
        "answer": reference if status == "answered" else ABSTENTION,
    }
    signature = SIGNATURES[case.form]
    outputs = {name: values[name] for name in signature.output_fields}
    return PlainAdapter().format_assistant_message_content(signature, outputs)


# ---------------------------------------------------------------- as a trainer calls it

SAME_REWARD = 1e-9
"""Largest difference of rewards that count as equal."""
RECENT, MIN_RECENT = 256, 64
"""Number of a round's rewards in its mean, and the number needed before the mean replaces MORE."""


class GradeEpisode(Protocol):
    """Grades the replies of one episode (memometer.train.episodes.Episodes.grade)."""

    def __call__(self, question_id: str, replies: Sequence[str], *, progress: float = 0.0) -> Grade:
        """Return the grade of the last answer."""


class DroppableOrder(Protocol):
    """The order of the prompts (memometer.train.prompt_dataset.PromptOrder), as far as the reward uses it."""

    def drop(self, prompt: int) -> None:
        """Leave a prompt out of later passes."""

    def as_json(self) -> dict[str, Any]:
        """Return the state, for a checkpoint."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the state from a checkpoint."""


class RewardFunction:
    """The reward as TRL calls it, with the grades of the current step.

    A needed request for more memory earns the mean reward of the next round's prompts once enough of them were seen. A
    reader that gains nothing from more memory should not ask for it.

    Args:
        steps: Number of training steps.
        num_generations: Completions per prompt; they are consecutive in a batch.
        log_reply: Called with a sample reply of each batch.
        grade_episode: Grades the replies of an episode of lookups, by its question; None for single prompts.
    """

    __name__ = "reward"

    def __init__(
        self,
        *,
        steps: int,
        num_generations: int,
        log_reply: Callable[[dict[str, Any]], None],
        grade_episode: GradeEpisode | None = None,
    ) -> None:
        self.steps, self.num_generations, self.log_reply = steps, num_generations, log_reply
        self.grade_episode = grade_episode
        self.recent: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        """Recent rewards by number of halvings, which identifies the round."""
        self.grades: list[Grade] = []
        self.order: DroppableOrder | None = None
        """The order of the prompts, from which those without reward variance are dropped."""

    def more(self, case: Case) -> float:
        """Return the reward of a needed request for more memory."""
        seen = self.recent[case.halvings - 1]
        return max(0.0, fmean(seen)) if len(seen) >= MIN_RECENT else MORE

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        case: Sequence[str],
        trainer_state: Any,
        number: Sequence[int] = (),
        question: Sequence[str] = (),
        **_: Any,
    ) -> list[float]:
        """Return the rewards of a batch.

        `case` has the cases as JSON texts, `number` the prompts' positions, `question` the ids of their questions.
        """
        progress = min(1.0, trainer_state.global_step / self.steps)
        texts = [replies_of(completion) for completion in completions]
        if self.grade_episode:
            grade_episode = self.grade_episode
            grades = [
                grade_episode(id, replies, progress=progress) for id, replies in zip(question, texts, strict=True)
            ]
        else:
            cases = [Case.of_json(json.loads(text)) for text in case]
            more = [self.more(c) for c in cases]  # before this batch's rewards, so that its order does not matter
            grades = [
                grade(c, replies[0], progress=progress, more=m)
                for c, replies, m in zip(cases, texts, more, strict=True)
            ]
            for c, each in zip(cases, grades, strict=True):
                self.recent[c.halvings].append(each.reward)
        self.grades += grades
        sample = "\n\n".join(texts[0])
        self.log_reply({"step": trainer_state.global_step + 1, "reward": grades[0].reward, "reply": sample})
        rewards = [each.reward for each in grades]
        size = self.num_generations
        for at in range(0, len(number), size) if self.order else ():
            group = rewards[at : at + size]
            if max(group) - min(group) < SAME_REWARD and self.order:
                self.order.drop(number[at])
        return rewards

    def take_grades(self) -> list[Grade]:
        """Return the grades since the last call."""
        grades, self.grades = self.grades, []
        return grades

    def save(self, folder: Path) -> None:
        """Save the recent rewards to a checkpoint."""
        recent = {str(halvings): list(rewards) for halvings, rewards in self.recent.items()}
        state = {"recent": recent, "order": self.order.as_json() if self.order else None}
        (folder / "rewards.json").write_text(json.dumps(state), encoding="ascii")

    def restore(self, folder: Path) -> None:
        """Load the recent rewards from a checkpoint."""
        state = json.loads((folder / "rewards.json").read_text(encoding="ascii"))
        for halvings, rewards in state["recent"].items():
            self.recent[int(halvings)].extend(rewards)
        if self.order and state["order"]:
            self.order.restore(state["order"])


def replies_of(completion: Any) -> list[str]:
    """Return the model's replies in a completion of TRL, which is a text or a list of messages."""
    if isinstance(completion, str):
        return [completion]
    return [message["content"] for message in completion if message["role"] == "assistant"]
