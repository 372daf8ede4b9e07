"""A prompt search in its run folder: the unoptimized prompt, the searches of the cross-fit, and their report.

Every call is stored in the run folder as it arrives. A killed search runs again from its seed and gets the stored
replies, so it reaches the same point without new calls. GEPA's own checkpoints are not used: they are pickles, and they
lack the state of its random numbers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from memometer.models.replay_cache import CallStore, SearchStopped, StoredLM
from memometer.optimize.candidates import CandidateLog
from memometer.optimize.fold_search import FoldResult, FoldSearch, leaks_in, score
from memometer.optimize.optimizers import ProposalAdapter
from memometer.optimize.options import OptimizeOptions
from memometer.optimize.plan import SearchPlan, make_plan
from memometer.optimize.program import (
    ConversationStates,
    ReadingProgram,
    SharedContext,
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
    if "searches" not in identity:
        raise UserError(
            f"{path} is a search of an earlier version, which confirmed its prompt on two conversations; it cannot be "
            "continued. Its results remain readable. Start a new search."
        )
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
        self._candidates: CandidateLog

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
        unoptimised = ReadingProgram(context)
        found: list[FoldResult] = []
        with self._progress(), dspy.context(lm=lms["reader"], disable_history=True):
            self._candidates = CandidateLog(objective, plan.questions, plan.conversations)
            before = score(unoptimised, plan.questions, self._candidates, num_threads=plan.num_threads)
            if not len(self.store):
                raise SearchStopped("no prompt fits the question budget; raise --question-budget", outcome="failed")
            unreadable = 0
            for fold in plan.folds:
                self._candidates = CandidateLog(objective, plan.questions, plan.conversations)
                self._candidates.start_from(before)
                adapter = ProposalAdapter()
                with dspy.context(adapter=adapter):
                    log = self.folder.path / "search.log"
                    search = FoldSearch(
                        plan, fold, before=before, candidates=self._candidates, lms=lms, adapter=adapter, log=log
                    )
                    found.append(search.run(unoptimised))
                unreadable += adapter.unreadable
        return SearchResult(folds=tuple(found), unoptimised=unoptimised, before=before, unreadable=unreadable)

    # ------------------------------------------------------------ the results

    def _write(self, found: SearchResult) -> Outcome:
        plan, path, out = self.plan, self.folder.path, self.options.output
        results = summarise(plan, self.store, found, run=path)
        delivered = found.delivered
        names = ("optimizer", "auto", "reader", "prompt_model", "judge", "gain", "run")
        notes = {"rounds": self.options.rounds, **{name: results[name] for name in names}}
        selected = delivered.program if results["gained"] else found.unoptimised
        for program, file, optimised in (
            (delivered.program, path / "best_candidate.json", True),
            (selected, out, results["gained"]),
        ):
            if leaks := self._leaks(program.read.dump_state()):
                self._eprint(f"{file} is not written: the prompt contains held-out text ({', '.join(leaks)}).")
                return "failed"
            # The other conversations decided if a gain is reported.
            seen = (delivered.fold.conversations, plan.conversations) if optimised else ((), ())
            ids = [[conversation.id for conversation in conversations] for conversations in seen]
            program_file.save(
                program.read, file, {**notes, "optimised": optimised, "trained_on": ids[0], "selected_on": ids[1]}
            )
        self.folder.write_json("results.json", results)
        tried = [
            {"search": fold.fold.number, **each.as_json()}
            for fold in found.folds
            for each in fold.candidates.tried.values()
        ]
        self.folder.write_json("candidates.json", tried)
        lines = report_lines(plan, found, results, out=out)
        self.folder.write_text("report.txt", "".join(f"{plan.data.prefix}{line}\n" for line in lines))
        if not self.options.no_mlflow:
            from memometer.report.mlflow import log_search
            from memometer.report.mlflow.prompts import prompt_name

            name = prompt_name(plan.data.benchmark, self.options.rounds)
            versions = self._prompt_versions(found, results)
            lines.append(
                log_search(
                    self.folder,
                    results,
                    [
                        run
                        for fold in found.folds
                        for run in fold.candidates.nested_runs(f"search {fold.fold.number}, ")
                    ],
                    prompt=name,
                    versions=versions,
                )
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
        if found.delivered.program is not found.unoptimised:
            message = f"Found by {results['optimizer']} for {results['reader']}."
            programs.append((found.delivered.program, message, facts))
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
        return leaks_in(prompt, self._held_out) if self.plan.held_out else []

    def _judge(self, lm: dspy.LM) -> Judge:
        return Judge(lm, benchmarks.load(self.plan.data.benchmark).judge_prompt())

    def _judge_scores(self, lm: StoredLM) -> Callable[[Question, str], float | None]:
        judge = self._judge(lm)
        scores = {"correct": 1.0, "wrong": 0.0}

        def score(question: Question, answer: str) -> float | None:
            return scores.get(judge(question.text, question.gold or "", answer, of=question).label)

        return score

    @contextmanager
    def _progress(self) -> Iterator[None]:
        plan, store = self.plan, self.store
        total, enough = plan.forecast().calls, min(len(part) for f in plan.folds for part in (f.train, f.selection))
        with progress.bar(total=total, initial=len(store), desc=f"{plan.data.prefix}calls, at most") as bar:

            def on_call() -> None:
                lift, n = self._candidates.best_lift(enough)
                text = f"best so far {100 * lift:+.1f} points on {n} questions" if n else "unoptimized prompt"
                if failed := store.failed.total():
                    text += f", {failed} failed"
                if spent := plan.spent(store):
                    text += f", ${spent:,.2f}"
                bar.set_postfix_str(text, refresh=False)
                bar.update()

            store.on_call = on_call
            yield
