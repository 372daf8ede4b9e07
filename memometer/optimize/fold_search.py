"""One search of a cross-fit: the optimizer, the selection of a candidate, and its confirmation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import dspy

from memometer.benchmarks.protocol import Question
from memometer.harness import contamination
from memometer.models.errors import describe, is_of_a_model
from memometer.models.replay_cache import SearchStopped, StoredLM
from memometer.optimize.candidates import Candidate, CandidateLog
from memometer.optimize.folds import Fold
from memometer.optimize.optimizers import OPTIMIZERS, OptimizerInput, ProposalAdapter
from memometer.optimize.plan import SearchPlan
from memometer.optimize.program import ProgramRun, ReadingProgram, example_of, excerpt, prompt_digest


@dataclass(frozen=True)
class FoldResult:
    """The result of one search.

    Attributes:
        fold: The search's conversations and questions.
        program: The selected program; it may be the unoptimized one.
        after: Results of the selected prompt.
        selection_gain: Mean difference to the unoptimized prompt on the selection questions, by which the program was
            selected; 0.0 if the unoptimized prompt was selected.
        num_selectable: Number of candidates in the selection.
        candidates: All prompts that were tried.
    """

    fold: Fold
    program: ReadingProgram
    after: Candidate
    selection_gain: float
    num_selectable: int
    candidates: CandidateLog


class FoldSearch:
    """One search.

    Args:
        plan: The plan of all searches.
        fold: The conversations and questions of this search.
        before: Results of the unoptimized prompt on all questions.
        candidates: The log that the optimizer's metric writes to.
        lms: Role -> model.
        adapter: The adapter that reads proposals.
        log: File for the optimizer's output.
    """

    def __init__(
        self,
        plan: SearchPlan,
        fold: Fold,
        *,
        before: Candidate,
        candidates: CandidateLog,
        lms: dict[str, StoredLM],
        adapter: ProposalAdapter,
        log: Path,
    ) -> None:
        self.plan, self.fold, self.before, self.candidates = plan, fold, before, candidates
        self.lms, self.adapter, self.log = lms, adapter, log

    def run(self, unoptimised: ReadingProgram) -> FoldResult:
        """Search, select a candidate and let it answer the confirmation questions.

        Raises:
            SearchStopped: No further call is allowed, or every call of the unoptimized prompt failed.
        """
        options, scores = self.plan.options, self.before.scores
        train, selection, confirmation = (
            [question for question in questions if question.id in scores]
            for questions in (self.fold.train, self.fold.selection, self.fold.confirmation)
        )
        if not (train and selection and confirmation):
            raise SearchStopped("every call of the unoptimized prompt failed", outcome="failed")
        given = OptimizerInput(
            effort=options.auto,
            program=unoptimised.deepcopy(),
            train=[example_of(question) for question in train],
            selection=[example_of(question) for question in selection],
            candidates=self.candidates,
            reader=self.lms["reader"],
            prompt_model=self.lms["prompt model"],
            max_demos=options.demo_limit,
            num_threads=self.plan.num_threads,
            seed=options.seed,
            proposal_adapter=self.adapter,
        )
        with _output_to(self.log):
            programs = self._optimize(given)
        for candidate in list(self.candidates.tried.values()):
            candidate.leaks = self._leaks([candidate.instructions, candidate.demos])
        best, gain, selectable = self._select(unoptimised, programs, selection)
        after = self.score(best, confirmation) if best is not unoptimised else self.before
        return FoldResult(self.fold, best, after, gain, selectable, self.candidates)

    def _optimize(self, given: OptimizerInput) -> list[dspy.Module]:
        """Run the optimizer. DSPy treats SearchStopped and Ctrl-C as errors of the program: some optimizers raise them
        in another form, and some score them as zero. So the reason to stop is checked here."""
        store = given.reader.store
        try:
            programs = OPTIMIZERS[self.plan.options.optimizer](given)
        except Exception as error:  # DSPy wraps the reason why a call was refused; all other errors are raised again
            if reason := store.may_call():
                raise SearchStopped(reason) from error
            if is_of_a_model(error):  # the prompt model's error, because the metric handles the reader's
                raise SearchStopped(f"no prompts could be written: {describe(error)}", outcome="failed") from error
            raise
        if reason := store.may_call():
            raise SearchStopped(reason)
        return programs

    def _select(
        self, unoptimised: ReadingProgram, programs: Sequence[dspy.Module], questions: Sequence[Question]
    ) -> tuple[ReadingProgram, float, int]:
        """The best program on the selection questions, its gain there, and the number of candidates."""
        selectable: dict[str, ReadingProgram] = {}
        for program in programs:
            assert isinstance(program, ReadingProgram)
            program.read.demos = [excerpt(demo) for demo in program.read.demos]
            prompt = prompt_digest(program.read)
            if prompt != self.before.digest and not self._leaks(program.read.dump_state()):
                selectable.setdefault(prompt, program)
        ids = [question.id for question in questions]
        best, highest = unoptimised, 0.0
        for program in selectable.values():
            scored = self.score(program, questions)
            # A failed call says nothing about a prompt, so only questions with both scores count.
            both = [id for id in ids if id in scored.scores]
            gain = (scored.mean(both) or 0.0) - (self.before.mean(both) or 0.0) if both else 0.0
            if gain > highest:
                best, highest = program, gain
        return best, highest, len(selectable)

    def score(self, program: ReadingProgram, questions: Sequence[Question]) -> Candidate:
        """Score a program's prompt at temperature 0. A question whose call failed has no score."""
        return score(program, questions, self.candidates, num_threads=self.plan.num_threads)

    @cached_property
    def _held_out(self) -> contamination.HeldOut:
        # The conversations that confirm this search are held out from it, too.
        learned = {c.id for c in self.fold.conversations}
        confirming = [c for c in self.fold.confirming if c.id not in learned]
        return contamination.HeldOut((*self.plan.held_out, *confirming), others=self.fold.conversations)

    def _leaks(self, prompt: Any) -> list[str]:
        """Held-out texts in a prompt, by kind and id, without their words."""
        return leaks_in(prompt, self._held_out)


def score(
    program: ReadingProgram, questions: Sequence[Question], candidates: CandidateLog, *, num_threads: int
) -> Candidate:
    """Score a program's prompt at temperature 0.

    Returns:
        The results of the prompt on all questions so far. A question whose call failed has no score.
    """

    def run(question: Question) -> ProgramRun:
        result: ProgramRun = program(**example_of(question).inputs()).run
        if not result.failed:
            candidates.score(question.id, result)
        return result

    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(copy_context().run, run, question) for question in questions]
        try:
            runs = [future.result() for future in futures]
        except BaseException:  # raised again: no waiting call may start
            for future in futures:
                future.cancel()
            raise
    found = candidates.tried.get(prompt_digest(program.read))
    found = found or Candidate(prompt_digest(program.read), runs[0].instructions, runs[0].demos)
    return replace(found, scores=dict(found.scores), replies=dict(found.replies), leaks=[])


def leaks_in(prompt: Any, held_out: contamination.HeldOut) -> list[str]:
    """Return the held-out texts in a prompt, by kind and id, without their words."""
    return [f"a {leak.kind} ({leak.of})" for leak in contamination.scan(contamination.texts_in("", prompt), held_out)]


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Redirect the output of DSPy's optimizers, and their progress bars, to a file."""
    with (
        log.open("a", encoding="utf-8", errors="backslashreplace") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        yield
