"""The adapters of examples/systems: all keep the shape of the protocol; with -m slow the real systems run."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from memometer.systems import worker
from memometer.systems.contract import check
from tests.conftest import ROOT

ADAPTERS = sorted((ROOT / "examples" / "systems").glob("*.py"))
WITHOUT_MODEL = [path for path in ADAPTERS if path.stem != "amem_memory"]


def class_of(path: Path) -> str:
    tree = ast.parse(path.read_text())
    (name,) = (node.name for node in tree.body if isinstance(node, ast.ClassDef))
    return name


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_an_adapter_has_the_methods_and_pins_its_packages(path: Path) -> None:
    kind = worker.load_class(f"{path}:{class_of(path)}")  # imports nothing foreign
    assert all(callable(getattr(kind, method, None)) for method in worker.METHODS)
    block = path.read_text().split("# ///")[1].removeprefix(" script\n")
    needed = tomllib.loads("".join(line.removeprefix("# ") for line in block.splitlines(keepends=True)))["dependencies"]
    assert needed
    assert all("==" in requirement for requirement in needed)
    assert path.name in (path.parent / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", WITHOUT_MODEL, ids=lambda path: path.stem)
def test_the_real_system_keeps_the_contract(path: Path) -> None:
    uv, folder = shutil.which("uv"), os.environ.get("MINILM_FOLDER")
    if not uv or not folder:
        pytest.skip("it needs uv, and all-MiniLM-L6-v2 (as sentence-transformers saves it) in MINILM_FOLDER")
    environment = [uv, "run", "--no-project", "--with-requirements", str(path), "python"]
    if subprocess.run([*environment, "-c", ""], check=False, capture_output=True).returncode:
        pytest.skip("its packages cannot be installed here")
    command = " ".join([*environment, worker.__file__, f"'{path}:{class_of(path)}?encoder={folder}'"])
    faults = check(f"cmd:{command}", timeout_seconds=600)
    assert [fault for fault in faults if "second time" not in fault] == []
