"""Every prompt that a search has tried, what it scored, and the metric that DSPy's optimisers are given."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from memometer.benchmarks.protocol import Conversation, Question
from memometer.benchmarks.reward import Objective, Reply, feedback
from memometer.models.replay_cache import SearchStopped
from memometer.optimize.program import Told


@dataclass
class Candidate:
    """One prompt and what it came to at temperature 0, by question id: its score, and its reply. `leaks` names what it
    holds of the sealed conversations, of which nothing may be chosen, or written down."""

    digest: str
    instructions: str
    demos: list[dict[str, Any]]
    scores: dict[str, float] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The prompt with its scores, as JSON can hold them."""
        text = {"instructions": self.instructions, "examples": self.demos}
        return {"digest": self.digest, **({"leaks": self.leaks} if self.leaks else text), "scores": self.scores}

    def mean(self, ids: Sequence[str]) -> float | None:
        """Over those of the questions that it was scored on; None for none."""
        found = [self.scores[id] for id in ids if id in self.scores]
        return sum(found) / len(found) if found else None


class Candidates:
    """The metric, and its memory: safe to share between threads.

    A failed call is counted and has the score that the unoptimised prompt has on the same question: in a mean over
    questions it moves no comparison with that prompt. Optimisers take one number an example and know no missing one.
    """

    def __init__(
        self, objective: Objective, questions: Sequence[Question], conversations: Sequence[Conversation]
    ) -> None:
        self.objective = objective
        self.questions = {question.id: question for question in questions}
        self.conversations = {conversation.id: conversation for conversation in conversations}
        self.tried: dict[str, Candidate] = {}
        self.base: Mapping[str, float] = {}
        self.imputed = 0
        self._lock = threading.Lock()

    def score(self, question_id: str, told: Told) -> float:
        """What a run of the program is worth, written down."""
        if told.failed:
            with self._lock:
                self.imputed += 1
            return self.base[question_id]
        value = self.objective(self.questions[question_id], told.reply)
        if not told.sampled:
            with self._lock:
                new = Candidate(told.prompt, told.instructions, told.demos)
                candidate = self.tried.setdefault(new.digest, new)
                candidate.scores[question_id], candidate.replies[question_id] = value, told.reply
        return value

    def lift(self, candidate: Candidate) -> tuple[float, int]:
        """(how much better it is than the unoptimised prompt on the questions that both have, their number)."""
        both = [id for id in candidate.scores if id in self.base]
        return (sum(candidate.scores[id] - self.base[id] for id in both) / len(both), len(both)) if both else (0.0, 0)

    def best(self, least: int) -> tuple[float, int]:
        """The best lift of a prompt with at least so many questions."""
        with self._lock:
            lifts = [self.lift(candidate) for candidate in self.tried.values()]
        return max(((value, n) for value, n in lifts if n >= least), default=(0.0, 0))

    # ------------------------------------------------------------ as the optimisers call it

    def _told(self, example: dspy.Example, prediction: dspy.Prediction | None) -> Told:
        if prediction is None or "told" not in prediction:
            raise SearchStopped(f"the program failed on {example.question_id}", outcome="failed")
        return prediction.told

    def plain(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """MIPROv2 and the bootstrap. With a trace it is asked whether the run may become an example."""
        told = self._told(example, prediction)
        if trace is not None and told.failed:
            return 0.0
        return self.score(example.question_id, told)

    def explained(self, example: dspy.Example, prediction: Any, *trace_and_predictor: Any) -> dspy.Prediction:
        """SIMBA and GEPA: with sentences for the model that rewrites the prompt."""
        told = self._told(example, prediction)
        question = self.questions[example.question_id]
        words = (
            "The call failed."
            if told.failed
            else feedback(question, told.reply, self.conversations[question.conversation])
        )
        return dspy.Prediction(score=self.score(example.question_id, told), feedback=words)
