"""The process of a command: standard streams that always work, Ctrl-C, errors and exit codes.

Each script ends with `start(main, prog=...)`. This module imports little, because Ctrl-C cannot be handled before.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the public `signal` takes five milliseconds more
import io
import os
import sys

from memometer.errors import UserError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn

EXTRAS = {
    **dict.fromkeys(("fastapi", "prometheus_client", "uvicorn"), "service"),
    **dict.fromkeys(
        ("alembic", "dspy", "litellm", "mlflow", "scipy", "sqlalchemy", "xllamacpp", "yaml", "pydantic"), "eval"
    ),
    "mcp": "mcp",
}
"""Optional package -> the extra that installs it."""

ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # LiteLLM would download its price table on import
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Defaults of environment variables that other libraries read."""

NO_TERMINAL = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Further defaults if standard error is not a terminal: progress bars of other libraries would fill a log."""

FAILED = 1
INTERRUPTED = 130


def start(command: Callable[[], int], *, prog: str) -> NoReturn:
    """Prepare this process, run a command in it, and exit.

    Args:
        command: Returns an exit code.
        prog: The program name in messages.
    """
    interrupts = _Interrupts(prog)
    _open_missing_streams()
    outputs = [output for name in ("stdout", "stderr") if (output := _replace_output(name))]
    set_library_defaults()
    code: Any = 0
    try:
        code = run(command, prog=prog, on_interrupt=interrupts.exit)
    except SystemExit as stop:  # argparse
        code = stop.code
    interrupts.command_ended = True
    for output in outputs:
        if output.problem:
            code = code or FAILED
            print(f"{prog}: standard output cannot be written ({output.problem}).", file=sys.stderr)
    sys.exit(code)


def set_library_defaults() -> None:
    """Set the environment variables of other libraries that have no value yet; before these are imported."""
    for variable, value in (ENVIRONMENT if sys.stderr.isatty() else ENVIRONMENT | NO_TERMINAL).items():
        os.environ.setdefault(variable, value)


def run(command: Callable[[], int], *, prog: str, on_interrupt: Callable[[], object] | None = None) -> int:
    """Run a command in a process that is prepared, or that is not its own.

    Args:
        command: Returns an exit code.
        prog: The program name in messages.
        on_interrupt: Called after Ctrl-C in place of the message.

    Returns:
        The exit code of the command, that of the UserError that it raised, 2 if an optional package is missing, or 130
        after Ctrl-C. Each of these errors is one line on standard error.
    """
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"{prog}: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS:
            raise
        print(f"{prog}: {name} is not installed; run: pip install 'memometer[{EXTRAS[name]}]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if on_interrupt:
            on_interrupt()
        print(f"{prog}: interrupted.", file=sys.stderr)
        return INTERRUPTED


class _Interrupts:
    """Handles Ctrl-C: the first one raises KeyboardInterrupt, unless an import or the end of the process hides it."""

    def __init__(self, prog: str) -> None:
        self._message = f"{prog}: interrupted.\n".encode()
        self._raised = False
        self.command_ended = False
        if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # a shell ignores it for background jobs
            _signal.signal(_signal.SIGINT, self._handle)
        sys.unraisablehook = self._unraisable

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._raised or self.command_ended or _importing(frame):
            self.exit()
        self._raised = True
        raise KeyboardInterrupt

    def _unraisable(self, problem: Any) -> None:
        """Python ignores an exception in a finalizer or callback, and so would ignore Ctrl-C."""
        if isinstance(problem.exc_value, KeyboardInterrupt):
            self.exit()
        sys.__unraisablehook__(problem)

    def exit(self) -> NoReturn:
        """Print one line and end the process at once: destructors of native libraries may wait for ever."""
        try:
            os.write(2, self._message)
        finally:
            os._exit(INTERRUPTED)


def _importing(frame: FrameType | None) -> bool:
    """True inside an import: libraries turn an interrupt there into other errors, and nothing is lost by leaving."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _open_missing_streams() -> None:
    """Open the null device in place of closed standard streams (`>&-`).

    Otherwise the next file that is opened, such as a database, would receive the output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def _replace_output(name: str) -> _UntilClosed | None:
    """Make a standard stream replace characters that its encoding lacks, and ignore output after its reader left."""
    stream = getattr(sys, name)
    if not isinstance(stream, io.TextIOWrapper):
        return None
    errors = "replace" if name == "stdout" else "backslashreplace"
    if stream.isatty():
        stream.reconfigure(errors=errors)
        return None
    stream.flush()
    output = _UntilClosed(stream.fileno(), "w", closefd=False)
    buffered = io.BufferedWriter(output)
    replaced = io.TextIOWrapper(
        buffered, stream.encoding, errors, line_buffering=stream.line_buffering, write_through=stream.write_through
    )
    setattr(sys, name, replaced)
    return output


class _UntilClosed(io.FileIO):
    """A file that ignores all output after a failed write.

    Attributes:
        problem: The reason of the failure; empty if there was none, or if the reader closed a pipe (`| head`).
    """

    problem = ""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.problem = error.strerror or str(error)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return memoryview(data).nbytes
