"""The `memometer` command: help, version, unknown commands, exit codes and interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from memometer import cli
from memometer.errors import UserError
from tests.conftest import ROOT

NAMES = {name: module for commands in cli.COMMANDS.values() for name, (module, _) in commands.items()}


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in NAMES)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert cli.main([]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_that_fits_the_terminal(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert "usage: " in text
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("memometer ")


@pytest.mark.parametrize(("name", "advice"), [("recal", "recall"), ("exprt", "export"), ("xyzzy", "--help")])
def test_unknown_command(name: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name]) == 2
    error = capsys.readouterr().err
    assert repr(name) in error
    assert advice in error


class InvalidResult(UserError):
    exit_code = 3


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("reason"), 2), (InvalidResult("reason"), 3), (KeyboardInterrupt(), 130)]
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: Any) -> int:
        raise error

    monkeypatch.setattr(import_module("memometer.commands.token"), "main", fail)
    assert cli.main(["token"]) == code
    message = capsys.readouterr().err
    assert message.startswith("memometer token: ")
    assert message.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["simulate", "--help"]])
def test_closed_standard_output_is_not_a_traceback(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "memometer", *words], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode in (0, 4), "argparse ignores the error and exits 0"


def test_missing_optional_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "memometer.serve.rest", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert cli.main(["serve"]) == 2
    assert "memometer[service]" in capsys.readouterr().err


def test_ctrl_c_during_an_import_prints_one_line(tmp_path: Path) -> None:
    (tmp_path / "slow_command.py").write_text("import time; print(flush=True); time.sleep(60)")
    script = (
        "import sys; from memometer import cli\n"
        "cli.COMMANDS['Remember']['slow'] = 'slow_command', ''\n"
        "sys.exit(cli.main(['slow']))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert process.stderr.read() == "memometer slow: interrupted.\n"
        assert process.wait() == 130
