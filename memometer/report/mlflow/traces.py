"""Traces of an evaluation in MLflow: one for each question, with DSPy's calls as its spans, and its assessments."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from memometer.benchmarks.protocol import FREE, Question
from memometer.judging import sample_scores
from memometer.judging.graders import grader_of, graders_of
from memometer.models.errors import describe
from memometer.report.mlflow.database import open_database
from memometer.run.folder import Record

LINKED = 100
"""Maximum number of traces that MLflow links to a run in one call."""

PAGE = 500
"""Number of traces that are read at once."""

Traced = Callable[[str, int, Question, str], AbstractContextManager[Callable[[Record], None]]]
"""(system, budget in tokens, question, option order) -> a block in which the question is answered. The block calls the
yielded function with the record of the answer."""


def question_inputs(question: Question) -> dict[str, str]:
    """Return the inputs of a trace and of a record of an evaluation dataset. MLflow matches the two by them."""
    return {"question": question.text, "question_id": question.id}


def expectations(question: Question) -> dict[str, Any]:
    """Return the gold answer under the name that MLflow's scorers use, and the evidence."""
    gold = {} if question.gold is None else {"expected_response": question.gold}
    return gold | {"evidence": list(question.evidence)}


def question_traces() -> Traced:
    """Prepare mydb.sqlite for traces.

    A trace holds prompts and replies and no keys. It costs about 5 ms per call. Nothing is switched on outside the
    blocks: other DSPy programs of the process are not traced, before, meanwhile or afterwards.

    Raises:
        ImportError: MLflow's DSPy part is not installed.
    """
    os.environ.setdefault("MLFLOW_ASYNC_TRACE_LOGGING_MAX_QUEUE_SIZE", "100000")  # the default drops half of a fast run
    import dspy
    from mlflow.dspy.callback import MlflowCallback
    from mlflow.entities import SpanType

    mlflow = open_database()
    callback = _redacting_callback(MlflowCallback)

    @contextmanager
    def traced(system: str, budget: int, question: Question, order: str) -> Iterator[Callable[[Record], None]]:
        others = [known for known in dspy.settings.callbacks if not isinstance(known, MlflowCallback)]
        with (
            dspy.context(callbacks=[*others, callback]),
            mlflow.start_span(f"{system} {budget}" if budget else system, span_type=SpanType.CHAIN) as span,
        ):
            options = {} if order == FREE else {"options": question.options(order)}
            span.set_inputs({**question_inputs(question), **options})
            mlflow.update_current_trace(tags={"system": system, "budget_tokens": str(budget)})
            for name, value in expectations(question).items():
                mlflow.log_expectation(trace_id=span.trace_id, name=name, value=value)

            def end(record: Record) -> None:
                span.set_outputs(record["answer"])
                recall = record["recall"]
                span.set_attributes({"memory_tokens": recall["tokens"], "turns": recall["turn_ids"]})
                if reason := record["error"] or record["memory_error"]:
                    span.set_attribute("reason", reason)
                    span.set_status("ERROR")
                record["trace_id"] = span.trace_id

            yield end

    return traced


def _redacting_callback(base: type) -> Any:
    """Create MLflow's callback for DSPy, without the secrets that a provider may repeat in an error message.

    MLflow's methods do nothing unless its autologging is switched on for the whole process. The unwrapped methods do
    not depend on it.
    """

    def redacted(method: Callable[..., None]) -> Callable[..., None]:
        def on_end(self: Any, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
            # MLflow would record the message and the traceback of the original exception.
            method(self, call_id, outputs, None if exception is None else Exception(describe(exception)))

        return on_end

    methods = {name: inspect.unwrap(method) for name, method in vars(base).items() if name.startswith("on_")}
    hidden = {name: redacted(method) if name.endswith("_end") else method for name, method in methods.items()}
    return type("RedactingCallback", (base,), hidden)()


def assess(client: Any, run_id: str, pairs: Iterable[tuple[Question, Record]], withheld: Mapping[str, str]) -> None:
    """Link the traces of some questions to a run, with their assessments: F1, evidence recall and the judge's verdict.

    Assessments that the run has from before are corrected, so that a resumed run can be logged again.

    Args:
        client: The MLflow client.
        run_id: The run.
        pairs: Questions and the attempts that count. Attempts without a trace are ignored.
        withheld: Names of graders -> the reason why their accuracy is withheld.
    """
    traced = {record["trace_id"]: (question, record) for question, record in pairs if "trace_id" in record}
    ids = list(traced)
    for start in range(0, len(ids), LINKED):
        client.link_traces_to_run(ids[start : start + LINKED], run_id)
    location, page = client.get_run(run_id).info.experiment_id, None
    while ids:
        found = client.search_traces(
            locations=[location], run_id=run_id, include_spans=False, max_results=PAGE, page_token=page
        )
        for trace in found:
            if trace.info.trace_id in traced:
                _assess_trace(run_id, trace.info, *traced[trace.info.trace_id], withheld)
        if not (page := found.token):
            return


def _assess_trace(run_id: str, info: Any, question: Question, record: Record, withheld: Mapping[str, str]) -> None:
    """Log the assessments that a trace lacks, and correct those that differ."""
    import mlflow

    existing = {each.name: each for each in info.assessments}
    for found in _assessments(run_id, question, record, withheld):
        before = existing.get(found.name)
        if before is None:
            mlflow.log_assessment(info.trace_id, found)
        elif (before.value, getattr(before, "error", None)) != (found.value, getattr(found, "error", None)):
            mlflow.update_assessment(info.trace_id, before.assessment_id, found)


def _assessments(run_id: str, question: Question, record: Record, withheld: Mapping[str, str]) -> Iterator[Any]:
    from mlflow.entities import AssessmentError, AssessmentSource, Feedback
    from mlflow.tracing.constant import AssessmentMetadataKey

    shared = {"metadata": {AssessmentMetadataKey.SOURCE_RUN_ID: run_id}}
    for measure in ("f1", "evidence_recall"):
        value = sample_scores.by_question([(question, record)], measure).get(question.id)
        if value is not None:
            yield Feedback(name=measure, value=value, **shared)
    for grader in graders_of([record])[:1]:
        verdict = [each for each in record["verdicts"] if grader_of(each) == grader][-1]
        failure = AssessmentError("MISSING", verdict["reason"]) if verdict["label"] == "missing" else None
        yield Feedback(
            name="judge",
            value=None if failure else verdict["label"],
            error=failure,
            rationale=f"Judge accuracy is withheld: {why}" if (why := withheld.get(grader.name)) else verdict["raw"],
            source=AssessmentSource("LLM_JUDGE", grader.judge),
            **shared,
        )
