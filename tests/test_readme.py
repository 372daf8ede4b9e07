"""The README's first screen: its two commands are there, and the run command works as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)


def test_the_first_screen_holds_the_two_commands() -> None:
    job, tests = LINES
    first_screen = README.splitlines()[:30]
    assert job in first_screen
    assert job.endswith("evaluate.py --num-test 20 --budget-tokens 512")
    assert tests in first_screen
    assert tests.endswith("-m pytest")
    assert all("pip install -q -c constraints.txt" in command for command in LINES)
    assert len(README.splitlines()) <= 120


def run_job(cwd: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the README's job, in a working folder of its own and on the sample, after its set-up."""
    script, *words = LINES[0].split("&&")[-1].split()[1:]
    env = {k: v for k, v in os.environ.items() if k not in ("TOGETHER_API_KEY", "OPENAI_API_KEY")}
    env |= {"LOCOMO_PATH": str(ROOT / "locomo" / "sample.json"), **environment}
    command = [sys.executable, str(ROOT / script), *words, *options]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=1200)


@pytest.mark.slow
def test_the_run_command_works(tmp_path: Path, tiny: Path) -> None:
    done = run_job(tmp_path, "--run-dir", "runs/job")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.startswith("SAMPLE") for line in done.stdout.splitlines() if line.strip())
    assert "embedded:tiny" in done.stdout.splitlines()[0]
    systems = json.loads((tmp_path / "runs" / "job" / "results.json").read_text())["systems"]
    assert set(systems) == {"recent", "full_context", "adaptive", "none", "refusal", "oracle"}
    f1 = {name: next(iter(system["budgets"].values()))["f1"] for name, system in systems.items()}
    assert f1["oracle"] > f1["none"]


def test_the_run_command_works_without_mlflow(tmp_path: Path, tiny: Path) -> None:
    """`--no-mlflow`, with an MLflow that cannot be imported; one question."""
    (tmp_path / "mlflow.py").write_text("raise ImportError('MLflow is not here')")
    options = ("--num-test", "1", "--systems", "simple", "--run-dir", "run", "--no-mlflow")
    done = run_job(tmp_path, *options, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MLflow" not in done.stdout
