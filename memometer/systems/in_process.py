"""A system of the plug-in protocol in this process, in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from memometer.systems import worker
from memometer.systems.connection import seconds
from memometer.systems.plugin import PluginError


class InProcess:
    """A system in this process. It runs in a thread of its own, and what it prints goes to standard error.

    Args:
        target: `module:Class`, or `path/to/file.py:Class`.
        parameters: Arguments of the constructor.
        environment: Environment variables to set while the system is constructed. Later they would reach the calls of
            the evaluation itself.
        build: Makes the system, in place of the class that `target` names.
    """

    def __init__(
        self,
        target: str,
        parameters: Mapping[str, Any],
        environment: Mapping[str, str],
        *,
        build: Callable[[], Any] | None = None,
    ) -> None:
        self.target = target
        self.environment = environment
        self.starts = 0
        self.metered = True
        self._build = build or (lambda: worker.make(worker.load_class(target), dict(parameters)))
        self._tasks: queue.Queue[tuple[Callable[[], Any], queue.Queue[Any]] | None] = queue.Queue()
        self._caller: worker.Caller | None = None
        self._lock = threading.Lock()
        self._stuck = ""

    def begin(self) -> int:
        return self.starts

    def call(self, method: str, params: Mapping[str, Any], *, timeout_seconds: float) -> Any:
        with self._lock:
            if self._stuck:
                raise PluginError(self._stuck)
            if not self.starts:
                self.starts = 1
                threading.Thread(target=self._work, daemon=True, name=f"memory system {self.target}").start()
            replies: queue.Queue[Any] = queue.Queue()
            self._tasks.put((lambda: self._reply(method, dict(params)), replies))
            try:
                reply = replies.get(timeout=timeout_seconds)
            except queue.Empty:
                self._stuck = f"{method} did not return within {seconds(timeout_seconds)}"
                raise PluginError(self._stuck) from None
        if "error" in reply:
            raise PluginError(f"{method} failed: {reply['error']}" if self._caller else str(reply["error"]))
        return reply["result"]

    def _reply(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._caller is None:
                with _variables(self.environment):
                    self._caller = worker.Caller(self._build())
            return self._caller.reply({"id": 0, "method": method, "params": params})
        except worker.LoadError as error:
            return {"error": str(error)}

    def _work(self) -> None:
        with _prints_to_stderr():
            while task := self._tasks.get():
                function, replies = task
                try:
                    replies.put(function())
                except BaseException as error:  # noqa: BLE001 - a system may raise anything; the run goes on
                    replies.put({"error": f"{type(error).__name__}: {error}"})
            if self._caller:
                self._caller.stop()

    def stop(self) -> None:
        self._tasks.put(None)

    def source(self) -> str:
        return worker.source_digest(type(self._caller.system)) if self._caller else ""

    def notices(self) -> list[str]:
        return []

    def peak_memory(self) -> int | None:
        return None


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and restore them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _ThreadOutput:
    """Standard output that sends the text of chosen threads to standard error."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.threads: set[int] = set()

    def _chosen(self) -> Any:
        return sys.stderr if threading.get_ident() in self.threads else self.stream

    def write(self, text: str) -> int:
        return int(self._chosen().write(text))

    def flush(self) -> None:
        self._chosen().flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chosen(), name)


@contextlib.contextmanager
def _prints_to_stderr() -> Any:
    """Send what this thread prints to standard error, which holds no results."""
    output = sys.stdout if isinstance(sys.stdout, _ThreadOutput) else _ThreadOutput(sys.stdout)
    sys.stdout = output
    output.threads.add(threading.get_ident())
    try:
        yield
    finally:
        output.threads.discard(threading.get_ident())
        if not output.threads and sys.stdout is output:
            sys.stdout = output.stream
