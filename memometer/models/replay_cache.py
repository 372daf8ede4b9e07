"""A replay cache of model calls: a long search stores every reply at once, and reads it when the search runs again.

A search that was killed continues without paying twice.

    store = CallStore(Path("calls.jsonl"))
    lm = StoredLM.of(reader.lm, store, role="reader", identity="embedded/tiny b179c9523d0e")
    with store.billed() as bill:
        dspy.Predict("question -> answer", lm=lm)(question="…")
    bill.total_tokens                    # the same, whether the reply is new or from the cache

Calls are equal if they have the same `identity` (model, weights, address), messages, sampling parameters and rollout
id, and if the search had made the same number of copies with that rollout id before. DSPy's own cache ignores the
address and the number of copies, so a search that samples a question again would get the same sample again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError

from memometer.models.bounded_retries import BoundedRetryLM
from memometer.models.chat_servers import ChatServers
from memometer.models.errors import FATAL, GIVE_UP_AFTER, describe
from memometer.models.replies import EmptyReplyError, LMNoAnswerError
from memometer.models.usage import Usage, metered

CLIENT = {"api_key", "api_base", "base_url", "timeout", "headers", "extra_headers"}
"""Parameters that do not influence a reply; the address is part of `identity`."""

MIN_CALLS = 20
"""The share of failed calls is checked from this number of calls on."""


class SearchStopped(BaseException):
    """The search makes no further call; the message is the reason.

    It is a BaseException, because DSPy's optimisers score an Exception in a program as zero and go on.

    Args:
        why: the reason.
        outcome: stopped, invalid (too many calls failed) or failed (no call can succeed).
    """

    def __init__(self, why: str, *, outcome: str = "stopped") -> None:
        super().__init__(why)
        self.outcome = outcome


_BILL: ContextVar[Usage | None] = ContextVar("bill", default=None)


class CallStore:
    """The replies of one search in an append-only file. Thread-safe.

    Args:
        path: the file. Its replies are loaded, and an incomplete last line is removed.
        fail_share: the search ends if a larger share of calls fails.
        may_call: returns the reason why no further call may be made, or an empty string.

    Raises:
        ValueError: a line of the file is not a call.
    """

    def __init__(self, path: Path, *, fail_share: float = 1.0, may_call: Callable[[], str] = lambda: "") -> None:
        self.path = path
        self.fail_share = fail_share
        self.may_call = may_call
        self.on_call: Callable[[], None] = lambda: None  # called after each new call
        self.spent: dict[str, Usage] = defaultdict(Usage)  # by role, of all stored calls
        self.made = 0  # calls of this process
        self.failed: Counter[str] = Counter()  # failed calls of this process, by reason
        self.answered = 0  # calls of this process with an answer
        self.empty = 0  # calls of this process without an answer, which a prompt may have caused
        self.failed_before: Counter[str] = Counter()  # failed calls of earlier processes
        self._known: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._in_flight: dict[str, threading.Lock] = {}
        self._copies: Counter[int] = Counter()
        self._closed: SearchStopped | None = None
        self._read()

    def __deepcopy__(self, memo: dict[int, object]) -> CallStore:
        return self

    def __len__(self) -> int:
        """The number of stored calls."""
        return len(self._known)

    def _read(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(self.path, content.rfind(b"\n") + 1)
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
            try:
                record = json.loads(line)
                if "failed" in record:
                    self.failed_before[record["failed"]] += 1
                    continue
                self._known[record["key"]] = {name: record[name] for name in ("key", "role", "outputs", "usage")}
                self.spent[record["role"]].add(Usage(**record["usage"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"line {number} of {self.path} is not a call ({error!r}); delete it, and the call is repeated."
                ) from error

    @contextmanager
    def billed(self) -> Iterator[Usage]:
        """Count the calls of this thread inside the block. A call from the cache counts with its original usage."""
        bill = Usage()
        token = _BILL.set(bill)
        try:
            yield bill
        finally:
            _BILL.reset(token)

    def draw(self, rollout_id: int) -> int:
        """Return the number of earlier copies of a model with this rollout id.

        The main thread makes the copies in an order that depends on the seed only.
        """
        with self._lock:
            self._copies[rollout_id] += 1
            return self._copies[rollout_id] - 1

    def reply(self, key: str, role: str, call: Callable[[], Any]) -> Any:
        """Return the stored reply of a key, or call the model and store its reply. Equal concurrent calls run once.

        Raises:
            SearchStopped: no call may be made, or none can succeed.
        """
        with self._lock:
            mine = self._in_flight.setdefault(key, threading.Lock())
        with mine:
            record = self._known.get(key)
            if record is None:
                record = self._call(key, role, call)
        if (bill := _BILL.get()) is not None:
            bill.add(Usage(**record["usage"]))
        return record["outputs"]

    def _stop(self, why: str, *, outcome: str = "stopped") -> SearchStopped:
        """Block all further calls, also those of threads that an optimiser leaves running."""
        self._closed = self._closed or SearchStopped(why, outcome=outcome)
        return self._closed

    def _call(self, key: str, role: str, call: Callable[[], Any]) -> dict[str, Any]:
        if self._closed:
            raise self._closed
        if why := self.may_call():
            raise self._stop(why)
        with self._lock:
            self.made += 1
        usage = Usage()
        try:
            with metered() as usage:
                # The same value as when it is read from the file, without unpaired surrogates.
                outputs = json.loads(json.dumps(call(), ensure_ascii=False).encode("utf-8", "replace"))
        except EmptyReplyError as error:
            outputs = [""]  # the prompt's reader finds no answer in it, and the prompt gets its score
            self._count_empty(error)
        except ContextWindowExceededError as error:  # the prompt's fault, unless every prompt is too long
            self._count_empty(error)
            raise
        except FATAL as error:
            raise self._stop(f"no call can succeed: {describe(error)}", outcome="failed") from error
        except Exception as error:  # any error is counted and raised again
            self._count_failure(describe(error))
            raise
        record = {"key": key, "role": role, "outputs": outputs, "usage": asdict(usage)}
        with self._lock:
            self._append(record)
            self._known[key] = record
            self.spent[role].add(usage)
            self.answered += outputs != [""]
            self.on_call()
        return record

    def _append(self, record: dict[str, Any]) -> None:
        line = (json.dumps(record, separators=(",", ":")) + "\n").encode("ascii")
        try:
            with self.path.open("ab", buffering=0) as file:
                if file.write(line) != len(line):
                    raise OSError("the line was not written completely; is the disk full?")
        except OSError as error:  # a call that cannot be stored must not be paid for
            raise self._stop(f"{self.path} cannot be written: {error}", outcome="failed") from error

    def _count_empty(self, error: Exception) -> None:
        with self._lock:
            self.empty += 1
            self._check_failures(describe(error))

    def _count_failure(self, reason: str) -> None:
        with self._lock:
            self._append({"failed": reason})
            self.failed[reason] += 1
            self._check_failures(reason)

    def _check_failures(self, reason: str) -> None:
        failed, made = self.failed.total(), self.made
        without_answer = failed + self.empty
        if (without_answer >= GIVE_UP_AFTER and not self.answered) or (
            made >= MIN_CALLS and failed > self.fail_share * made
        ):
            raise self._stop(f"{without_answer} of {made} calls failed, the last with {reason}", outcome="invalid")


class StoredLM(BoundedRetryLM):
    """A language model whose replies are stored in a `CallStore`."""

    store: CallStore
    role: str
    identity: str
    draw = 0

    @classmethod
    def of(cls, lm: dspy.LM, store: CallStore, *, role: str, identity: str) -> StoredLM:
        """Return a copy of a model that stores its calls and does not use DSPy's cache.

        Args:
            lm: the model.
            store: stores the calls.
            role: the store sums usage by role.
            identity: distinguishes models of the same name by weights, adapter and address.
        """
        stored = cls.__new__(cls)
        stored.__dict__.update({"refused": {}, "log": lambda _: None, **lm.copy(cache=False).__dict__})
        stored.store, stored.role, stored.identity = store, role, identity
        return stored

    def copy(self, **changes: Any) -> StoredLM:
        """Return a copy with other parameters, as `dspy.LM.copy` does."""
        copied: StoredLM = super().copy(**changes)
        if changes.get("rollout_id") is not None:
            copied.draw = self.store.draw(changes["rollout_id"])
        return copied

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        sampling = {name: value for name, value in {**self.kwargs, **kwargs}.items() if name not in CLIENT}
        content = [self.identity, prompt, messages, sampling, self.draw]
        key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]
        if sampling.get("temperature") and not isinstance(self.engine, str | ChatServers):
            kwargs["seed"] = int(key[:7], 16)  # an engine in this process samples the same for the same seed
        return self.store.reply(
            key, self.role, lambda: super(StoredLM, self).__call__(prompt, messages=messages, **kwargs)
        )


def caused_by_program(error: BaseException) -> bool:
    """Return True if the program caused an error: its prompt is too long, or its reply does not parse."""
    return isinstance(error, AdapterParseError | ContextWindowExceededError) and not isinstance(error, LMNoAnswerError)
