"""Carry out the plan of an evaluation in a run folder, or resume one."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from memometer.harness.batches import run_in_batches
from memometer.harness.finish import Ending, finish
from memometer.harness.loop import Traced, run, untraced
from memometer.harness.make_plan import make_plan
from memometer.harness.model_check import ModelCheck, check_judge, check_reader, room_for_thoughts
from memometer.harness.options import EvaluateOptions
from memometer.harness.plan import Plan
from memometer.harness.recall_preview import recall_table
from memometer.judging import judge_calibration
from memometer.judging.hidden_probes import Prober
from memometer.judging.judge import Judge
from memometer.judging.judge_assessment import assess, sentence
from memometer.models.errors import FATAL, describe
from memometer.models.resolve_models import Model
from memometer.report import aggregate, presenter
from memometer.run import closed_files, cost, resume
from memometer.run.environment import digest, provenance
from memometer.run.folder import (
    Key,
    Record,
    RunFolder,
    RunFolderError,
    failed,
    is_answered,
    latest,
    needs_verdict,
    new_path,
    read_manifest,
    read_records,
)
from memometer.run.interrupts import stopping
from memometer.run.options import OptionError, option_errors
from memometer.run.prices import LOCAL
from memometer.run.progress import bar, eprint, time_left

TIMED_ANSWERS = 20
"""The time that remains is estimated once, after this many answers."""


def resume_run(
    path: Path, *, cost_limit: float | None = None, allow_failed_calibration: bool = False, verbose: bool = False
) -> str:
    """Continue the evaluation in a run folder.

    Args:
        path: The run folder.
        cost_limit: Dollars, in place of the saved limit; infinity removes it.
        allow_failed_calibration: True goes on with a judge that failed its calibration, also if the run did not.
        verbose: True prints all tables at the end, not only those that fit a screen.

    Returns:
        The outcome, as of `Runner.start`.

    Raises:
        RunFolderError: The folder holds no evaluation that can be continued.
        OptionError: The evaluation cannot be run as it was configured.
    """
    manifest = read_manifest(path)
    if "published" in manifest:
        raise RunFolderError(f"{path} holds imported results, which cannot be continued; name a run of evaluate.py.")
    options, identity = resume.read(path, EvaluateOptions, required="num_test")
    plan = make_plan(options)
    current = plan.identity()
    if identity.get("configuration") == digest(manifest["config"]):  # as it was saved, maybe by an earlier version
        identity = {**identity, "configuration": current["configuration"]}
    # A plug-in that could not be started has no description in the manifest.
    known = {name: value for name, value in current.items() if not name.startswith("system ") or name in identity}
    resume.check(path, identity, known)
    if allow_failed_calibration:
        plan.options = replace(plan.options, allow_failed_calibration=True)
    runner = Runner(plan, cost_limit=cost_limit or options.cost_limit, verbose=verbose, resumed=True)
    plan.announce({key for key, record in latest(read_records(path)).items() if is_answered(record)})
    with option_errors("", OSError):
        folder = RunFolder.reopen(path)
    return runner.carry_out(folder)


class Runner:
    """Carries out one plan.

    Args:
        plan: The plan.
        cost_limit: Dollars at which the run stops; None for no limit.
        verbose: True prints all tables at the end, not only those that fit a screen.
        resumed: True if the run was started before.

    Raises:
        OptionError: There is a cost limit, but the cost of the run cannot be known.
    """

    def __init__(
        self, plan: Plan, *, cost_limit: float | None = None, verbose: bool = False, resumed: bool = False
    ) -> None:
        self.plan, self.verbose, self.resumed = plan, verbose, resumed
        self.cost_limit = None if cost_limit == math.inf else cost_limit
        self._ending = Ending()
        plan.check_cost_limit(self.cost_limit)

    def start(self, path: Path | None = None) -> str:
        """Run in a new folder.

        Args:
            path: The folder; by default runs/TIME.

        Returns:
            The outcome: valid, invalid (too many calls failed), failed (no call can succeed), or stopped.

        Raises:
            RunFolderError: The folder is not empty or cannot be written.
        """
        with option_errors("", OSError):
            folder = RunFolder.create(path or new_path(), self._manifest())
        return self.carry_out(folder)

    def carry_out(self, folder: RunFolder) -> str:
        """Run the tasks that have no answer yet, write the results and close the folder.

        Args:
            folder: An open run folder of this plan.

        Returns:
            The outcome, as of `start`.
        """
        closed_files.protect(self.plan.data.path)
        with folder:
            try:
                return self._ask(folder, self._traced())
            except OSError as error:
                eprint(f"The run cannot be written: {error}. Continue with: {resume.command('eval', folder.path)}")
                return "failed"
            finally:
                self.plan.stop()

    def _manifest(self) -> dict[str, Any]:
        plan, models = self.plan, self.plan.models
        return {
            "config": plan.options.as_json(),
            "identity": plan.identity(),
            "questions": [question.id for question in plan.questions],
            "answer_prompts": plan.answer_prompts(),
            "example_answers": plan.example_answers(),
            "left_out": plan.left_out,
            "plug_ins": plan.plug_ins(),
            "cautions": plan.cautions,
            "stand_in": plan.data.kind,
            "reader": models.reader.name if models.reader else None,
            "prices": cost.prices(models.reader, models.judge_model),
            "unmetered": cost.unmetered(plan.systems.memories),
            **provenance(),
        }

    def _ask(self, folder: RunFolder, traced: Traced) -> str:
        plan, keys = self.plan, self.plan.active_keys
        plan.refit()
        already = _answered(folder, keys)
        if already:
            plan.log(f"{already} of {len(keys)} are answered already.")
        else:
            self._preview()
        bad = Counter[str]()
        started, done = time.perf_counter(), 0
        spending = cost.Spending(folder.manifest, limit=self.cost_limit)

        def progress(record: Record) -> None:
            nonlocal done
            done += 1
            if failed(record) or not is_answered(record):
                bad["failed" if failed(record) else "missing"] += 1
                shown.set_postfix(bad)
            shown.update()
            if done == TIMED_ANSWERS and plan.models.reader and not plan.options.batch:
                left = time_left(time.perf_counter() - started, done, len(keys) - already)
                shown.write(f"{plan.data.prefix}{left}", file=sys.stderr)

        with stopping() as stop:
            spending.follow(folder, stop)
            self._limit_plug_ins(spending, stop)
            unanswered = len(keys) - already
            # A batch names its own failures, and a server of batches may have no other endpoint.
            fatal = "" if plan.options.batch else self._check_models(unanswered, folder)
            fatal = fatal or self._calibrate_judge(folder, stop)
            started = time.perf_counter()
            with bar(total=len(keys), initial=already, desc=f"{plan.data.prefix}asked") as shown:
                carry_out = partial(
                    run,
                    memory_of=plan.memory_of,
                    conversations=plan.conversations,
                    folder=folder,
                    readers=plan.systems.readers,
                    num_threads=self._num_threads(plan.models.reader),
                    stop=stop,
                    progress=progress,
                    traced=traced,
                )
                waits = False
                if plan.options.batch and not fatal:
                    fatal, waits = run_in_batches(
                        plan.tasks,
                        plan.models,
                        plan.options,
                        carry_out,
                        folder,
                        spending,
                        stop,
                        log=lambda text: eprint(f"{plan.data.prefix}{text}"),
                    )
                elif not fatal:
                    judge = None if self._ending.judge_failed else plan.models.judge
                    prober = self._prober(folder, judge)
                    after_verdict = prober.after_verdict if prober else lambda: None
                    fatal = carry_out(plan.tasks, reader=plan.models.reader, judge=judge, after_verdict=after_verdict)
                    if prober and not fatal:
                        prober.finish(num_threads=self._num_threads(plan.models.judge_model), stop=stop)
            keys = plan.active_keys
            ending = self._ending
            ending.fatal = fatal
            ending.stopped = not fatal and (waits or (stop.is_set() and _answered(folder, keys) < len(keys)))
            if ending.stopped and (reason := spending.reached or spending.held_back):
                plan.log(reason)
                share = _answered(folder, keys) / len(keys)
                ending.resume_words = ["--cost-limit", spending.next_limit(share)]
            return finish(plan, folder, ending, verbose=self.verbose)

    def _limit_plug_ins(self, spending: cost.Spending, stop: threading.Event) -> None:
        """Let plug-ins call the model only while the cost limit is not reached."""
        endpoint, model = self.plan.systems.endpoint, self.plan.models.reader
        spending.not_recorded = lambda: asdict(endpoint.not_taken())

        def refusal(route: str) -> str:
            if spending.limit is None:
                return ""
            if reached := spending.reached:
                stop.set()
                return reached
            if route == "embeddings" and not (model and model.price and model.price.source == LOCAL):
                return "--cost-limit cannot be enforced for an encoder of a provider; leave one of them out."
            return ""

        endpoint.refusal = refusal

    def _check_models(self, unanswered: int, folder: RunFolder) -> str:
        """Make a first call to each remote model that the run needs. Returns the reason if a model does not answer."""
        plan, models = self.plan, self.plan.models
        if unanswered and models.reader and models.reader.is_remote:
            found = check_reader(models.reader, room=plan.room_for_thoughts())
            if found.room:
                plan.models = models = replace(models, reader=replace(models.reader, max_tokens=found.room))
            if why := self._report(found):
                return why
        if models.judge and models.judge_model and models.judge_model.is_remote and self._needs_judge(folder):
            room = 0 if plan.options.judge_max_tokens else room_for_thoughts(models.judge_model.context_tokens)
            if why := self._report(check_judge(models.judge_model, models.judge, room=room)):
                return f"judge: {why}"
        return ""

    def _report(self, found: ModelCheck) -> str:
        """Print what a run must know of a first call; returns its failure."""
        if not found.failure:
            for line in found.findings():
                self.plan.log_wrapped(line)
        return found.failure

    def _needs_judge(self, folder: RunFolder) -> bool:
        """True if an answer will be graded: one is missing, or one has no verdict."""
        current = aggregate.current(folder.records(), self.plan.keys)
        gradable = {question.id for question in self.plan.questions if question.gold is not None}
        return len(current) < len(self.plan.keys) or any(
            not is_answered(record) or (record["question_id"] in gradable and needs_verdict(record))
            for record in current
        )

    def _preview(self) -> None:
        """Print the recall at once, because answers take longer; a memory that fails does so again in the run."""
        if self.plan.models.reader is None:
            return
        try:
            table = recall_table(self.plan)
        except Exception:  # noqa: BLE001 - any memory may fail; the run records it
            return
        if table:
            self.plan.log(f"\n{presenter.screen([table], prefix=self.plan.data.prefix)}\n")

    def _calibrate_judge(self, folder: RunFolder, stop: threading.Event) -> str:
        """Find or measure the judge's calibration. Returns the reason if the run must end before its answers."""
        plan, calibrator = self.plan, self.plan.models.calibrator
        if calibrator is None or plan.options.no_calibration:
            return ""
        needed, limit = self._needs_judge(folder), plan.options.max_false_accept
        found = plan.calibration(resumed=self.resumed and needed)
        if found is None and not needed:  # every answer has its verdict, and the run its calibration
            return ""
        try:
            if found is None:
                threads = self._num_threads(plan.models.judge_model)
                measured = calibrator.measure(num_threads=threads, stop=stop, folder=folder, end_at=limit)
                found = assess(measured, max_false_accept=limit)
        except FATAL as error:
            return f"judge: {describe(error)}"
        except judge_calibration.CalibrationError as error:
            return "" if stop.is_set() else f"judge: {error}"
        folder.append_calibration(found)
        if found["passed"] or not needed or stop.is_set():
            return ""
        self._ending.judge_failed = True  # its verdicts are not paid for, because their accuracy would be withheld
        return "" if plan.options.allow_failed_calibration else sentence(found).rstrip(".")

    def _prober(self, folder: RunFolder, judge: Judge | None) -> Prober | None:
        """Return the hidden probes of the run; None if no answer is graded or no accuracy is shown."""
        plan = self.plan
        probes = plan.probes()
        if judge is None or not probes or not self._needs_judge(folder):
            return None
        verdicts = len(plan.active_keys) - _answered(folder, plan.active_keys)
        return Prober(judge, folder, probes, verdicts=verdicts, seed=plan.options.seed)

    def _traced(self) -> Traced:
        if not self.plan.options.trace:
            return untraced
        try:
            from memometer.report.mlflow.traces import question_traces

            return question_traces()
        except ImportError as error:
            raise OptionError(
                f"--trace needs the complete MLflow ({error}); pip install -c constraints.txt '.[mlflow]'"
            ) from error
        except Exception as error:  # a database of another version, a folder without write access, a lock
            raise OptionError(
                f"MLflow cannot trace into mydb.sqlite ({describe(error)}); leave out --trace."
            ) from error

    def _num_threads(self, model: Model | None) -> int:
        """Return the number of concurrent calls. An embedded model or a ranking uses all cores for one."""
        if model is None:
            return 1
        return self.plan.options.num_threads or (1 if model.name.startswith("embedded:") else 4)


def _answered(folder: RunFolder, keys: list[Key]) -> int:
    return sum(is_answered(record) for record in aggregate.current(folder.records(), keys))
