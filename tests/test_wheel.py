"""The built wheel, installed in an empty environment and used from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from memometer.cli import COMMANDS
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

ENCODER = ROOT / "tests" / "fixtures" / "formats" / "encoder"
TIMEOUT_SECONDS = 600


@dataclass
class Installation:
    """The environment with the wheel, and an empty working folder."""

    wheel: Path
    python: Path
    packages: Path
    folder: Path

    def run(self, *command: str, **environment: str) -> str:
        """Run a command in the working folder; return its output."""
        # Nothing of this checkout is on the path, and bytecode would count as written files.
        env: Mapping[str, str] = {
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **environment,
        }
        done = subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout

    def files(self) -> set[Path]:
        return set(self.packages.rglob("*"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Build the wheel from a copy of the sources, and install it in a new environment.

    The environment shares our dependencies; with WHEEL_DEPENDENCIES=install it gets its own, those of the wheel alone.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("memometer", "locomo"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("memory_system.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)], check=True
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    alone = os.environ.get("WHEEL_DEPENDENCIES") == "install"
    install = ["install", "-c", str(ROOT / "constraints.txt")] if alone else ["install", "--no-deps"]
    subprocess.run([*pip, "--python", str(python), *install, f"{wheel}[eval]"], check=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    if not alone:
        (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (folder / "empty").mkdir()
    return Installation(wheel, python, packages, folder / "empty")


def test_top_level_names(installed: Installation) -> None:
    with zipfile.ZipFile(installed.wheel) as file:
        names = {name.split("/")[0] for name in file.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"memometer", "locomo", "memory_system.py"}


def test_every_command_has_help_and_nothing_is_written_into_the_package(installed: Installation) -> None:
    before = installed.files()
    assert installed.run("memometer", "--version").startswith("memometer 0")
    assert "Remember:" in installed.run("memometer", "--help")
    script = (
        "import sys; from memometer.cli import main\n"
        "for name in sys.argv[1:]:\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit as done: assert done.code == 0, name\n"
    )
    names = [name for commands in COMMANDS.values() for name in commands]
    assert installed.run(str(installed.python), "-c", script, *names).count("usage: ") == len(names)

    installed.run("memometer", "add", "Nadia sold the kayak.", "--encoder", str(ENCODER))
    assert "kayak" in installed.run("memometer", "recall", "Who sold a kayak?", "--encoder", str(ENCODER))
    assert (installed.folder / ".local" / "share" / "memometer" / "memory.db").exists()

    installed.run("memometer", "simulate", "--out", "simulated.json", "--conversations", "4")
    assert (installed.folder / "simulated.json").stat().st_size
    installed.run(str(installed.python), "-m", "locomo.split_data", "--data", "simulated.json")

    sample = str(installed.packages / "locomo" / "sample.json")
    words = ["eval", "--recall-only", "--split", "all", "--budgets", "64,128", "--no-mlflow", "--run-dir", "run"]
    output = installed.run("memometer", *words, LOCOMO_PATH=sample)
    assert "SAMPLE" in output
    assert (installed.folder / "run" / "results.json").exists()
    assert installed.files() == before


def test_a_memory_needs_no_evaluation_library(installed: Installation) -> None:
    script = (
        "import sys\n"
        "for name in ('dspy', 'litellm', 'mlflow', 'scipy', 'torch'): sys.modules[name] = None\n"
        "import memometer; from memometer.cli import main\n"
        "with memometer.open_memory('light.db') as memory: memory.add('Nadia sold the kayak.')\n"
        "words = ['--memory-url', 'sqlite:///other.db', '--encoder', sys.argv[1]]\n"
        "assert main(['add', 'Nadia sold the kayak.', *words]) == main(['recall', 'kayak', *words]) == 0\n"
    )
    assert "kayak" in installed.run(str(installed.python), "-c", script, str(ENCODER))
