"""A teacher's replies to the training prompts: each asked once and kept, and learned from where they are right."""

from __future__ import annotations

from typing import Any

import dspy
from dspy.utils.exceptions import LMError

from memometer.harness.plan import Refused
from memometer.models import resolve_models
from memometer.models.downloads import WeightsUnavailable
from memometer.models.replay_cache import CallStore, StoredLM
from memometer.run import cost, progress
from memometer.run.folder import RunFolder
from memometer.run.progress import eprint
from memometer.train.plan import Job
from memometer.train.reward import grade

RIGHT = 0.5
"""From this reward on a reply is learned from; in training that is an answer mostly right, or a right abstention."""
FAILED_SHARE = 0.05


def load(job: Job) -> resolve_models.Model:
    """The teacher. Raises Refused, also where --cost-limit cannot be kept."""
    config = job.config
    try:
        teacher = resolve_models.load(
            config["teacher"],
            api_base=config["teacher_api_base"],
            price=config["teacher_price"],
            max_tokens=job.values["max_completion_tokens"],
            log=eprint,
        )
    except (ValueError, WeightsUnavailable) as error:
        raise Refused(str(error)) from error
    if config["cost_limit"] and teacher.price is None:
        raise Refused(f"--cost-limit cannot be kept, because the price of {teacher.name} is not known: --teacher-price")
    return teacher


def forecast(job: Job, teacher: resolve_models.Model) -> str:
    """What asking it costs at most."""
    prompts = sum(teacher.count("\n".join(m["content"] for m in prompt.messages)) for prompt in job.train)
    replies = len(job.train) * teacher.max_tokens
    money = cost.money(cost.forecast(teacher, prompts, replies), teacher)
    return f"{teacher.name} is asked {len(job.train):,} times: at most {prompts + replies:,} tokens, {money}."


def answers(job: Job, folder: RunFolder) -> dict[str, str]:
    """Prompt id -> the teacher's reply, of those worth learning from. Kept in teacher.jsonl as they come, so that a
    resumed training pays for none twice.

    Raises SearchStopped where the cost limit is reached or no call can succeed, and Refused where nothing is right.
    """
    teacher = load(job)
    eprint(f"{job.data.prefix}{forecast(job, teacher)}")

    def may_call() -> str:
        limit, usage = job.config["cost_limit"], store.spent["teacher"]
        if limit and teacher.price:
            spent = teacher.price.usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
            if spent >= limit:
                return f"${spent:,.2f} are spent and --cost-limit is ${limit:,.2f}; a higher one goes beside --resume"
        return ""

    store = CallStore(folder.path / "teacher.jsonl", fail_share=FAILED_SHARE, may_call=may_call)
    identity = f"{teacher.name} {teacher.revision} {job.config['teacher_api_base'] or ''}"
    lm = StoredLM.of(teacher.lm, store, role="teacher", identity=identity)
    found: dict[str, str] = {}
    failed = 0
    ask = dspy.Predict(dspy.Signature("messages: list[dict] -> reply: str"))
    with dspy.context(lm=lm, adapter=_Verbatim(), disable_history=True):
        for prompt in progress.bar(job.train, desc=f"{job.data.prefix}asked of the teacher"):
            try:
                reply = str(ask(messages=[dict(message) for message in prompt.messages]).reply)
            except LMError:
                failed += 1
                continue
            if grade(prompt.case, reply).reward >= RIGHT:
                found[prompt.id] = reply.strip()
    eprint(
        f"{job.data.prefix}The teacher is right about {len(found):,} of {len(job.train):,} prompts, and they are "
        f"learned from{f'; {failed} calls failed' if failed else ''}."
    )
    if not found:
        raise Refused(
            "none of the teacher's replies is right; use another --teacher, or --mode sft on the gold answers."
        )
    return found


class _Verbatim(dspy.Adapter):
    """Sends messages as they stand; the whole reply is the output."""

    def format(self, signature: Any, demos: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = inputs["messages"]
        return messages

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return {"reply": completion}
