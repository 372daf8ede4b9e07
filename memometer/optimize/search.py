"""A prompt search: the unoptimized prompt, the optimizer, the selection of a candidate, and its confirmation.

Every call is stored in the run folder as it arrives. A killed search runs again from its seed and gets the stored
replies, so it reaches the same point without new calls. GEPA's own checkpoints are not used: they are pickles, and they
lack the state of its random numbers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import copy_context
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from memometer import benchmarks
from memometer.benchmarks.protocol import Question
from memometer.errors import UserError
from memometer.harness import contamination
from memometer.harness.model_check import check_judge, check_reader
from memometer.judging.judge import Judge
from memometer.models.errors import describe, is_of_a_model
from memometer.models.replay_cache import CallStore, SearchStopped, StoredLM
from memometer.optimize.candidates import Candidate, CandidateLog
from memometer.optimize.optimizers import OPTIMIZERS, OptimizerInput, ProposalAdapter
from memometer.optimize.options import OptimizeOptions
from memometer.optimize.plan import SearchPlan, make_plan
from memometer.optimize.program import (
    ConversationStates,
    ProgramRun,
    ReadingProgram,
    SharedContext,
    example_of,
    excerpt,
    prompt_digest,
)
from memometer.optimize.significance import SearchResult, report_lines, summarise
from memometer.reader import program_file
from memometer.run import progress
from memometer.run import resume as resuming
from memometer.run.environment import provenance
from memometer.run.folder import RunFolder, new_path
from memometer.run.interrupts import stopping
from memometer.run.progress import eprint

if TYPE_CHECKING:
    from memometer.report.mlflow.prompts import PromptVersion

Outcome = str
"""valid, invalid (too many calls failed), failed (no call can succeed) or stopped."""


def start(options: OptimizeOptions, path: Path | None = None) -> Outcome:
    """Search in a new run folder.

    Raises:
        UserError: The search cannot start.
    """
    plan = make_plan(options)
    manifest = {"config": options.as_json(), "identity": plan.identity(), "stand_in": plan.data.kind, **provenance()}
    try:
        folder = RunFolder.create(path or new_path(), manifest)
    except OSError as error:
        raise UserError(str(error)) from error
    with folder:
        return Search(plan, folder).run()


def resume(path: Path, *, cost_limit: float | None = None) -> Outcome:
    """Continue the search in a run folder, optionally with another cost limit.

    Raises:
        UserError: The folder has no search, or something that matters has changed since.
    """
    options, identity = resuming.read(path, OptimizeOptions, required="optimizer")
    plan = make_plan(options)
    resuming.check(path, identity, plan.identity())
    if cost_limit:
        plan = replace(plan, options=replace(options, cost_limit=cost_limit))
    try:
        folder = RunFolder.reopen(path)
    except OSError as error:
        raise UserError(str(error)) from error
    with folder:
        return Search(plan, folder).run()


class Search:
    """One search in its run folder."""

    def __init__(self, plan: SearchPlan, folder: RunFolder) -> None:
        self.plan, self.folder = plan, folder
        self.options = plan.options
        self._stop = threading.Event()

    def run(self) -> Outcome:
        """Search, and write the selected prompt and the report."""
        with stopping() as self._stop:
            try:
                self.store = CallStore(
                    self.folder.path / "calls.jsonl",
                    fail_share=self.options.fail_on_error,
                    may_call=self._reason_to_stop,
                )
            except ValueError as error:
                raise UserError(str(error)) from error
            for line in self.plan.announcement(done=len(self.store)):
                self._eprint(line)
            again = f"python optimize.py --resume {self.folder.path}"
            try:
                self._check_models()
                found = self._search()
            except SearchStopped as reason:
                limit = self.options.cost_limit or 0.0
                more = f" --cost-limit {2 * limit:g}" if 0 < limit <= (self.plan.spent(self.store) or 0.0) else ""
                self._eprint(f"Stopped: {reason}. Continue with: {again}{more}")
                return reason.outcome
            try:
                return self._write(found)
            except OSError as error:
                self._eprint(f"The result cannot be written: {error}. After correcting that, run: {again}")
                return "failed"

    # ------------------------------------------------------------ the search

    def _check_models(self) -> None:
        """Make a first call to each remote model, once in a run folder.

        The limits of replies are part of the keys of stored calls, so a resumed search takes them from the folder.

        Raises:
            SearchStopped: a model does not answer.
        """
        plan, file = self.plan, self.folder.path / "model_checks.json"
        if file.exists():
            for role, room in json.loads(file.read_bytes()).items():
                self._give_room(role, room)
            return
        if len(self.store):  # a search of an earlier version; its replies may be all that it needs
            return
        rooms: dict[str, int] = {}
        for role, model in plan.models.items():
            if not model.is_remote or self._reason_to_stop():
                continue
            room = plan.room_for_thoughts(role)
            if role == "judge":
                found = check_judge(model, self._judge(model.lm), room=room)
            elif role == "prompt model" and plan.model_identity(role) == plan.model_identity("reader"):
                rooms[role] = room if rooms["reader"] else 0
                self._give_room(role, rooms[role])
                continue
            else:
                found = check_reader(model, room=room)
            if found.failure:
                reason = f"{'' if role == 'reader' else f'{role}: '}{found.failure}"
                raise SearchStopped(reason, outcome="failed" if found.is_fatal else "invalid")
            rooms[role] = found.room
            self._give_room(role, found.room)
            for line in found.findings():
                self._eprint(line)
        self.folder.write_json(file.name, rooms)

    def _give_room(self, role: str, tokens: int) -> None:
        """Raise the limit of a reply. A question budget that the user did not choose grows with it."""
        if not tokens:
            return
        model, reader, options = self.plan.models[role], self.plan.reader, self.options
        model.lm.give_room(tokens)
        if role == "reader" and options.question_budget is None and reader.question_budget:
            reader.question_budget += options.rounds * (tokens - model.max_tokens)

    def _search(self) -> SearchResult:
        plan = self.plan
        lms = {
            role: StoredLM.of(model.lm, self.store, role=role, identity=plan.model_identity(role))
            for role, model in plan.models.items()
        }
        states = ConversationStates(plan.conversations)
        context = SharedContext(plan.memory, plan.reader, states, self.store, budget_tokens=self.options.budget_tokens)
        objective = replace(plan.objective, judged=self._judge_scores(lms["judge"]) if "judge" in lms else None)
        candidates = CandidateLog(objective, plan.questions, plan.conversations)
        unoptimised = ReadingProgram(context)
        adapter = ProposalAdapter()
        with dspy.context(lm=lms["reader"], adapter=adapter, disable_history=True), self._progress(candidates):
            before = self._score(unoptimised, (*plan.confirmation, *plan.selection, *plan.train), candidates)
            if not len(self.store):
                raise SearchStopped("no prompt fits the question budget; raise --question-budget", outcome="failed")
            candidates.base = dict(before.scores)
            train, selection, confirmation = (
                [question for question in questions if question.id in before.scores]
                for questions in (plan.train, plan.selection, plan.confirmation)
            )
            if not (train and selection and confirmation):
                raise SearchStopped("every call of the unoptimized prompt failed", outcome="failed")
            given = OptimizerInput(
                effort=self.options.auto,
                program=unoptimised.deepcopy(),
                train=[example_of(question) for question in train],
                selection=[example_of(question) for question in selection],
                candidates=candidates,
                reader=lms["reader"],
                prompt_model=lms["prompt model"],
                max_demos=self.options.demo_limit,
                num_threads=plan.num_threads,
                seed=self.options.seed,
                proposal_adapter=adapter,
            )
            with _output_to(self.folder.path / "search.log"):
                programs = self._optimize(given)
            for candidate in list(candidates.tried.values()):
                candidate.leaks = self._leaks([candidate.instructions, candidate.demos])
            best, selectable = self._select(unoptimised, before, programs, selection, candidates)
            after = self._score(best, confirmation, candidates)
        return SearchResult(
            program=best,
            unoptimised=unoptimised,
            before=before,
            after=after,
            questions=confirmation,
            num_selectable=selectable,
            unreadable=adapter.unreadable,
            candidates=candidates,
        )

    def _optimize(self, given: OptimizerInput) -> list[dspy.Module]:
        """Run the optimizer. DSPy treats SearchStopped and Ctrl-C as errors of the program: some optimizers raise them
        in another form, and some score them as zero. So the reason to stop is checked here."""
        try:
            programs = OPTIMIZERS[self.options.optimizer](given)
        except Exception as error:  # DSPy wraps the reason why a call was refused; all other errors are raised again
            if reason := self.store.may_call():
                raise SearchStopped(reason) from error
            if is_of_a_model(error):  # the prompt model's error, because the metric handles the reader's
                raise SearchStopped(f"no prompts could be written: {describe(error)}", outcome="failed") from error
            raise
        if reason := self.store.may_call():
            raise SearchStopped(reason)
        return programs

    def _select(
        self,
        unoptimised: ReadingProgram,
        before: Candidate,
        programs: Sequence[dspy.Module],
        questions: Sequence[Question],
        candidates: CandidateLog,
    ) -> tuple[ReadingProgram, int]:
        """The best program on the selection questions, maybe the unoptimized one, and the number of candidates."""
        selectable: dict[str, ReadingProgram] = {}
        for program in programs:
            assert isinstance(program, ReadingProgram)
            program.read.demos = [excerpt(demo) for demo in program.read.demos]
            prompt = prompt_digest(program.read)
            if prompt != before.digest and not self._leaks(program.read.dump_state()):
                selectable.setdefault(prompt, program)
        ids = [question.id for question in questions]
        base = before.mean(ids) or 0.0
        best, highest = unoptimised, base
        for program in selectable.values():
            scored = self._score(program, questions, candidates)
            # A failed call says nothing about a prompt, so only questions with both scores count.
            both = [id for id in ids if id in scored.scores]
            gain = (scored.mean(both) or 0.0) - (before.mean(both) or 0.0) if both else 0.0
            if base + gain > highest:
                best, highest = program, base + gain
        return best, len(selectable)

    def _score(self, program: ReadingProgram, questions: Sequence[Question], candidates: CandidateLog) -> Candidate:
        """Score a program's prompt at temperature 0. A question whose call failed has no score."""

        def run(question: Question) -> ProgramRun:
            result: ProgramRun = program(**example_of(question).inputs()).run
            if not result.failed:
                candidates.score(question.id, result)
            return result

        with ThreadPoolExecutor(self.plan.num_threads) as pool:
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

    # ------------------------------------------------------------ the results

    def _write(self, found: SearchResult) -> Outcome:
        plan, path, out = self.plan, self.folder.path, self.options.output
        results = summarise(plan, self.store, found, run=path)
        names = ("optimizer", "auto", "reader", "prompt_model", "judge", "gain", "run")
        notes = {"rounds": self.options.rounds, **{name: results[name] for name in names}}
        selected = found.program if results["gained"] else found.unoptimised
        for program, file, optimised in (
            (found.program, path / "best_candidate.json", True),
            (selected, out, results["gained"]),
        ):
            if leaks := self._leaks(program.read.dump_state()):
                self._eprint(f"{file} is not written: the prompt contains held-out text ({', '.join(leaks)}).")
                return "failed"
            seen = (plan.train_conversations, plan.validation_conversations) if optimised else ((), ())
            ids = [[conversation.id for conversation in conversations] for conversations in seen]
            program_file.save(
                program.read, file, {**notes, "optimised": optimised, "trained_on": ids[0], "selected_on": ids[1]}
            )
        self.folder.write_json("results.json", results)
        self.folder.write_json("candidates.json", [each.as_json() for each in found.candidates.tried.values()])
        lines = report_lines(plan, found, results, out=out)
        self.folder.write_text("report.txt", "".join(f"{plan.data.prefix}{line}\n" for line in lines))
        if not self.options.no_mlflow:
            from memometer.report.mlflow import log_search
            from memometer.report.mlflow.prompts import prompt_name

            name = prompt_name(plan.data.benchmark, self.options.rounds)
            versions = self._prompt_versions(found, results)
            lines.append(
                log_search(self.folder, results, found.candidates.nested_runs(), prompt=name, versions=versions)
            )
        for line in lines:
            print(f"{plan.data.prefix}{line}", flush=True)
        return "valid"

    def _prompt_versions(self, found: SearchResult, results: Mapping[str, Any]) -> list[PromptVersion]:
        """The prompts for MLflow's registry: the unoptimized one, then the best candidate."""
        from memometer.report.mlflow.prompts import PromptVersion

        gain = results["gain"]["difference"]
        facts = {name: results[name] for name in ("optimizer", "reader", "gained", "run")} | {"gain": gain}
        programs: list[tuple[ReadingProgram, str, dict[str, Any]]]
        programs = [(found.unoptimised, "The prompt before optimization.", {})]
        if prompt_digest(found.program.read) != prompt_digest(found.unoptimised.read):
            message = f"Found by {results['optimizer']} for {results['reader']}."
            programs.append((found.program, message, facts))
        return [
            PromptVersion(program.read, program_file.digest_of(program.read), message, tags)
            for program, message, tags in programs
        ]

    # ------------------------------------------------------------ parts

    def _eprint(self, line: str) -> None:
        eprint(f"{self.plan.data.prefix}{line}")

    def _reason_to_stop(self) -> str:
        if self._stop.is_set():
            return "interrupted"
        limit = self.options.cost_limit
        if limit and (spent := self.plan.spent(self.store) or 0.0) >= limit:
            return f"${spent:,.2f} were spent of --cost-limit ${limit:,.2f}"
        return ""

    @cached_property
    def _held_out(self) -> contamination.HeldOut:
        return contamination.HeldOut(self.plan.held_out, others=self.plan.conversations)

    def _leaks(self, prompt: Any) -> list[str]:
        """Held-out texts in a prompt, by kind and id, without their words."""
        if not self.plan.held_out:
            return []
        found = contamination.scan(contamination.texts_in("", prompt), self._held_out)
        return [f"a {leak.kind} ({leak.of})" for leak in found]

    def _judge(self, lm: dspy.LM) -> Judge:
        return Judge(lm, benchmarks.load(self.plan.data.benchmark).judge_prompt())

    def _judge_scores(self, lm: StoredLM) -> Callable[[Question, str], float | None]:
        judge = self._judge(lm)
        scores = {"correct": 1.0, "wrong": 0.0}

        def score(question: Question, answer: str) -> float | None:
            return scores.get(judge(question.text, question.gold or "", answer, of=question).label)

        return score

    @contextmanager
    def _progress(self, candidates: CandidateLog) -> Iterator[None]:
        plan, store = self.plan, self.store
        total, enough = plan.forecast().calls, min(len(plan.train), len(plan.selection))
        with progress.bar(total=total, initial=len(store), desc=f"{plan.data.prefix}calls, at most") as bar:

            def on_call() -> None:
                lift, n = candidates.best_lift(enough)
                text = f"best so far {100 * lift:+.1f} points on {n} questions" if n else "unoptimized prompt"
                if failed := store.failed.total():
                    text += f", {failed} failed"
                if spent := plan.spent(store):
                    text += f", ${spent:,.2f}"
                bar.set_postfix_str(text, refresh=False)
                bar.update()

            store.on_call = on_call
            yield


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Redirect the output of DSPy's optimizers, and their progress bars, to a file."""
    with (
        log.open("a", encoding="utf-8", errors="backslashreplace") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        yield
