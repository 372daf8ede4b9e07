"""The adapters of examples/systems: all keep the shape of the protocol; with -m slow the real systems run."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from memometer.reader.signatures import Answer
from memometer.systems import worker
from memometer.systems.contract import check
from tests import memory_writer
from tests.conftest import ROOT, Reply, Server
from tests.evaluation import evaluate, records, remote, results

ADAPTERS = sorted((ROOT / "examples" / "systems").glob("*.py"))
WITH_MODEL = ("amem_memory", "cognee_memory", "graphiti_memory", "langmem_memory", "simplemem_memory")
WITHOUT_MODEL = [path for path in ADAPTERS if path.stem not in WITH_MODEL]


def class_of(path: Path) -> str:
    tree = ast.parse(path.read_text())
    (name,) = (node.name for node in tree.body if isinstance(node, ast.ClassDef))
    return name


def command_of(path: Path, parameters: str) -> str:
    """The command of an adapter in an environment of its own; skips the test where it cannot be made."""
    uv = shutil.which("uv")
    if not uv or not os.environ.get("MINILM_FOLDER"):
        pytest.skip("it needs uv, and all-MiniLM-L6-v2 (as sentence-transformers saves it) in MINILM_FOLDER")
    environment = [uv, "run", "--no-project", "--with-requirements", str(path), "python"]
    if subprocess.run([*environment, "-c", ""], check=False, capture_output=True).returncode:
        pytest.skip("its packages cannot be installed here")
    return " ".join(["cmd:" + " ".join(environment), worker.__file__, f"'{path}:{class_of(path)}?{parameters}'"])


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_an_adapter_has_the_methods_and_pins_its_packages(path: Path) -> None:
    kind = worker.load_class(f"{path}:{class_of(path)}")  # imports nothing foreign
    assert all(callable(getattr(kind, method, None)) for method in worker.METHODS)
    block = path.read_text().split("# ///")[1].removeprefix(" script\n")
    needed = tomllib.loads("".join(line.removeprefix("# ") for line in block.splitlines(keepends=True)))["dependencies"]
    assert needed
    assert all("==" in requirement or " @ https://" in requirement for requirement in needed)
    assert path.name in (path.parent / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", WITHOUT_MODEL, ids=lambda path: path.stem)
def test_the_real_system_keeps_the_contract(path: Path) -> None:
    faults = check(command_of(path, f"encoder={os.environ.get('MINILM_FOLDER')}"), timeout_seconds=600)
    assert [fault for fault in faults if "second time" not in fault] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_MODEL)
def test_the_model_calls_of_a_real_system_are_counted(name: str, tmp_path: Path, server: Server) -> None:
    counted = {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "embedding_calls": 0, "embedding_tokens": 0}

    def answer(number: int, body: dict[str, Any]) -> Reply:
        found = memory_writer.answer(body)
        usage = found["usage"]
        if "input" in body:
            counted["embedding_calls"] += 1
            counted["embedding_tokens"] += usage["prompt_tokens"]
        elif not is_reader(body):
            counted["calls"] += 1
            counted["prompt_tokens"] += usage["prompt_tokens"]
            counted["completion_tokens"] += usage["completion_tokens"]
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    server.answer = answer
    path = next(path for path in ADAPTERS if path.stem == name)
    encoder = "dimensions=64" if name == "cognee_memory" else f"encoder={os.environ.get('MINILM_FOLDER')}"
    (tmp_path / "talk.json").write_text(json.dumps(TALK))
    done = evaluate(*remote(server, "--data", "talk.json", "--split", "all", "--systems",
                            f"real={command_of(path, encoder)}", "--run-dir", "run", "--judge-model", "none"),
                    cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path / "run")
    assert found["skipped"] == {}
    stages = found["plug_in_calls"]["real"].values()
    assert {key: sum(stage[key] for stage in stages) for key in counted} == counted
    assert counted["calls"] > 0
    shown = [record["recalled"] for record in records(tmp_path / "run") if record["system"] == "real"]
    assert any("rye" in text for text in shown)


def is_reader(body: dict[str, Any]) -> bool:
    """True for a call of the evaluation itself."""
    return Answer.instructions[:60] in str(body["messages"][0]["content"])


TALK = {
    "id": "talk",
    "turns": [
        {"id": "a", "speaker": "Ann", "text": "I adopted a grey cat named Pixel.", "time": "2023-05-08T13:56:00"},
        {"id": "b", "speaker": "Bob", "text": "The bakery of my brother sells rye.", "time": "2023-05-08T13:57:00"},
        {"id": "c", "speaker": "Ann", "text": "I fly to Oslo on Friday.", "time": "2023-05-09T10:00:00"},
        {"id": "d", "speaker": "Bob", "text": "Oslo is cold in May.", "time": "2023-05-09T10:01:00"},
    ],
    "questions": [{"id": "q", "text": "What does the bakery sell?", "answer": "rye", "evidence": ["b"]}],
}
