"""The documentation holds: its commands and code run on the sample, its links, paths and options exist, it builds."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from memometer import cli
from tests.conftest import ROOT

GENERATED = ("docs/reference/command-line.md", "docs/reference/python/", "docs/project/")
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "arbor/README.md", "data/README.md", "benchmarks/README.md")
    for path in ROOT.glob(pattern)
    if not path.relative_to(ROOT).as_posix().startswith(GENERATED)
)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SCRIPTS = {"evaluate.py": "eval", "optimize.py": "optimize", "train.py": "train"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: (language, text)."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The commands of a shell block, one a line."""
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


RUN = [page for page in PAGES if any(language in ("bash", "python") for language, _ in blocks(page))]


def run(command: str) -> None:
    """Run one command of a page in this process."""
    words = shlex.split(command, comments=True)
    match words:
        case ["memometer", *rest]:
            code = cli.main(rest)
        case ["python3", "-m", "venv", *_]:
            return  # tests/test_readme.py runs these
        case _ if "mlflow server" in command:
            return  # tests/test_mlflow.py starts it
        case ["python", "-m", module, *rest]:
            code = import_module(module).main(rest)
        case ["python", script, *rest]:
            assert script in SCRIPTS, f"only {list(SCRIPTS)} run in the tests: {command}"
            code = cli.main([SCRIPTS[script], *rest])
        case _:
            pytest.fail(f"not a command that the tests can run; mark the block `sh`: {command}")
    assert code in (0, None), f"{command} exits with {code}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Path) -> Path:
    """A working folder for all pages, with a database of MLflow."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(mlflow_tables, folder / "mydb.sqlite")
    (folder / "memometer").symlink_to(ROOT / "memometer")
    return folder


@pytest.fixture
def workplace(folder: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Path:
    """The working folder as the present one, with the sample for data, a store of its own, and no key."""
    monkeypatch.chdir(folder)
    for variable in ("TOGETHER_API_KEY", "OPENAI_API_KEY", "LOCOMO_WRONG_ANSWERS", "LOCOMO_LABEL_CORRECTIONS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LOCOMO_PATH", str(ROOT / "locomo" / "sample.json"))
    monkeypatch.setenv("MEMOMETER_URL", f"sqlite:///{folder}/default.db")
    return folder


@pytest.mark.filterwarnings("default")  # MLflow's database access warns
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_blocks_of_a_page_run(
    page: Path, workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ModuleType("__main__")  # the page's Python blocks, as one script
    monkeypatch.setitem(sys.modules, "__main__", script)
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, name_of(page), "exec", dont_inherit=True), vars(script))
        if language == "json" and "name" in (value := json.loads(text)):  # own data, which the commands below it read
            Path(f"{value['name']}.json").write_text(text, encoding="utf-8")
        for command in commands(text) if language == "bash" else ():
            capsys.readouterr()
            run(command)
            if command.startswith("python evaluate.py"):
                printed = capsys.readouterr().out
                own = "Own data: garden" in printed
                assert own or re.match("SAMPLE|SIMULATED", printed), f"{command} prints {printed[:200]}"


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_an_example_runs(example: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = None
    try:
        runpy.run_path(str(example), run_name="__main__")
    except SystemExit as stopped:
        code = stopped.code
    assert code in (0, None)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_json_blocks_parse(page: Path) -> None:
    for text in [text for language, text in blocks(page) if language == "json"]:
        json.loads(text)


def test_there_are_three_examples() -> None:
    assert len(EXAMPLES) == 3
    documented = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [example.name for example in EXAMPLES if f"examples/{example.name}" not in documented]


# ---------------------------------------------------------------- what pages refer to


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_paths_exist(page: Path) -> None:
    text = prose(page)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|#", link)]
    missing = []
    for link in links:
        target = (page.parent / link.split("#")[0]).resolve()
        if not target.exists() and not name_of(target).startswith(GENERATED):
            missing.append(link)
    places = r"`((?:memometer|locomo|tests|docs|benchmarks|examples|arbor)/[\w./-]*)`"
    missing += [path for path in re.findall(places, text) if not (ROOT / path).exists()]
    assert missing == []


@cache
def builder() -> ModuleType:
    """docs/build.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def reference() -> dict[str, str]:
    """Subcommand -> its help, with that of its own subcommands."""
    parts = re.split(r"^### memometer (\S+)$", builder().command_line(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def options_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


SUBCOMMAND: dict[str, Callable[[list[str]], str]] = {
    "memometer": lambda words: words[1],
    "python": lambda words: SCRIPTS.get(words[1], ""),
}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_commands_and_options_exist(page: Path) -> None:
    """In blocks that do not run, too, and in the text."""
    known = set().union(*map(options_of, reference().values()))
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    lines = [line for language, text in blocks(page) if language in ("sh", "bash") for line in commands(text)]
    for line in [*spans, *lines]:
        words = line.split("#")[0].split()
        if len(words) > 1 and words[0] in SUBCOMMAND and words[1] != "--help":
            name = SUBCOMMAND[words[0]](words)
            if re.fullmatch(r"[a-z][a-z-]*", name):
                assert name in reference(), line
                assert options_of(" ".join(words)) <= options_of(reference()[name]) | {"--help"}, line
        elif line in spans and line.startswith("--"):
            assert options_of(words[0]) <= known | SCRIPT_OPTIONS, f"{line}: no parser has it"


SOURCES = (*ROOT.glob("benchmarks/*.py"), ROOT / "memometer/commands/deploy.py")
SCRIPT_OPTIONS = options_of("".join(path.read_text(encoding="utf-8") for path in SOURCES))
"""Those of arbor/deploy.py and the benchmarks."""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="needs the docs extra")
def test_the_documentation_builds(tmp_path: Path) -> None:
    """Strict: a broken link, anchor, reference or docstring section fails."""
    keep = ("docs", "memometer", "locomo", "arbor")
    for name in keep:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.md"), ROOT / "zensical.toml"]:
        shutil.copy(path, tmp_path)
    done = subprocess.run(
        [sys.executable, "docs/build.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path for path in (tmp_path / "site").rglob("*.html")}
    assert "reference/command-line/index.html" in pages
    assert "reference/python/memory_system/index.html" in pages
    fetched = r"<(?:script|img)[^>]+src=\"https?://|<link[^>]+(?:stylesheet|preload)[^>]+https?://"
    assert not [name for name, path in pages.items() if re.search(fetched, path.read_text(encoding="utf-8"))]
