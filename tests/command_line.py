"""Command lines for the tests: in this process, or in one of their own if a test is about the process itself."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from memometer import cli
from tests.conftest import ROOT

SCRIPTS = {"evaluate.py": "eval", "optimize.py": "optimize", "train.py": "train"}


@dataclass(frozen=True)
class Finished:
    """The exit code and output of a command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def run_script(script: str, *words: str, cwd: Path, environment: Mapping[str, str | None] | None = None) -> Finished:
    """Run a script's command line in this process, which saves the seconds that importing DSPy takes.

    Args:
        script: "evaluate.py", "optimize.py" or "train.py".
        words: its arguments.
        cwd: its working directory.
        environment: variables that differ from this process's; None removes one.
    """
    return _run([SCRIPTS[script], *words], script, cwd, environment or {})


def run_command(*words: str, cwd: Path, environment: Mapping[str, str | None] | None = None) -> Finished:
    """Run `memometer WORDS` in this process."""
    return _run(words, None, cwd, environment or {})


def start_script(
    script: str, *words: str, cwd: Path, environment: Mapping[str, str | None] | None = None
) -> subprocess.Popen[str]:
    """Start a script in a process of its own."""
    variables = {name: value for name, value in {**os.environ, **(environment or {})}.items() if value is not None}
    command = [sys.executable, str(ROOT / script), *words]
    return subprocess.Popen(command, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(words: Sequence[str], prog: str | None, cwd: Path, environment: Mapping[str, str | None]) -> Finished:
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        warnings.resetwarnings()  # a user's process does not turn warnings into errors
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=ResourceWarning)
        patch.chdir(cwd)
        for name, value in environment.items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        try:
            code = cli.main(words, prog=prog)
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
    return Finished(code, stdout.getvalue(), stderr.getvalue())
