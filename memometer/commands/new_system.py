"""`memometer new-system`: write a working memory system of the plug-in protocol with its contract test."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from memometer.errors import UserError

SYSTEM = '''"""{title}: a memory system for memometer.

Evaluate it with:
    memometer eval --recall-only --budgets 512,1024 --systems bm25,{system}
"""

from __future__ import annotations

from typing import Any


class {title}:
    """Ranks turns by the words that they share with the question. Put your memory in its place.

    Args:
        smallest: Shorter words are ignored. Set it with ?smallest=4.
    """

    def __init__(self, smallest: int = 3) -> None:
        self.smallest = smallest
        self.memories: dict[str, list[dict[str, Any]]] = {{}}

    def open(self, scope: str) -> None:
        """Start an empty memory; a scope is one conversation."""
        self.memories[scope] = []

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        """Remember turns with id, speaker, text, said_at (ISO 8601) and role."""
        self.memories[scope] += turns

    def ready(self, scope: str) -> None:
        """Return when everything that was added can be found."""

    def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        """Return up to `limit` items, the best first. `turn_ids` is None if the source is unknown."""
        asked = self.words(question)
        ranked = sorted(self.memories[scope], key=lambda turn: -len(asked & self.words(turn["text"])))
        return [{{"text": turn["text"], "turn_ids": [turn["id"]], "score": None}} for turn in ranked[:limit]]

    def words(self, text: str) -> set[str]:
        return {{word for word in text.lower().split() if len(word) >= self.smallest}}

    def close(self, scope: str) -> None:
        """Delete the memory and its files."""
        del self.memories[scope]

    def describe(self) -> dict[str, Any]:
        """Describe the system for the report. `degraded` lists what is missing, one sentence each."""
        return {{"name": "{title}", "versions": {{}}, "parameters": {{"smallest": self.smallest}}, "degraded": []}}
'''

TEST = '''"""The contract of the plug-in protocol: python -m pytest {test}"""

from pathlib import Path

from memometer.systems.contract import check

HERE = Path(__file__).parent


def test_{name}_keeps_the_contract() -> None:
    assert check({check}) == []
'''

REQUIREMENTS = "# The packages of the memory system, with versions: name==1.2.3\n"


def parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    p = argparse.ArgumentParser(
        description="Write a working memory system with its contract test. Without --command it is a class that runs "
        "inside the evaluation. With --command it is a folder with a worker, for a system that needs an environment of "
        "its own.",
        allow_abbrev=False,
    )
    p.add_argument("name", metavar="NAME", help="letters, digits and underscores, such as my_memory")
    p.add_argument("--command", action="store_true", help="write a folder with a worker that runs as a command")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, and print the next commands.

    Args:
        argv: The words of the command line; None for those of the process.

    Returns:
        The exit code.

    Raises:
        UserError: The name cannot be used, or a file exists or cannot be written.
    """
    args = parser().parse_args(argv)
    name = args.name.removesuffix(".py").replace("-", "_")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise UserError(f"NAME is {args.name!r}; use letters, digits and underscores, such as my_memory.")
    content = in_folder(name) if args.command else in_file(name)
    if existing := [path for path in content if path.exists()]:
        raise UserError(f"{existing[0]} exists; choose another name, or remove it.")
    try:
        for path, text in content.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written ({error.strerror}); change to another folder.") from error
    written = list(content)
    print(f"Written: {', '.join(map(str, written))}")
    print(f"Check it:    python -m pytest {written[-1]}")
    system = f"'{command(name)}'" if args.command else f"./{name}.py:{class_name(name)}"
    print(f"Evaluate it: memometer eval --recall-only --budgets 512,1024 --systems bm25,{system}")
    return 0


def class_name(name: str) -> str:
    """Return the name of the class: `my_memory` becomes MyMemory."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def command(name: str) -> str:
    """Return the system of --systems that runs the folder's worker with `uv` in an environment of its own."""
    worker = f"python {name}/worker.py {name}/{name}.py:{class_name(name)}"
    return f"cmd:uv run --no-project --with-requirements {name}/requirements.txt {worker}"


def in_file(name: str) -> dict[Path, str]:
    """Return path -> text of a system in this process; the test is the last."""
    title, test = class_name(name), f"test_{name}.py"
    check = f'f"{{HERE}}/{name}.py:{title}"'
    return {
        Path(f"{name}.py"): SYSTEM.format(title=title, system=f"./{name}.py:{title}"),
        Path(test): TEST.format(test=test, name=name, check=check),
    }


def in_folder(name: str) -> dict[Path, str]:
    """Return path -> text of a system that runs as a command; the test is the last."""
    title, folder = class_name(name), Path(name)
    test = folder / f"test_{name}.py"
    check = f'f"cmd:{{sys.executable}} {{HERE}}/worker.py {{HERE}}/{name}.py:{title}"'
    text = TEST.format(test=test, name=name, check=check).replace("from pathlib", "import sys\nfrom pathlib")
    return {
        folder / f"{name}.py": SYSTEM.format(title=title, system=f"'{command(name)}'"),
        folder / "worker.py": (files("memometer.systems") / "worker.py").read_text(encoding="utf-8"),
        folder / "requirements.txt": REQUIREMENTS,
        test: text,
    }
