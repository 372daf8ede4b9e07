"""Every command on every kind of standard stream, and Ctrl-C at any moment."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memometer import cli
from tests.conftest import ROOT

MEMOMETER = [sys.executable, "-m", "memometer"]
COMMANDS = [name for commands in cli.COMMANDS.values() for name in commands]
RECALL = "--recall-only --num-test 2 --budgets 256 --systems recent --no-mlflow --data {data}"
ARGUMENTS = {
    **dict.fromkeys(COMMANDS, "--help"),
    "eval": RECALL,
    "compare": "run",
    "view": "run --export exported",
    "leaderboard": "run",
    "data": "--data {data}",
    "contamination": "run/report.md --data {data}",
    "optimize": "--dry-run --model embedded:tiny --data {data}",
    "doctor": "",
    "add": "naïve\N{CAT}",
    "recall": "cat",
    "list": "",
    "forget": "nothing",
    "export": "copy.cartridge",
    "import": "a.cartridge --memory other --replace",
    "token": "list",
    "mcp": "",
    "store": "check sqlite:///memory.db",
    "cartridge": "inspect a.cartridge",
}
"""Arguments of each command that need no network and take seconds at most."""

ENCODINGS = [{"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}]
SCRIPTS = {
    "evaluate.py": [str(ROOT / "evaluate.py"), *RECALL.split()],
    "optimize.py": [str(ROOT / "optimize.py"), "--help"],
    "train.py": [str(ROOT / "train.py"), "--help"],
    "deploy.py": [str(ROOT / "arbor" / "deploy.py"), "--list"],
    "split_data": ["-m", "locomo.split_data", "--data", "{data}"],
    "help": ["-m", "memometer", "--help"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a memory that holds text outside ASCII, a cartridge of it, and a run."""
    folder = tmp_path_factory.mktemp("place")
    for words in (["add", "a cat \N{CAT FACE} in a café"], ["export", "a.cartridge"]):
        subprocess.run([*MEMOMETER, *words], cwd=folder, env=environment(), check=True, capture_output=True)
    words = [word.format(data=ROOT / "locomo" / "sample.json") for word in RECALL.split()]
    subprocess.run(
        [*MEMOMETER, "eval", *words, "--run-dir", "run"], cwd=folder, env=environment(), check=True, capture_output=True
    )
    return folder


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return {**kept, "MEMOMETER_URL": "sqlite:///memory.db", "PYTHONPATH": str(ROOT), **more}


def words_of(name: str) -> list[str]:
    words = SCRIPTS.get(name) or ["-m", "memometer", name, *ARGUMENTS[name].split()]
    return [sys.executable, *(word.format(data=ROOT / "locomo" / "sample.json") for word in words)]


def is_clean(output: bytes) -> bool:
    return not any(mark in output for mark in (b"Traceback", b"Exception ignored", b"\x1b", b"\r"))


def check_streams(name: str, folder: Path) -> None:
    for encoding in ENCODINGS:
        done = subprocess.run(
            words_of(name), cwd=folder, env=environment(**encoding), stdin=subprocess.DEVNULL, capture_output=True
        )
        assert is_clean(done.stdout + done.stderr)
        assert done.returncode in (0, 1, 2)
    usual = done.returncode
    for ending in ("| true", ">&-", "<&- >&- 2>&-"):
        shell = ["bash", "-c", f'set -o pipefail; "$@" {ending}', "bash", *words_of(name)]
        done = subprocess.run(shell, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True)
        assert is_clean(done.stdout + done.stderr), ending
        assert done.returncode == usual, ending


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMMANDS, *SCRIPTS])
def test_a_command_works_on_any_standard_stream(name: str, place: Path) -> None:
    check_streams(name, place)


@pytest.mark.parametrize("name", ["list", "split_data"])
def test_some_commands_work_on_any_standard_stream(name: str, place: Path) -> None:
    check_streams(name, place)


@pytest.mark.parametrize("name", ["evaluate.py", "split_data", "help"])
def test_output_fits_a_terminal_of_80_columns(name: str, place: Path) -> None:
    reading, writing = pty.openpty()
    script = 'stty cols 80 <&1; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *words_of(name)], cwd=place, env=environment(), stdout=writing,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(writing)
    output = b""
    try:
        while block := os.read(reading, 65536):
            output += block
    except OSError:  # Linux reports the end of a terminal so
        pass
    assert process.wait() == 0
    lines = output.decode().split("\r\n")
    assert len(lines) > 3
    assert [line for line in lines if len(line) > 80 and "Written to" not in line] == []


def test_a_full_disk_is_one_sentence(place: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(words_of("help"), stdout=full, stderr=subprocess.PIPE, cwd=place, env=environment())
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1


HIDDEN = {
    "in a finalizer": "class A:\n  def __del__(self): wait()\nA()",
    "by a library that turns it into another error": "try:\n  import slow\nexcept BaseException: print('kept')",
    "at the end of the process": "import atexit; atexit.register(wait)",
    "twice": "try:\n  wait()\nfinally:\n  wait()",
}


@pytest.mark.parametrize("body", HIDDEN.values(), ids=list(HIDDEN))
def test_ctrl_c_ends_the_process_even_if_something_hides_it(body: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import waiting; waiting.wait()")
    (tmp_path / "waiting.py").write_text("import time\ndef wait():\n  print('ready', flush=True); time.sleep(30)")
    script = (
        "from memometer import entry_point\nfrom waiting import wait\n"
        f"def command():\n  exec({body!r}, {{'wait': wait}})\n  return 0\n"
        "entry_point.start(command, prog='it')"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(PYTHONPATH=path)
    ) as process:
        assert process.stdout
        assert process.stderr
        for _ in range(2 if "finally" in body else 1):
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"it: interrupted.\n"
        assert process.wait() == 130


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("name", ["ask", "serve", "evaluate.py", "split_data", "deploy.py"])
def test_ctrl_c_at_any_moment(name: str, seconds: float, place: Path) -> None:
    words = [*MEMOMETER, "ask", "cat?"] if name == "ask" else words_of(name)
    process = subprocess.Popen(words, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    if process.returncode == -signal.SIGINT or b"site.py" in error:
        pytest.skip("Python itself was still starting")
    assert is_clean(output + error)
    assert error.count(b"\n") <= 1
    assert process.returncode in (0, 1, 4, 130)
