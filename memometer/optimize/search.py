"""A search carried out, or resumed: the unoptimised prompt first, the optimiser, the choice among what it left, and
then, on questions that chose nothing, what the choice is worth.

Every call is kept in the run folder as it arrives. A search that was killed runs again from its seed, is given the
replies that it had, and so comes to where it was without a call. GEPA's own checkpoints are not used: they are pickles,
and do not hold the state of its random numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import copy_context
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import dspy

from memometer.benchmarks.protocol import JudgePrompt, Question
from memometer.harness import contamination
from memometer.harness.plan import Refused
from memometer.judging.judge import Judge
from memometer.models.errors import describe, is_of_a_model
from memometer.models.replay_cache import CallStore, SearchStopped, StoredLM
from memometer.optimize.candidates import Candidate, Candidates
from memometer.optimize.optimizers import OPTIMIZERS, Proposing, Search
from memometer.optimize.plan import Study
from memometer.optimize.program import Asked, Desk, States, Told, example_of, excerpt, prompt_digest
from memometer.optimize.significance import Finding, report
from memometer.reader import program_file
from memometer.run import progress
from memometer.run.environment import digest, provenance
from memometer.run.folder import RunFolder, RunFolderError, new_path
from memometer.run.interrupts import stopping
from memometer.run.progress import eprint

Outcome = str
"""valid, invalid (too many calls failed), failed (none can succeed) or stopped."""


class Optimization(Study):
    """A study, and its doing."""

    def start(self, path: Path | None) -> Outcome:
        """Search in a new folder."""
        manifest = {"config": self.config, "identity": self.identity(), "stand_in": self.data.kind, **provenance()}
        try:
            folder = RunFolder.create(path or new_path(), manifest)
        except (RunFolderError, OSError) as error:
            raise Refused(str(error)) from error
        with folder:
            return self._carry_out(folder)

    @classmethod
    def resume(cls, path: Path, *, cost_limit: float | None = None) -> Outcome:
        """Go on with the search of a folder, up to another cost if one is given. Refused where anything has changed
        since."""
        try:
            folder = RunFolder.reopen(path)
        except (RunFolderError, OSError) as error:
            raise Refused(str(error)) from error
        with folder:
            try:
                config, was = folder.manifest["config"], folder.manifest["identity"]
                if "optimizer" not in config:
                    raise Refused(f"{path} holds no search; give the folder of one that python optimize.py began.")
                if digest(config) != was.get("configuration"):
                    raise Refused(f"{path} was begun with another configuration than it holds now; start a new search.")
                search = cls(config)
                search.cost_limit = cost_limit or search.cost_limit
            except RunFolderError as error:
                raise Refused(str(error)) from error
            except KeyError as error:
                raise Refused(f"{path} was begun by another version, which knew no {error}; start anew.") from error
            now = search.identity()
            if changed := [name for name in {**was, **now} if now.get(name) != was.get(name)]:
                raise Refused(
                    f"{path} was begun with another {', '.join(changed)} than there is now; restore what changed, or "
                    "start a new search."
                )
            return search._carry_out(folder)

    # ------------------------------------------------------------ the story

    def _carry_out(self, folder: RunFolder) -> Outcome:
        with stopping() as stop:
            try:
                store = CallStore(
                    folder.path / "calls.jsonl",
                    fail_share=self.config["fail_on_error"],
                    may_call=lambda: self._forbidden(store, stop),
                )
            except ValueError as error:
                raise Refused(str(error)) from error
            for line in self.announcement(done=len(store)):
                eprint(f"{self.data.prefix}{line}")
            try:
                finding = self._find(folder, store)
            except SearchStopped as why:
                eprint(f"{self.data.prefix}Stopped: {why}. Go on with: python optimize.py --resume {folder.path}")
                return why.outcome
            try:
                return self._conclude(folder, store, finding)
            except BrokenPipeError:
                raise  # nobody reads on; optimize.py knows what that means
            except OSError as error:
                eprint(
                    f"{self.data.prefix}What was found cannot be written: {error}. Once it can: python optimize.py "
                    f"--resume {folder.path}"
                )
                return "failed"

    def _find(self, folder: RunFolder, store: CallStore) -> Finding:
        lms = {
            role: StoredLM.of(model.lm, store, role=role, identity=self.answering(role))
            for role, model in self.models.items()
        }
        states = States((*self.train_conversations, *self.validation_conversations))
        desk = Desk(self.memory, self.reading, states, store, budget_tokens=self.config["budget_tokens"])
        conversations = (*self.train_conversations, *self.validation_conversations)
        objective = replace(
            self.objective, judged=_verdicts(lms["judge"], self.benchmark.judge_prompt()) if "judge" in lms else None
        )
        candidates = Candidates(objective, (*self.train, *self.choosing, *self.confirming), conversations)
        unoptimised = Asked(desk)
        proposing = Proposing()
        with dspy.context(lm=lms["reader"], adapter=proposing, disable_history=True), self._progress(store, candidates):
            before = self._scored(unoptimised, (*self.confirming, *self.choosing, *self.train), candidates)
            candidates.base = dict(before.scores)
            train, choosing, confirming = (
                [question for question in questions if question.id in before.scores]
                for questions in (self.train, self.choosing, self.confirming)
            )
            if not (train and choosing and confirming):
                raise SearchStopped("every call of the unoptimised prompt failed", outcome="failed")
            search = Search(
                effort=self.config["auto"],
                program=unoptimised.deepcopy(),
                train=[example_of(question) for question in train],
                validation=[example_of(question) for question in choosing],
                candidates=candidates,
                reader=lms["reader"],
                prompt_model=lms["prompt model"],
                max_demos=self.max_demos,
                num_threads=self.num_threads,
                seed=self.config["seed"],
                proposing=proposing,
            )
            with _quiet(folder.path / "search.log"):
                left = self._left_by_the_optimizer(search, store)
            for candidate in list(candidates.tried.values()):
                candidate.leaks = self._leaks([candidate.instructions, candidate.demos])
            best, chosen = self._choose(unoptimised, before, left, choosing, candidates)
            after = self._scored(best, confirming, candidates)
        return Finding(
            program=best,
            unoptimised=unoptimised,
            before=before,
            after=after,
            questions=confirming,
            chosen_from=chosen,
            unreadable=proposing.unreadable,
            candidates=candidates,
        )

    def _left_by_the_optimizer(self, search: Search, store: CallStore) -> list[dspy.Module]:
        """DSPy takes Ctrl-C for an error of the program, which some optimisers raise and some score as zero."""
        try:
            left = OPTIMIZERS[self.config["optimizer"]](search)
        except Exception as error:  # DSPy wraps why a call was refused; what is neither goes on
            if why := store.may_call():
                raise SearchStopped(why) from error
            if is_of_a_model(error):  # of the prompt model's: the reader's are in the metric
                raise SearchStopped(f"no prompts could be written: {describe(error)}", outcome="failed") from error
            raise
        if why := store.may_call():
            raise SearchStopped(why)
        return left

    def _choose(
        self,
        unoptimised: Asked,
        before: Candidate,
        left: Sequence[dspy.Module],
        questions: Sequence[Question],
        candidates: Candidates,
    ) -> tuple[Asked, int]:
        """(the best of what the optimiser left, and of the unoptimised prompt, by validation; how many there were)."""
        programs_left: dict[str, Asked] = {}
        for program in left:
            assert isinstance(program, Asked)
            program.read.demos = [excerpt(demo) for demo in program.read.demos]
            prompt = prompt_digest(program.read)
            if prompt != before.digest and not self._leaks(program.read.dump_state()):
                programs_left.setdefault(prompt, program)
        ids = [question.id for question in questions]
        best, most = unoptimised, before.mean(ids) or 0.0
        for program in programs_left.values():
            scored = self._scored(program, questions, candidates)
            both = [id for id in ids if id in scored.scores]
            # Over the questions that both answered: a failed call speaks for neither.
            gain = (scored.mean(both) or 0.0) - (before.mean(both) or 0.0) if both else 0.0
            if (before.mean(ids) or 0.0) + gain > most:
                best, most = program, (before.mean(ids) or 0.0) + gain
        return best, len(programs_left)

    def _scored(self, program: Asked, questions: Sequence[Question], candidates: Candidates) -> Candidate:
        """A program's prompt with its scores at temperature 0; a question whose call failed has none."""

        def ask(question: Question) -> Told:
            told: Told = program(**example_of(question).inputs()).told
            if not told.failed:
                candidates.score(question.id, told)
            return told

        with ThreadPoolExecutor(self.num_threads) as pool:
            asked = [pool.submit(copy_context().run, ask, question) for question in questions]
            try:
                told = [future.result() for future in asked]
            except BaseException:  # re-raised: what is waiting must not be asked
                for future in asked:
                    future.cancel()
                raise
        prompt = prompt_digest(program.read)
        found = candidates.tried.get(prompt) or Candidate(prompt, told[0].instructions, told[0].demos)
        return Candidate(found.digest, found.instructions, found.demos, dict(found.scores), dict(found.replies))

    def _conclude(self, folder: RunFolder, store: CallStore, finding: Finding) -> Outcome:
        out = self.out
        results, lines = report(self, store, finding, out=out, run=folder.path)
        notes = {
            "rounds": self.config["rounds"],
            **{name: results[name] for name in ("optimizer", "auto", "reader", "prompt_model", "judge", "gain", "run")},
        }
        for program, path, optimised in (
            (finding.program, folder.path / "best_candidate.json", True),
            (finding.program if results["gained"] else finding.unoptimised, out, results["gained"]),
        ):
            if found := self._leaks(program.read.dump_state()):
                eprint(f"{self.data.prefix}Nothing is written to {path}: the prompt holds {', '.join(found)}, sealed.")
                return "failed"
            seen = (self.train_conversations, self.validation_conversations) if optimised else ((), ())
            ids = [[conversation.id for conversation in conversations] for conversations in seen]
            program_file.save(
                program.read, path, {**notes, "optimised": optimised, "trained_on": ids[0], "selected_on": ids[1]}
            )
        folder.write_json("results.json", results)
        folder.write_json("candidates.json", [candidate.as_json() for candidate in finding.candidates.tried.values()])
        folder.write_text("report.txt", "".join(f"{self.data.prefix}{line}\n" for line in lines))
        for line in lines:
            print(f"{self.data.prefix}{line}", flush=True)
        if not self.config["no_mlflow"]:
            from memometer.optimize.mlflow_runs import log_search

            print(f"{self.data.prefix}{log_search(folder, results, finding)}", flush=True)
        return "valid"

    # ------------------------------------------------------------ its parts

    @property
    def num_threads(self) -> int:
        """An embedded model keeps the processor busy alone; and a kill loses the calls in flight, which should be few
        of a search's."""
        chosen: int | None = self.config["num_threads"]
        return chosen or (1 if self.reader.name.startswith("embedded:") else max(1, min(4, len(self.train) // 4)))

    def _forbidden(self, store: CallStore, stop: threading.Event) -> str:
        if stop.is_set():
            return "as asked"
        limit = self.cost_limit
        if limit and (spent := self.spent(store) or 0.0) >= limit:
            return f"${spent:,.2f} are spent and --cost-limit is ${limit:,.2f}"
        return ""

    def spent(self, store: CallStore) -> float | None:
        """Dollars, of this process and those before it; None where a price is not known."""
        total = 0.0
        for role, usage in list(store.spent.items()):
            price = self.models[role].price
            if price is None:
                return None
            total += price.usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        return total

    @cached_property
    def _sealed(self) -> contamination.HeldOut:
        known = (*self.train_conversations, *self.validation_conversations)
        return contamination.HeldOut(self.sealed, others=known)

    def _leaks(self, prompt: Any) -> list[str]:
        """What of the sealed conversations stands in a prompt, by kind and id, never by its text."""
        found = contamination.scan(contamination.texts_in("", prompt), self._sealed) if self.sealed else []
        return [f"a {leak.kind} ({leak.of})" for leak in found]

    @contextmanager
    def _progress(self, store: CallStore, candidates: Candidates) -> Iterator[None]:
        total, least = self.forecast().calls, min(len(self.train), len(self.choosing))
        with progress.bar(total=total, initial=len(store), desc=f"{self.data.prefix}calls, at most") as bar:

            def called() -> None:
                lift, n = candidates.best(least)
                said = f"best so far {lift:+.3f} on {n} questions" if n else "the unoptimised prompt first"
                if failed := store.failed.total():
                    said += f", {failed} failed"
                if spent := self.spent(store):
                    said += f", ${spent:,.2f}"
                bar.set_postfix_str(said, refresh=False)
                bar.update()

            store.on_call = called
            yield


def _verdicts(lm: StoredLM, prompt: JudgePrompt) -> Callable[[Question, str], float | None]:
    judge = Judge(lm, prompt)
    worth = {"correct": 1.0, "wrong": 0.0}

    def verdict(question: Question, answer: str) -> float | None:
        return worth.get(judge(question.text, question.gold or "", answer).label)

    return verdict


@contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """What DSPy's optimisers print, and their bars, into a file."""
    with (
        log.open("a", encoding="utf-8", errors="backslashreplace") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        yield
