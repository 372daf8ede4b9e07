"""The layout keeps its promises: what imports what, and what never stands in a tracked file."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

LAYERS = {
    "reading": {"ranking"},
    "ranking": set(),
    "memory_system": {"ranking", "reading"},
    "language_models": {"memory_system", "ranking", "reading"},
    "stores": {"ranking"},
    "cartridges": set(),
    "memories": {"cartridges", "memory_system", "language_models", "ranking", "reading", "stores"},
    "locomo": {"memory_system", "language_models", "ranking", "reading"},
    "optimization": {"memory_system", "language_models", "locomo", "ranking", "reading"},
    "training": {"memory_system", "language_models", "locomo", "ranking", "reading"},
}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_dependencies_point_one_way(layer: str) -> None:
    files = [ROOT / f"{layer}.py"] if (ROOT / f"{layer}.py").exists() else list((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        assert imports(path) & set(LAYERS) - {layer} <= LAYERS[layer], path.name


def test_packages_stay_light() -> None:
    assert not (ROOT / "arbor" / "__init__.py").exists(), "it would shadow the installed package of that name"
    assert not (ROOT / "data" / "__init__.py").exists()
    for package in ("cartridges", "locomo", "language_models", "reading", "optimization", "training"):
        assert not (ROOT / package / "__init__.py").read_text().strip()


@pytest.mark.parametrize("name", ["evaluate", "train"])
def test_help_imports_nothing_heavy(name: str) -> None:
    script = (
        f"import sys; sys.path.insert(0, '.'); import {name}\n"
        f"try: {name}.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'dspy', 'numpy', 'litellm', 'mlflow', 'nltk', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)


def test_every_dependency_is_pinned_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = (ROOT / "constraints.txt").read_text()
    pinned = {line.split("==")[0].strip().lower() for line in pins.splitlines() if "==" in line}
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    for requirement in wanted:
        name = re.split(r"[\s\[;<>=!]", requirement)[0].lower()
        assert name in pinned | {project["name"]}, name
    assert "://" not in pins
    assert "torch" not in pinned


def test_no_text_of_locomo_is_tracked(locomo: object) -> None:
    """CC BY-NC keeps it out: no turn, question or answer of six words or more stands in any tracked file."""
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    raw = json.loads(locomo.path.read_bytes())  # type: ignore[attr-defined]
    texts = {t["text"] for e in raw for v in e["conversation"].values() if isinstance(v, list) for t in v}
    texts |= {q["question"] for e in raw for q in e["qa"]} | {str(q.get("answer", "")) for e in raw for q in e["qa"]}
    long = [text for text in texts if len(text.split()) >= 6]
    for name in listed.split():
        content = (ROOT / name).read_text(errors="replace") if (ROOT / name).is_file() else ""
        assert not [text for text in long if text in content], name
