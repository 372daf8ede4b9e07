"""Calls that are made once: every reply of a long search is written down as it arrives, and read from there when the
same search runs again, so that a killed one goes on where it was without paying twice.

    store = CallStore(Path("calls.jsonl"))
    lm = StoredLM.of(reader.lm, store, role="reader", identity="embedded/tiny b179c9523d0e")
    with store.billed() as bill:
        dspy.Predict("question -> answer", lm=lm)(question="…")
    bill.total_tokens                    # the same, whether the reply was made now or before

What tells two calls apart: who answers (`identity`: model, weights, address), the messages, the sampling, DSPy's
rollout id, and how many copies with that rollout id the search had made before. DSPy's own cache knows neither the
address nor the last of these: a search that samples a question again would be given the same sample again.
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
from memometer.models.errors import FATAL, describe
from memometer.models.usage import Usage, metered

CLIENT = {"api_key", "api_base", "base_url", "timeout", "headers", "extra_headers"}
"""What a call needs and its reply does not depend on; the address is part of `identity`."""

GIVE_UP_AFTER = 8
"""So many calls that all fail at the start end a search."""
LEAST = 20
"""With so many calls the share of failed ones says something."""


class SearchStopped(BaseException):
    """No further call is made; the message is why. `outcome` is stopped, invalid where too many calls failed, or
    failed where none can succeed.

    A BaseException, because DSPy's optimisers take any Exception in a program for a score of zero and go on.
    """

    def __init__(self, why: str, *, outcome: str = "stopped") -> None:
        super().__init__(why)
        self.outcome = outcome


_BILL: ContextVar[Usage | None] = ContextVar("bill", default=None)


class CallStore:
    """The replies of one search, by call, in a file that is only ever appended to. Safe to share between threads.

    Args:
        path: the file; what it holds is known from the start. A last line that a kill cut short is cut off. Raises
            ValueError for a line that is no call.
        fail_share: more failed calls than this share end the search.
        may_call: says why no further call may be made, or the empty string.
    """

    def __init__(self, path: Path, *, fail_share: float = 1.0, may_call: Callable[[], str] = lambda: "") -> None:
        self.path = path
        self.fail_share = fail_share
        self.may_call = may_call
        self.on_call: Callable[[], None] = lambda: None  # after each call that was made
        self.spent: dict[str, Usage] = defaultdict(Usage)  # by role, of all calls ever made
        self.made = 0  # by this process
        self.failed: Counter[str] = Counter()  # reason -> calls of this process
        self.failed_before: Counter[str] = Counter()  # and of those before it
        self._known: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._in_flight: dict[str, threading.Lock] = {}
        self._copies: Counter[int] = Counter()
        self._closed: SearchStopped | None = None
        self._read()

    def __deepcopy__(self, memo: dict[int, object]) -> CallStore:
        return self

    def __len__(self) -> int:
        """Calls that need not be made again."""
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
                    f"{self.path} holds a line that is no call ({number}: {error!r}); delete it, and it is asked again."
                ) from error

    @contextmanager
    def billed(self) -> Iterator[Usage]:
        """Counts the calls of this thread inside the block; one answered from the store with what it took when it was
        made."""
        bill = Usage()
        token = _BILL.set(bill)
        try:
            yield bill
        finally:
            _BILL.reset(token)

    def draw(self, rollout_id: int) -> int:
        """How many copies of a model with this rollout id there were before. The search's main thread makes them, in an
        order that its seed settles."""
        with self._lock:
            self._copies[rollout_id] += 1
            return self._copies[rollout_id] - 1

    def reply(self, key: str, role: str, call: Callable[[], Any]) -> Any:
        """What the store has for a key, else what `call` returns. Of equal calls at once one is made.

        Raises SearchStopped where no call may be made or none can succeed, and what `call` raises.
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
        """Why no call is made any more, by whatever threads an optimiser leaves behind."""
        self._closed = self._closed or SearchStopped(why, outcome=outcome)
        return self._closed

    def _call(self, key: str, role: str, call: Callable[[], Any]) -> dict[str, Any]:
        if self._closed:
            raise self._closed
        if why := self.may_call():
            raise self._stop(why)
        with self._lock:
            self.made += 1
        try:
            with metered() as usage:
                # As it will be read again; and without half a surrogate pair, which no prompt or file can hold.
                outputs = json.loads(json.dumps(call(), ensure_ascii=False).encode("utf-8", "replace"))
        except ContextWindowExceededError:
            raise  # the prompt is at fault, not the provider
        except FATAL as error:
            raise self._stop(f"no call can succeed: {describe(error)}", outcome="failed") from error
        except Exception as error:  # of any kind: it is counted and goes on to the caller
            self._count_failure(describe(error))
            raise
        record = {"key": key, "role": role, "outputs": outputs, "usage": asdict(usage)}
        with self._lock:
            self._append(record)
            self._known[key] = record
            self.spent[role].add(usage)
            self.on_call()
        return record

    def _append(self, record: dict[str, Any]) -> None:
        line = (json.dumps(record, separators=(",", ":")) + "\n").encode("ascii")
        try:
            with self.path.open("ab", buffering=0) as file:
                if file.write(line) != len(line):
                    raise OSError("it could not be written whole; is the disk full?")
        except OSError as error:  # what cannot be written down must not be paid for
            raise self._stop(f"{self.path} cannot be written: {error}", outcome="failed") from error

    def _count_failure(self, reason: str) -> None:
        with self._lock:
            self._append({"failed": reason})
            self.failed[reason] += 1
            failed, made = self.failed.total(), self.made
        if (made >= GIVE_UP_AFTER and failed == made) or (made >= LEAST and failed > self.fail_share * made):
            raise self._stop(f"{failed} of {made} calls failed, the last with {reason}", outcome="invalid")


class StoredLM(BoundedRetryLM):
    """A language model whose replies are kept in a store."""

    store: CallStore
    role: str
    identity: str
    draw = 0

    @classmethod
    def of(cls, lm: dspy.LM, store: CallStore, *, role: str, identity: str) -> StoredLM:
        """The same model, uncached by DSPy, its calls kept in `store`.

        Args:
            role: under which the store adds up what its calls took.
            identity: tells it from any other model of the same name: weights, adapter, address.
        """
        stored = cls.__new__(cls)
        stored.__dict__.update(lm.copy(cache=False).__dict__)
        stored.store, stored.role, stored.identity = store, role, identity
        return stored

    def copy(self, **changes: Any) -> StoredLM:
        copied: StoredLM = super().copy(**changes)
        if changes.get("rollout_id") is not None:
            copied.draw = self.store.draw(changes["rollout_id"])
        return copied

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        sampling = {name: value for name, value in {**self.kwargs, **kwargs}.items() if name not in CLIENT}
        asked = [self.identity, prompt, messages, sampling, self.draw]
        key = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:32]
        if sampling.get("temperature") and not isinstance(self.engine, str):
            kwargs["seed"] = int(key[:7], 16)  # an engine in this process samples the same for the same seed
        return self.store.reply(
            key, self.role, lambda: super(StoredLM, self).__call__(prompt, messages=messages, **kwargs)
        )


def at_fault_itself(error: BaseException) -> bool:
    """Whether a program has to answer for an error: a prompt too long, a reply that it did not get into form."""
    return isinstance(error, AdapterParseError | ContextWindowExceededError)
