"""A system of the plug-in protocol in a process of its own; it exchanges JSON lines over its standard streams."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from memometer.run.closed_files import without_protected
from memometer.systems import worker
from memometer.systems.connection import MOST_REPLY, error_text, seconds
from memometer.systems.plugin import PluginError

PROVIDER_VARIABLES = re.compile(
    r"(OPENAI|ANTHROPIC|TOGETHER|TOGETHERAI|GROQ|MISTRAL|COHERE|GEMINI|GOOGLE|DEEPSEEK|OPENROUTER|AZURE|FIREWORKS|XAI)_.*"
)
"""Environment variables of model providers. A worker does not get them, so that its calls cannot avoid the meter."""

PRIVATE_VARIABLES = re.compile(r"(LOCOMO|MEMOMETER|LONGMEMEVAL|REALTALK|BEAM|GATEMEM|MEMORYSTRESS|FORGETEVAL)_.*")
"""Environment variables that name the data of a benchmark. A worker does not get them."""


MOST_LINES = 1000
"""Lines of standard output that wait to be read; then the process has to wait."""


class Command:
    """A system in a process of its own, which exchanges JSON lines over standard input and output.

    Lines of standard output that are not a reply are ignored and counted. The process starts at the first call, and
    again after it died or was ended because of a time limit. It does not get the keys of model providers, nor the
    variables that name a benchmark's data.

    Args:
        command: The command line; it is not given to a shell.
        environment: Environment variables to set.
    """

    def __init__(self, command: str, environment: Mapping[str, str]) -> None:
        self.command = command
        self.environment = environment
        self.starts = 0
        self.metered = True
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.Queue[bytes | None] = queue.Queue()
        self._errors: deque[str] = deque(maxlen=5)
        self._number = 0
        self._lock = threading.Lock()
        self._strange = 0
        self._first_strange = ""
        self._peak = 0

    def begin(self) -> int:
        with self._lock:
            self._running()
        return self.starts

    def call(self, method: str, params: Mapping[str, Any], *, timeout_seconds: float) -> Any:
        with self._lock:
            deadline = time.monotonic() + timeout_seconds
            if method == "close" and (self._process is None or self._process.poll() is not None):
                return None  # the memory ended with its process
            process = self._running()
            self._number += 1
            request = json.dumps({"id": self._number, "method": method, "params": dict(params)})
            self._send(process, request, method, deadline, timeout_seconds)
            while True:
                left = deadline - time.monotonic()
                try:
                    if left <= 0:
                        raise queue.Empty
                    line = self._replies.get(timeout=left)
                except queue.Empty:
                    self._end()
                    raise PluginError(self._silence(method, timeout_seconds)) from None
                if line is None:
                    raise PluginError(f"the command ended during {method} ({self._ending()})")
                found = self._reply(line, method)
                if found is not None:
                    self._note_memory()
                    if found.get("error") is not None:
                        raise PluginError(f"{method} failed: {error_text(found['error'])}")
                    return found.get("result")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process and self._process.poll() is None:
            return self._process
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise PluginError(f"the command cannot be split into words ({error})") from error
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=worker_environment(self.environment),
                start_new_session=True,
            )
        except (OSError, IndexError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is empty"
            raise PluginError(f"the command cannot be started ({reason})") from error
        self.starts += 1
        self._process, self._replies, self._errors = process, queue.Queue(MOST_LINES), deque(maxlen=5)
        threading.Thread(target=_read_replies, args=(process, self._replies), daemon=True).start()
        threading.Thread(target=_read_errors, args=(process.stderr, self._errors), daemon=True).start()
        atexit.register(self.stop)
        return process

    def _send(
        self, process: subprocess.Popen[bytes], request: str, method: str, deadline: float, timeout_seconds: float
    ) -> None:
        """Write a request; a process that does not read its input would block the write."""
        problem: list[OSError] = []

        def write() -> None:
            try:
                assert process.stdin
                process.stdin.write(request.encode("ascii") + b"\n")
                process.stdin.flush()
            except (OSError, ValueError) as error:
                problem.append(error if isinstance(error, OSError) else OSError(str(error)))

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(max(0.0, deadline - time.monotonic()))
        if writer.is_alive():
            self._end()
            raise PluginError(f"{method}: the command did not read its input within {seconds(timeout_seconds)}")
        if problem:
            raise PluginError(f"the command ended before {method} ({self._ending()})")

    def _reply(self, line: bytes, method: str) -> dict[str, Any] | None:
        """Return the reply in a line; None if the line is anything else."""
        if len(line) > MOST_REPLY:
            self._end()
            raise PluginError(f"{method}: a line of the reply is longer than {MOST_REPLY >> 20} MiB")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            if b'"id"' in line and line.lstrip().startswith(b"{"):
                raise PluginError(f"{method}: the reply is not UTF-8") from None
            text = line.decode("utf-8", "replace")
        for start in (0, text.find("{")):  # after the first brace, for a print without a newline before the reply
            try:
                found = json.loads(text[max(0, start) :])
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) and ("result" in found or "error" in found):
                if found.get("id") == self._number:
                    return found
                return None  # a late reply to an earlier call
        if text.strip():
            self._strange += 1
            self._first_strange = self._first_strange or " ".join(text.split())[:80]
        return None

    def _silence(self, method: str, timeout_seconds: float) -> str:
        printed = f"; it printed {self._first_strange!r}, which is not a reply" if self._first_strange else ""
        return f"{method} got no reply within {seconds(timeout_seconds)}{printed}"

    def _ending(self) -> str:
        """Describe how the process ended, with the last line of its standard error."""
        process = self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process:
                process.wait(timeout=2)
        time.sleep(0.05)  # the thread that reads standard error
        code = process.poll() if process else None
        how = f"exit code {code}" if code is None or code >= 0 else f"signal {-code}"
        last = next((line for line in reversed(self._errors) if line.strip()), "")
        return f"{how}; its last error line: {last[:200]}" if last else how

    def _note_memory(self) -> None:
        if self._process:
            self._peak = max(self._peak, _resident_bytes(self._process.pid))

    def _end(self, *, patience: float = 0.0) -> None:
        """End the process and its children, after `patience` seconds in which it may end by itself."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError, ValueError):
            if process.stdin:
                process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
        for number, limit in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=limit)
                break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # children that ignored the first signal
        for stream in (process.stdout, process.stderr):
            with contextlib.suppress(OSError, ValueError):
                if stream and process.poll() is not None:
                    stream.close()

    def stop(self) -> None:
        atexit.unregister(self.stop)
        self._end(patience=5.0)

    def source(self) -> str:
        try:
            words = shlex.split(self.command)
        except ValueError:
            return ""
        return worker_files_digest(words)

    def notices(self) -> list[str]:
        if not self._strange:
            return []
        lines = "1 line" if self._strange == 1 else f"{self._strange:,} lines"
        return [f"{lines} of its standard output were not replies and were ignored, the first: {self._first_strange}"]

    def peak_memory(self) -> int | None:
        return self._peak or None


def worker_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command: this process's, without keys of model providers and paths of data.

    Args:
        more: Variables to set.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not PROVIDER_VARIABLES.fullmatch(name) and not PRIVATE_VARIABLES.fullmatch(name)
    }
    return {**without_protected(kept.items()), "PYTHONUNBUFFERED": "1", **more}


def worker_files_digest(words: list[str]) -> str:
    """Return one digest of the source files that the words of a command name; empty if they name none."""
    files = [worker.Path(re.sub(r"(\.\w+):\w+(\?.*)?$", r"\1", word)) for word in words[1:]]
    digests = [worker.files_digest(file) for file in files if file.is_file() and file.stat().st_size < 5_000_000]
    return " ".join(digests)


def _read_replies(process: subprocess.Popen[bytes], lines: queue.Queue[bytes | None]) -> None:
    """Put the lines of standard output into a queue, and None at its end. A line that is too long ends the reading."""
    assert process.stdout

    def put(found: bytes | None) -> None:
        while True:
            try:
                return lines.put(found, timeout=0.5)
            except queue.Full:
                if process.poll() is not None:
                    return None  # nobody waits for it

    line = bytearray()
    with contextlib.suppress(OSError, ValueError):
        while chunk := os.read(process.stdout.fileno(), 1 << 16):
            *full, rest = chunk.split(b"\n")
            for part in full:
                line += part
                put(bytes(line))
                line.clear()
            line += rest
            if len(line) > MOST_REPLY:
                break
    if line:
        put(bytes(line))
    put(None)


def _read_errors(stream: Any, lines: deque[str]) -> None:
    """Keep the last lines of standard error. Reading all of it keeps the process from blocking."""
    rest = b""
    with contextlib.suppress(OSError, ValueError):
        while chunk := os.read(stream.fileno(), 1 << 16):
            *full, rest = (rest + chunk)[-(1 << 16) :].split(b"\n")
            lines.extend(line.decode("utf-8", "replace") for line in full[-5:])
    if rest:
        lines.append(rest.decode("utf-8", "replace"))


def _resident_bytes(pid: int) -> int:
    """Return the peak memory of a process and its children on Linux; 0 elsewhere."""
    total = 0
    todo = [pid]
    while todo:
        one = todo.pop()
        try:
            with open(f"/proc/{one}/status", encoding="ascii", errors="replace") as file:
                found = re.search(r"VmHWM:\s+(\d+) kB", file.read())
            total += int(found[1]) * 1024 if found else 0
            with open(f"/proc/{one}/task/{one}/children", encoding="ascii") as file:
                todo += [int(child) for child in file.read().split()]
        except OSError:
            continue
    return total
