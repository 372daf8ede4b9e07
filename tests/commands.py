"""The scripts' command lines: in this process, or in one of their own if a test is about the process itself."""

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

COMMANDS = {"evaluate.py": "eval", "optimize.py": "optimize", "train.py": "train"}


def run_script(script: str, words: Sequence[str]) -> int:
    """Run a script's command line in this process, which saves the seconds that importing DSPy takes.

    Args:
        script: "evaluate.py", "optimize.py" or "train.py".
        words: its arguments.

    Returns:
        The exit code.
    """
    try:
        return cli.main([COMMANDS[script], *words], prog=script)
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)


def evaluate(words: Sequence[str]) -> int:
    """Run evaluate.py."""
    return run_script("evaluate.py", words)


def train(words: Sequence[str]) -> int:
    """Run train.py."""
    return run_script("train.py", words)


def optimize(words: Sequence[str]) -> int:
    """Run optimize.py."""
    return run_script("optimize.py", words)


@dataclass(frozen=True)
class Finished:
    """The exit code and output of a command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def capture_script(
    script: str, words: Sequence[str], *, cwd: Path, environment: Mapping[str, str | None] | None = None
) -> Finished:
    """Run a script's command line in this process as a user's shell would, and capture its output.

    Args:
        script: as in `run_script`.
        words: its arguments.
        cwd: its working directory.
        environment: variables that differ from this process's; None removes one.
    """
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
        for name, value in (environment or {}).items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        code = run_script(script, words)
    return Finished(code, stdout.getvalue(), stderr.getvalue())


def start_script(
    script: str, words: Sequence[str], *, cwd: Path, environment: Mapping[str, str | None] | None = None
) -> subprocess.Popen[str]:
    """Start a script in a process of its own, with the arguments of `capture_script`."""
    variables = {name: value for name, value in {**os.environ, **(environment or {})}.items() if value is not None}
    command = [sys.executable, str(ROOT / script), *words]
    return subprocess.Popen(command, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
