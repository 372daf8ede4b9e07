"""A teacher model's replies to the training prompts. Each prompt is sent once; correct replies become targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
from dspy.utils.exceptions import LMError

from memometer.errors import UserError
from memometer.harness.model_check import check_reader
from memometer.models import resolve_models
from memometer.models.replay_cache import CallStore, StoredLM
from memometer.run import cost, progress
from memometer.run.folder import RunFolder
from memometer.run.progress import eprint
from memometer.train.plan import TrainingPlan
from memometer.train.reward import grade

MIN_REWARD = 0.5
"""Minimum reward of a reply that is used for training: a mostly right answer, or a right abstention."""
FAILED_SHARE = 0.05
"""Share of failed calls that stops the training."""


def load_teacher(plan: TrainingPlan) -> resolve_models.Model:
    """Load the teacher model.

    Raises:
        UserError: The teacher is not available, or --cost-limit is set and its price is unknown.
    """
    options = plan.options
    try:
        teacher = resolve_models.load(
            str(options.teacher),
            api_base=options.teacher_api_base,
            price=options.teacher_price,
            max_tokens=plan.hyperparameters.max_completion_tokens,
            log=eprint,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if options.cost_limit and teacher.price is None:
        raise UserError(f"cannot enforce --cost-limit: the price of {teacher.name} is unknown; set --teacher-price.")
    return teacher


def teacher_replies(plan: TrainingPlan, folder: RunFolder) -> dict[str, str]:
    """Return the teacher's correct replies by prompt id.

    All replies are stored in teacher.jsonl as they arrive, so a resumed training repeats no call.

    Raises:
        SearchStopped: The cost limit is reached, or no call can succeed.
        UserError: The teacher does not answer, or no reply is correct.
    """
    options, teacher = plan.options, load_teacher(plan)
    plan.eprint(_forecast(plan, teacher))

    def reason_to_stop() -> str:
        usage = store.spent["teacher"]
        if options.cost_limit and teacher.price:
            spent = teacher.price.usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
            if spent >= options.cost_limit:
                return f"${spent:,.2f} were spent of --cost-limit ${options.cost_limit:,.2f}; raise it with --resume"
        return ""

    store = CallStore(folder.path / "teacher.jsonl", fail_share=FAILED_SHARE, may_call=reason_to_stop)
    identity = f"{teacher.name} {teacher.revision} {options.teacher_api_base or ''}"
    if not len(store):
        check_first_call(teacher, plan.eprint)
    lm = StoredLM.of(teacher.lm, store, role="teacher", identity=identity)
    predict = dspy.Predict(dspy.Signature("messages: list[dict] -> reply: str"))
    found: dict[str, str] = {}
    failed = 0
    with dspy.context(lm=lm, adapter=_Verbatim(), disable_history=True):
        for prompt in progress.bar(plan.train, desc=f"{plan.data.prefix}teacher replies"):
            try:
                reply = str(predict(messages=[dict(message) for message in prompt.messages]).reply)
            except LMError:
                failed += 1
                continue
            if grade(prompt.case, reply).reward >= MIN_REWARD:
                found[prompt.id] = reply.strip()
    failures = f" {failed} calls failed." if failed else ""
    plan.eprint(f"The teacher answered {len(found):,} of {len(plan.train):,} prompts correctly.{failures}")
    if not found:
        raise UserError("no reply of the teacher is correct; use another --teacher, or --mode sft on the gold answers.")
    return found


def check_first_call(model: resolve_models.Model, log: Callable[[str], None]) -> None:
    """Make a first call to a model of a server, before anything is paid for.

    Args:
        model: The model.
        log: Receives what a user must know, such as parameters that the server refuses.

    Raises:
        UserError: The model does not answer.
    """
    if not model.is_remote:
        return
    found = check_reader(model)
    if found.failure:
        raise UserError(f"{model.name}: {found.failure}")
    for line in found.findings():
        log(line)


def _forecast(plan: TrainingPlan, teacher: resolve_models.Model) -> str:
    prompts = sum(teacher.count("\n".join(m["content"] for m in prompt.messages)) for prompt in plan.train)
    replies = len(plan.train) * teacher.max_tokens
    money = cost.money(cost.forecast(teacher, prompts, replies), teacher)
    return f"{teacher.name} gets {len(plan.train):,} prompts: at most {prompts + replies:,} tokens, {money}."


class _Verbatim(dspy.Adapter):
    """Sends messages unchanged; the whole reply is the output."""

    def format(self, signature: Any, demos: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = inputs["messages"]
        return messages

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return {"reply": completion}
