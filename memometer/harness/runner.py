"""One evaluation carried out, or resumed.

The configuration is saved in the run folder, and a run is resumed from that alone.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from memometer.harness.configure_memories import LoadForm
from memometer.harness.loop import run
from memometer.harness.plan import Choice, LoadMemory, Refused
from memometer.judging import judge_calibration
from memometer.models.errors import FATAL, describe
from memometer.models.resolve_models import Model
from memometer.report import aggregate, multi_round_analysis
from memometer.report.results import write_results
from memometer.run import cost, test_set_usage
from memometer.run.environment import digest, provenance
from memometer.run.folder import Key, Record, RunFolder, RunFolderError, failed, is_answered, latest, new_path
from memometer.run.interrupts import stopping
from memometer.run.progress import bar as show
from memometer.run.progress import eprint


class Experiment(Choice):
    """What was chosen, and its doing: a run folder, the questions asked, the results written."""

    def start(self, path: Path | None) -> str:
        """Run in a new folder; the outcome is valid, invalid, failed or stopped."""
        self._trace_if_asked()
        try:
            folder = RunFolder.create(path or new_path(), self._manifest())
        except (RunFolderError, OSError) as error:
            raise Refused(str(error)) from error
        with folder:
            return self._carry_out_safely(folder)

    @classmethod
    def resume(
        cls,
        path: Path,
        load_memory: LoadMemory,
        load_form: LoadForm = lambda _: None,
        *,
        cost_limit: float | None = None,
    ) -> Callable[[], str]:
        """Announce the experiment saved in a folder; what is returned goes on with it. Refused where anything has
        changed since. `cost_limit` takes the place of the saved one."""
        try:
            with RunFolder.reopen(path) as folder:
                manifest, records = folder.manifest, folder.records()
            if "published" in manifest:
                raise Refused(f"{path} holds answers that others published; they cannot be asked again here.")
            if digest(manifest["config"]) != manifest["identity"].get("configuration"):
                raise Refused(f"{path} was begun with another configuration than it holds now; start a new run.")
            experiment = cls(manifest["config"], load_memory, load_form)
        except (RunFolderError, OSError) as error:
            raise Refused(str(error)) from error
        except KeyError as error:
            raise Refused(f"{path} was begun by another version, which knew no {error}; start a new run.") from error
        now = experiment.identity()
        was = manifest["identity"]
        changed = [name for name in {**was, **now} if now.get(name) != was.get(name)]
        if changed:
            raise Refused(
                f"{path} was begun with another {', '.join(changed)} than there is now, and answers of two "
                "configurations may not be mixed; restore what changed, or start a new run."
            )

        experiment.limit_cost(cost_limit or experiment.cost_limit)

        def go_on() -> str:
            experiment._trace_if_asked()
            try:
                folder = RunFolder.reopen(path)
            except (RunFolderError, OSError) as error:
                raise Refused(str(error)) from error
            with folder:
                return experiment._carry_out_safely(folder)

        experiment.announce({k for k, record in latest(records).items() if is_answered(record)})
        return go_on

    def _manifest(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "identity": self.identity(),
            "questions": [question.id for question in self.questions],
            "answer_prompts": self.answer_prompts() if self.reader else {},
            "left_out": self.left_out,
            "cautions": self.cautions,
            "stand_in": self.data.kind,
            "reader": self.reader.name if self.reader else None,
            "prices": cost.prices(self.reader, self.judge_model),
            "unmetered": cost.unmetered(self.memories),
            **provenance(),
        }

    def _carry_out_safely(self, folder: RunFolder) -> str:
        try:
            return self._carry_out(folder)
        except BrokenPipeError:
            raise  # nobody reads on; evaluate.py knows what that means
        except OSError as error:
            eprint(f"The run cannot be written: {error}. Go on with: python evaluate.py --resume {folder.path}")
            return "failed"

    def _carry_out(self, folder: RunFolder) -> str:
        self.fit_folds()
        keys = [task.key for task in self.tasks]
        already = sum(is_answered(record) for record in aggregate.current(folder.records(), keys))
        if already:
            self.say(f"{already} of {len(keys)} are answered already.")
        bad = Counter[str]()
        spending = cost.Spending(folder.manifest, limit=self.cost_limit)

        def progress(record: Record) -> None:
            if failed(record) or not is_answered(record):
                bad["failed" if failed(record) else "ungraded"] += 1
                bar.set_postfix(bad)
            bar.update()

        with stopping() as stop:
            spending.follow(folder, stop)
            fatal = self._certify(folder, stop)
            with show(total=len(keys), initial=already, desc=f"{self.mark}asked") as bar:
                fatal = fatal or run(
                    self.tasks,
                    self.memory_of,
                    self.conversations,
                    folder,
                    reader=self.reader,
                    readers=self.readers,
                    judge=self.judge,
                    num_threads=self._num_threads(self.reader),
                    stop=stop,
                    progress=progress,
                )
            left = len(keys) - sum(is_answered(record) for record in aggregate.current(folder.records(), keys))
            stopped = stop.is_set() and not fatal and left > 0
            if stopped and spending.reached:
                self.say(spending.reached)
            return self._conclude(folder, keys, fatal, stopped=stopped)

    def _certify(self, folder: RunFolder, stop: threading.Event) -> str:
        """Find or measure the judge's certificate; why no call to it can succeed, or ""."""
        self.certificate: judge_calibration.Certificate | None = None
        if self.certifier is None or self.config["no_certificate"]:
            return ""
        try:
            found = self.certifier.kept() or self.certifier.measure(
                num_threads=self._num_threads(self.judge_model), stop=stop, mark=self.mark, folder=folder
            )
        except FATAL as error:
            return f"judge: {describe(error)}"
        except judge_calibration.Unmeasured as error:
            return "" if stop.is_set() else f"judge: {error}"
        self.certificate = judge_calibration.judged(found, max_false_accept=self.config["max_false_accept"])
        return ""

    def _trace_if_asked(self) -> None:
        if not self.config["trace"] or self.config["no_mlflow"]:
            return
        from memometer.report.mlflow_runs import trace_dspy

        try:
            trace_dspy()
        except ImportError as error:
            raise Refused(
                f"--trace needs the whole of MLflow ({error}); pip install -c constraints.txt '.[mlflow]'"
            ) from error
        except Exception as error:  # a database of another version, a folder without write access, a lock
            raise Refused(f"MLflow cannot trace into mydb.sqlite ({describe(error)}); leave out --trace.") from error

    def _num_threads(self, model: Model | None) -> int:
        """Threads help where a server answers; ranking and an embedded model keep the processor busy alone."""
        if model is None:
            return 1
        return self.config["num_threads"] or (1 if model.name.startswith("embedded:") else 4)

    def _conclude(self, folder: RunFolder, keys: list[Key], fatal: str, *, stopped: bool) -> str:
        records = folder.records()
        share = aggregate.ungraded_share(records, keys)
        limit = self.config["fail_on_error"]
        broken = test_set_usage.broken(records)
        invalid = share > limit or bool(broken)
        outcome = "failed" if fatal else "stopped" if stopped else "invalid" if invalid else "valid"
        looks = self._look(folder, records, keys, outcome)
        facts = {
            "status": outcome,
            "split": self.config["split"],
            "subset": len(self.questions) < len(self.data.questions),
            "reader": self.reader.name if self.reader else None,
            "judge": self.judge_name,
            "token_counter": self.count.name,
            "left_out": self.left_out,
            "ledger": {"test_scored": asdict(looks) if looks else None, "broken": broken},
        }
        rounds, told = self._rounds(records, keys)
        results, table = write_results(
            folder,
            self.data,
            keys,
            facts,
            certificates=[self.certificate] if self.certificate else [],
            no_judge=self.no_judge,
            rounds=rounds,
            notes=[*told, str(looks or ""), test_set_usage.verdict(broken)],
        )
        self.say()
        self.say(table)
        for name, reason in self.left_out.items():
            self.say(f"{name} is not in the table: {reason}.")
        cut = sum(record.get("truncated", False) for record in aggregate.current(records, keys))
        if cut:
            self.say(f"{cut} replies were cut at {self.config['max_answer_tokens']} tokens (--max-answer-tokens).")
        for reason in aggregate.failures(records, keys):
            self.say(f"ungraded: {reason}")
        for reason in aggregate.memory_failures(records, keys):
            self.say(f"failed, and scored as wrong: {reason}")
        if outcome in ("failed", "stopped"):
            why = f"Stopped, because no call can succeed: {fatal}." if fatal else "Stopped."
            self.say(f"{why} Go on with: python evaluate.py --resume {folder.path}")
        if share > limit and outcome == "invalid":
            self.say(
                f"INVALID: {share:.1%} are ungraded, more than --fail-on-error {limit:.1%}. "
                f"Try the failed ones again with: python evaluate.py --resume {folder.path}"
            )
        self.say(f"Written to {folder.path}; look at it with: memometer view {folder.path}")
        if outcome in ("valid", "invalid") and not self.config["no_mlflow"]:
            from memometer.report.mlflow_runs import log_run

            self.say(log_run(folder, results, self.data))
        return outcome

    def _look(
        self, folder: RunFolder, records: list[Record], keys: list[Key], status: str
    ) -> test_set_usage.Looks | None:
        """How often the test split has been scored with this run, which is written down; None where it was not."""
        scored = any(is_answered(record) for record in aggregate.current(records, keys))
        if not scored or not self.data.held_out(self.config["split"]):
            return None
        return test_set_usage.look(folder, questions=len(self.questions), status=status)

    def _rounds(self, records: list[Record], keys: list[Key]) -> tuple[dict[tuple[str, int], Any], list[str]]:
        """What asking for more was worth, by system and budget, and for people."""
        figures, told = {}, []
        asked = {question.id: question for question in self.questions}
        for name, reader in self.readers.items():
            if reader.rounds < 2:
                continue
            for budget in sorted({budget for system, budget, *_ in keys if system == name}):
                contexts = multi_round_analysis.contexts_of(budget, reader.rounds)
                needed = multi_round_analysis.needed_tokens(
                    partial(self.memory_of, name), self.conversations, self.questions, contexts
                )
                mine = aggregate.current(records, [key for key in keys if key[:2] == (name, budget)])
                found = multi_round_analysis.figures([(asked[r["question_id"]], r) for r in mine], needed, contexts)
                figures[name, budget] = found
                told.append(f"{name} at {budget:,}: {multi_round_analysis.sentence(found, reader.rounds)}")
        return figures, told
