"""Evaluations of the sample against the loopback server, and what they leave in their run folders."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.commands import Finished, capture_script, start_script
from tests.conftest import ROOT, Server

SECRET = "sk-test-0123456789abcdefghij"
ENVIRONMENT = {
    "LOCOMO_PATH": str(ROOT / "locomo" / "sample.json"),
    "OPENAI_API_KEY": SECRET,
    "TOGETHER_API_KEY": None,
}


def evaluate(*words: str, cwd: Path, **environment: str) -> Finished:
    """Run evaluate.py on the sample in this process."""
    return capture_script("evaluate.py", words, cwd=cwd, environment={**ENVIRONMENT, **environment})


def start_evaluation(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """Start evaluate.py on the sample in a process of its own."""
    return start_script("evaluate.py", words, cwd=cwd, environment=ENVIRONMENT)


def remote(server: Server, *more: str) -> list[str]:
    """The options of an evaluation whose model is the loopback server."""
    return ["--model", "openai/scripted", "--api-base", server.url, "--tokenizer", "o200k_base", "--no-mlflow",
            "--budget-tokens", "150", "--retries", "0", "--context-window", "8000", *more]  # fmt: skip


def unwrapped(printed: str) -> str:
    """Output without the prefix of its data and without line breaks, as sentences are searched in it."""
    return " ".join(line.removeprefix("SAMPLE").strip() for line in printed.splitlines())


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def everything(folder: Path) -> str:
    """The text of all files below a folder."""
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
