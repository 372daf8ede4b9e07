"""The prompts that a search has tried, their scores, and the metric for DSPy's optimizers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import dspy

from memometer.benchmarks.protocol import Conversation, Question
from memometer.benchmarks.reward import Objective, Reply, feedback
from memometer.models.replay_cache import SearchStopped
from memometer.optimize.program import ProgramRun

if TYPE_CHECKING:
    from memometer.report.mlflow import NestedRun


@dataclass
class Candidate:
    """One prompt with its results at temperature 0.

    Attributes:
        digest: Identifies the prompt.
        instructions: Its instructions.
        demos: Its examples.
        scores: Score by question id.
        replies: Reply by question id.
        leaks: Held-out texts in the prompt. A prompt with leaks is never chosen, and its text is never written.
    """

    digest: str
    instructions: str
    demos: list[dict[str, Any]]
    scores: dict[str, float] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the prompt and its scores as JSON data."""
        text = {"instructions": self.instructions, "examples": self.demos}
        return {"digest": self.digest, **({"leaks": self.leaks} if self.leaks else text), "scores": self.scores}

    def mean(self, ids: Sequence[str]) -> float | None:
        """Return the mean score over the questions that have one; None if none has."""
        found = [self.scores[id] for id in ids if id in self.scores]
        return sum(found) / len(found) if found else None


class CandidateLog:
    """Scores runs of the program and records them by prompt. Safe to share between threads.

    Optimizers need a number for every example. A failed call therefore gets the score of the unoptimized prompt on the
    same question, which does not change a comparison with that prompt, and is counted in `imputed`.

    Attributes:
        tried: The candidates by digest.
        base: Scores of the unoptimized prompt by question id.
        imputed: Number of failed calls that got such a score.
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

    def start_from(self, before: Candidate) -> None:
        """Record the results of the unoptimized prompt, with which all candidates are compared."""
        self.base = dict(before.scores)
        self.tried[before.digest] = replace(before, scores=dict(before.scores), replies=dict(before.replies))

    def score(self, question_id: str, run: ProgramRun) -> float:
        """Return the score of a run and record it."""
        if run.failed:
            with self._lock:
                self.imputed += 1
            return self.base[question_id]
        value = self.objective(self.questions[question_id], run.reply)
        if not run.sampled:
            with self._lock:
                candidate = self.tried.setdefault(run.prompt, Candidate(run.prompt, run.instructions, run.demos))
                candidate.scores[question_id], candidate.replies[question_id] = value, run.reply
        return value

    def nested_runs(self, prefix: str = "") -> list[NestedRun]:
        """Describe each candidate for MLflow; one without any score has no objective."""
        from memometer.report.mlflow import NestedRun

        found = []
        for number, candidate in enumerate(self.tried.values()):
            lift, n = self.lift(candidate)
            metrics = {"objective": candidate.mean(list(candidate.scores)), "lift": lift, "n": n}
            parameters = {"prompt": candidate.digest, "examples": len(candidate.demos)}
            artifact = ("prompt.json", candidate.as_json())
            found.append(NestedRun(f"{prefix}candidate {number}", parameters, metrics, artifact))
        return found

    def lift(self, candidate: Candidate) -> tuple[float, int]:
        """Return the mean difference to the unoptimized prompt, and the number of questions that both have."""
        both = [id for id in candidate.scores if id in self.base]
        return (sum(candidate.scores[id] - self.base[id] for id in both) / len(both), len(both)) if both else (0.0, 0)

    def best_lift(self, min_questions: int) -> tuple[float, int]:
        """Return the highest lift of a prompt with at least `min_questions` scores."""
        with self._lock:
            lifts = [self.lift(candidate) for candidate in self.tried.values()]
        return max(((value, n) for value, n in lifts if n >= min_questions), default=(0.0, 0))

    # ------------------------------------------------------------ metrics for the optimizers

    def _run_of(self, example: dspy.Example, prediction: dspy.Prediction | None) -> ProgramRun:
        if prediction is None or "run" not in prediction:
            raise SearchStopped(f"the program failed on {example.question_id}", outcome="failed")
        run: ProgramRun = prediction.run
        return run

    def metric(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """Metric for MIPROv2 and the bootstrap. With a trace, the score decides if the run becomes an example."""
        run = self._run_of(example, prediction)
        if trace is not None and run.failed:
            return 0.0
        return self.score(example.question_id, run)

    def metric_with_feedback(self, example: dspy.Example, prediction: Any, *_: Any) -> dspy.Prediction:
        """Metric for SIMBA and GEPA, with sentences for the model that writes prompts."""
        run = self._run_of(example, prediction)
        question = self.questions[example.question_id]
        if run.failed:
            text = "The call failed."
        else:
            text = feedback(question, run.reply, self.conversations[question.conversation])
        return dspy.Prediction(score=self.score(example.question_id, run), feedback=text)
