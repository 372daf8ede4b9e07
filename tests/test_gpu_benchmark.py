"""The GPU benchmark, end to end on the CPU with one step of each training. Needs PyTorch and TRL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("trl", reason="TRL is not installed")
pytest.importorskip("gguf", reason="gguf is not installed")


def test_the_gpu_run_from_its_preparation_to_its_analysis(tmp_path: Path) -> None:
    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    sample = str(ROOT / "locomo" / "sample.json")
    run(str(ROOT / "benchmarks/gpu/prepare.py"), "--data", sample, "--budget", "64", "--limit", "4", "--no-wheels")
    pieces = sorted((tmp_path / ".gpu").glob("part*/piece"))
    assert len(pieces) == 2
    assert max(piece.stat().st_size for piece in pieces) <= 57_000_000
    (tmp_path / "memometer").symlink_to(ROOT / "memometer")
    (tmp_path / "locomo").symlink_to(ROOT / "locomo")
    small = ["--sft-steps", "1", "--grpo-steps", "1", "--prompts", "1", "--group", "2", "--batch", "2", "--test", "2"]
    small += ["--validation", "1", "--eval-batch", "2", "--seconds", "100000", "--work", str(tmp_path / "work")]
    run(".gpu/base/run.py", *small)
    results = tmp_path / "gpu_results"
    arms = {json.loads(line)["arm"] for line in (results / "answers.jsonl").read_text().splitlines()}
    assert arms == {"base", "base with examples", "supervised", "after GRPO"}
    assert (results / "after_grpo.tar.gz").exists()
    said = run(str(ROOT / "benchmarks/gpu/analyse.py"), str(results))
    assert "after GRPO" in said
    assert "estimated" in said
