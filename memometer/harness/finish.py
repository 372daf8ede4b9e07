"""The end of a run: its outcome, results, closing lines and the next command."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from memometer.harness.plan import Plan
from memometer.report import aggregate, data_access, multi_round_analysis, prompt_counts
from memometer.report.write import write_results
from memometer.run import resume, test_set_usage
from memometer.run.folder import Record, RunFolder, is_answered


@dataclass
class Ending:
    """The way in which a run ended.

    Attributes:
        fatal: The reason why no call can succeed; empty if the calls can.
        stopped: True if tasks are left for --resume.
        judge_failed: True if the judge failed its calibration, so that no answer is graded.
        resume_words: Further words of the resume command.
    """

    fatal: str = ""
    stopped: bool = False
    judge_failed: bool = False
    resume_words: list[str] = field(default_factory=list)


def finish(plan: Plan, folder: RunFolder, ending: Ending, *, verbose: bool = False) -> str:
    """Write the results of a run, and print its table and the next command.

    Args:
        plan: The plan of the evaluation.
        folder: The run folder.
        ending: The way in which the run ended.
        verbose: True prints all tables, not only those that fit a screen.

    Returns:
        The outcome: valid, invalid, failed or stopped.
    """
    keys, records = plan.active_keys, folder.records()
    share, limit = aggregate.missing_share(records, keys), plan.options.fail_on_error
    repeated = test_set_usage.duplicate_attempts(records)
    cut = prompt_counts.cut_prompts(aggregate.current(records, keys))
    opened = data_access.systems_refused([*records, *folder.ingests()])
    invalid = share > limit or bool(repeated) or bool(cut and cut["share"] > limit) or bool(opened)
    fatal = ending.fatal or plan.all_skipped()
    outcome = "failed" if fatal else "stopped" if ending.stopped else "invalid" if invalid else "valid"
    usage = _record_test_use(plan, folder, records, outcome)
    facts = {
        "status": outcome,
        "split": plan.options.split,
        "subset": len(plan.questions) < len(plan.data.questions),
        "reader": plan.models.reader.name if plan.models.reader else None,
        "judge": plan.models.judge_name,
        "token_counter": plan.count.name,
        "unit": plan.unit,
        "left_out": plan.left_out,
        "skipped": plan.skipped(),
        "plug_ins": plan.plug_ins(),
        "warnings": data_access.notes(plan.options.systems),
        "test_set_usage": {"test_scored": asdict(usage) if usage else None, "duplicate_attempts": repeated},
    }
    rounds, lines = _rounds(plan, records)
    results, table = write_results(
        folder,
        plan.data,
        keys,
        facts,
        no_judge=plan.models.no_judge,
        rounds=rounds,
        notes=list(filter(None, [*lines, str(usage or ""), test_set_usage.duplicates_message(repeated)])),
        verbose=verbose,
    )
    plan.log(f"\n{table}")
    for line in _closing_lines(plan, folder, ending, share, outcome, fatal):
        plan.log(line)
    if cut:
        plan.log_wrapped(f"{'INVALID' if cut['share'] > limit else 'CAUTION'}: {prompt_counts.sentence(cut)}")
    if outcome in ("valid", "invalid") and not plan.options.no_mlflow:
        from memometer.report.mlflow import log_run

        plan.log(log_run(folder, results, plan.data))
    return outcome


def _closing_lines(plan: Plan, folder: RunFolder, ending: Ending, share: float, outcome: str, fatal: str) -> list[str]:
    """Return the lines after the table: the reasons of failures, and the next command."""
    lines: list[str] = []
    resume_command = resume.command("eval", folder.path, *ending.resume_words)
    if outcome in ("failed", "stopped"):
        because = "the judge's scores would be withheld" if ending.judge_failed else "no call can succeed"
        reason = f"Stopped, because {because}: {fatal}." if fatal else "Stopped."
        reason = "Failed, because every system was skipped." if plan.all_skipped() else reason
        lines.append(f"{reason} Continue with: {resume_command}")
        if ending.judge_failed and fatal:
            lines.append(
                "That measures the judge again. To go on without judge accuracy, add --allow-failed-calibration."
            )
    limit = plan.options.fail_on_error
    if share > limit and outcome == "invalid":
        lines.append(
            f"INVALID: {share:.1%} are missing, more than --fail-on-error {limit:.1%}. Repeat the failed calls "
            f"with: {resume_command}"
        )
    return [*lines, f"Written to {folder.path}; view it with: memometer view {folder.path}"]


def _record_test_use(
    plan: Plan, folder: RunFolder, records: list[Record], status: str
) -> test_set_usage.TestSetUsage | None:
    """Record that the test split was evaluated; None if it was not."""
    scored = any(is_answered(record) for record in aggregate.current(records, plan.keys))
    if not scored or not plan.data.held_out(plan.options.split):
        return None
    return test_set_usage.record_use(folder, questions=len(plan.questions), status=status)


def _rounds(plan: Plan, records: list[Record]) -> tuple[dict[tuple[str, int], Any], list[str]]:
    """The benefit of further rounds, by system and budget: as metrics and as sentences."""
    metrics, lines = {}, []
    asked = {question.id: question for question in plan.questions}
    for name, reader in plan.systems.readers.items():
        if reader.rounds < 2:
            continue
        for budget in sorted({budget for system, budget, *_ in plan.keys if system == name}):
            contexts = multi_round_analysis.contexts_of(budget, reader.rounds)
            needed = multi_round_analysis.needed_tokens(
                partial(plan.memory_of, name), plan.conversations, plan.questions, contexts
            )
            mine = aggregate.current(records, [key for key in plan.keys if key[:2] == (name, budget)])
            found = multi_round_analysis.analyze([(asked[r["question_id"]], r) for r in mine], needed, contexts)
            metrics[name, budget] = found
            lines.append(f"{name} at {budget:,}: {multi_round_analysis.sentence(found, reader.rounds)}")
    return metrics, lines
