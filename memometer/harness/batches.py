"""An evaluation through batches: all answers, then all verdicts, as a job that can be left and resumed.

Each stage runs the evaluation loop with the replies so far. The requests that have no reply become a batch; when it has
ended, the loop runs again. A reader in several rounds needs one batch for each round.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memometer.harness.loop import Answering
from memometer.harness.models import Models
from memometer.harness.options import EvaluateOptions
from memometer.harness.tasks import Task
from memometer.memory import Memory
from memometer.models.batch.engine import BatchedTask, BatchEngine, labelled
from memometer.models.batch.jobs import BatchesStopped, BatchJobs
from memometer.models.batch.providers import PACKAGES, PROVIDERS, Provider, provider_of
from memometer.models.bounded_retries import BoundedRetryLM
from memometer.models.resolve_models import Model
from memometer.reader.reader import predictors_of
from memometer.run.cost import Spending
from memometer.run.folder import Key, RunFolder, is_answered, latest
from memometer.run.options import OptionError
from memometer.systems.plugin_memory import PluginMemory

MAX_WITHOUT_REPLY = 2
"""If this many batches in a row bring no reply, the run stops with the server's words."""
MESSAGE_TOKENS = 16
"""Upper bound of the tokens that a chat template adds to a message."""

Pass = Callable[[Callable[[Key], bool], Answering], str]
"""(is a task still to be carried out, how its calls are answered) -> the reason why no call can succeed, or empty."""


def check(models: Sequence[Model | None], memories: Mapping[str, Memory[Any]]) -> None:
    """Refuse what batches cannot do, before anything is sent.

    Args:
        models: The models that answer and judge.
        memories: Name -> memory system.

    Raises:
        OptionError: No model has batch endpoints, or a memory calls a model while it reads a conversation.
    """
    used = [model for model in models if model]
    remote = [model for model in used if model.is_remote]
    others = [model.name for model in remote if model.name.partition("/")[0] not in PROVIDERS]
    if others := others or [model.name for model in used if not remote]:
        raise OptionError(
            f"--batch needs a model of OpenAI or Together (openai/... or together_ai/...); got {others[0]}."
        )
    packages = {PACKAGES[model.name.partition("/")[0]] for model in remote}
    if absent := sorted(name for name in packages if find_spec(name) is None):
        raise OptionError(f"--batch needs the package {absent[0]}; pip install -c constraints.txt '.[batch]'")
    if several := [model.name for model in remote if len(model.addresses) > 1]:
        raise OptionError(f"--batch takes one address; {several[0]} has several.")
    writing = [name for name, memory in memories.items() if isinstance(memory, PluginMemory) or predictors_of(memory)]
    if writing:
        raise OptionError(
            f"--batch sends only answers and verdicts; leave out {', '.join(writing)}, which may call a model while it "
            "reads a conversation, or run without --batch."
        )


def at_batch_price(model: Model) -> Model:
    """Return a model with the prices of a batch, for a forecast."""
    return replace(model, price=model.price.of_batch) if model.price else model


@dataclass
class Queue:
    """The batches of one model.

    Attributes:
        model: The model, whose replies come from batches.
        engine: Answers its calls.
        jobs: Its batches in the run folder.
    """

    model: Model
    engine: BatchEngine
    jobs: BatchJobs

    @classmethod
    def of(
        cls,
        model: Model,
        folder: Path,
        role: str,
        *,
        timeout_seconds: float,
        log: Callable[[str], None],
    ) -> Queue:
        """Replace the client of a model by an engine that is fed from the batches of a role."""
        api_base = model.addresses[0] if model.addresses else None
        provider: Provider = provider_of(model.name, api_base=api_base, timeout_seconds=timeout_seconds)
        engine = BatchEngine(model.name.partition("/")[2], token_limit=provider.token_limit)
        lm = BoundedRetryLM(
            model.name,
            engine=engine,
            temperature=model.lm.kwargs.get("temperature"),
            max_tokens=model.max_tokens,
            cache=False,
            retries=0,
            token_flag=model.lm.token_flag,
        )
        return cls(replace(model, lm=lm), engine, BatchJobs(folder, role, model.name, engine, provider, log=log))

    def bound(self, body: Mapping[str, Any]) -> float:
        """Return the dollars that a request costs at most; 0 if the price is unknown."""
        if self.model.price is None:
            return 0.0
        prompt = sum(self.model.count(message["content"]) + MESSAGE_TOKENS for message in body["messages"])
        return self.model.price.of_batch.usd(prompt, self.model.max_tokens)


class BatchedStage:
    """Carries out one stage, the answers or the verdicts.

    Args:
        queues: The batches of the stage's models.
        spending: The dollars so far, with the limit.
        stop: If it is set, the stage is left; the batches go on at the provider.
        log: Receives messages.

    Attributes:
        left: True if the stage has tasks that wait for a reply.
    """

    def __init__(
        self, queues: Sequence[Queue], spending: Spending, stop: threading.Event, log: Callable[[str], None]
    ) -> None:
        self.queues, self.spending, self.stop, self.log = queues, spending, stop, log
        self.left = False
        self._done: set[Key] = set()
        self._stage = ""

    def carry_out(self, name: str, carry_out: Pass) -> str:
        """Alternate between the loop and batches until no task waits.

        Args:
            name: Name of the stage; part of the identity of its requests.
            carry_out: Runs the loop once.

        Returns:
            The reason why the stage cannot go on now, with the server's words; empty if it is done or was left.
        """
        self._stage = name
        without_reply = 0
        try:
            while True:
                replies = self._replies
                ended = [queue.jobs.finish(self.stop) for queue in self.queues]
                self.left = self.stop.is_set() or any(queue.jobs.open for queue in self.queues)
                if self.stop.is_set():
                    return ""
                bad = next((status for status in ended if status is not None), None)
                without_reply = without_reply + 1 if bad and self._replies == replies else 0
                if bad and without_reply == MAX_WITHOUT_REPLY:
                    return f"the last batches {bad.state} without a reply ({bad.reason or 'no reason was given'})"
                if fatal := carry_out(lambda key: key not in self._done, self._answered):
                    return fatal
                wanted = [(queue, dict(queue.engine.wanted)) for queue in self.queues if queue.engine.wanted]
                for queue in self.queues:
                    queue.engine.wanted.clear()
                self.left = bool(wanted)
                if self.stop.is_set() or not wanted:
                    return ""
                for queue, requests in wanted:
                    if not self._submit(queue, requests):
                        return ""
        except BatchesStopped as error:
            self.left = True
            return str(error)

    @property
    def _replies(self) -> int:
        return sum(len(queue.engine.replies) for queue in self.queues)

    @contextmanager
    def _answered(self, key: Key) -> Iterator[BatchedTask]:
        with labelled([self._stage, *key]) as task:
            yield task
        if not task.waits:
            self._done.add(key)

    def _submit(self, queue: Queue, requests: Mapping[str, Mapping[str, Any]]) -> bool:
        """Submit the requests that the cost limit allows; False if it allows none."""
        limit = self.spending.limit
        allowed = dict(requests)
        if limit is not None:
            total, allowed = self.spending.usd, {}
            for id, body in requests.items():
                total += queue.bound(body)
                if total > limit:
                    break
                allowed[id] = body
        if not allowed:
            self.spending.held_back = (
                f"The run has cost ${self.spending.usd:,.4f}, and one more request could exceed --cost-limit "
                f"${limit:,.4f}."
            )
            self.stop.set()
            return False
        queue.jobs.submit(allowed)
        return True


def run_in_batches(
    tasks: Sequence[Task],
    models: Models,
    options: EvaluateOptions,
    carry_out: Callable[..., str],
    folder: RunFolder,
    spending: Spending,
    stop: threading.Event,
    *,
    log: Callable[[str], None],
) -> tuple[str, bool]:
    """Get all answers, then all verdicts, from batches.

    Args:
        tasks: All tasks of the run.
        models: The models that answer and judge.
        options: The options of the run.
        carry_out: `memometer.harness.loop.run` without tasks, reader, judge and `answering`.
        folder: The run folder.
        spending: The dollars so far, with the limit.
        stop: If it is set, the run is left; the batches go on at the provider.
        log: Receives messages.

    Returns:
        The reason why the run cannot go on now, and True if tasks wait for a batch.
    """

    def queue(model: Model | None, role: str) -> list[Queue]:
        if model is None or not model.is_remote:
            return []
        return [Queue.of(model, folder.path, role, timeout_seconds=options.timeout_seconds, log=log)]

    answers = queue(models.reader, "answers")
    verdicts = queue(models.judge_model, "verdicts")
    reader = answers[0].model if answers else models.reader
    judge = models.judge.with_lm(verdicts[0].model.lm) if models.judge and verdicts else models.judge

    def answer(is_open: Callable[[Key], bool], answering: Answering) -> str:
        open_tasks = [task for task in tasks if is_open(task.key)]
        return carry_out(open_tasks, reader=reader, judge=None, answering=answering)

    def grade(is_open: Callable[[Key], bool], answering: Answering) -> str:
        found = latest(folder.records())
        done = [task for task in tasks if task.key in found and is_answered(found[task.key])]
        return carry_out([task for task in done if is_open(task.key)], reader=reader, judge=judge, answering=answering)

    stages: list[tuple[str, list[Queue], Pass]] = [("answers", answers, answer)]
    for name, queues, pass_ in [*stages, *([("verdicts", verdicts, grade)] if judge else [])]:
        stage = BatchedStage(queues, spending, stop, log)
        reason = stage.carry_out(name, pass_)
        if reason or stage.left or stop.is_set():
            if any(batch.batch_id for each in queues for batch in each.jobs.open):
                log("The batches go on at the provider.")
            return reason, stage.left
    return "", False
