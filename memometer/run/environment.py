"""The environment of a run for its manifest: code, packages and time."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("memometer", "dspy", "litellm", "mlflow-skinny", "nltk", "scipy", "tiktoken", "xllamacpp")


def user_data_folder() -> Path:
    """Return the folder for this user's data: the default store and the log of test-set usage."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "memometer"


def provenance() -> dict[str, Any]:
    """Time (UTC), Python version, package versions (None if not installed) and commit of this process."""
    return {
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _commit(),
    }


def digest(value: object) -> str:
    """A short hash of a value that JSON can write. It is the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def recalling_code() -> str:
    """A hash of the code and weights that determine recall and reading. If it changes, the memory is another one."""
    root = Path(__file__).parent.parent
    folders = ("systems", "retrieval", "reader", "store")
    files = [root / name for name in ("memory.py", "budget.py", "token_counters.py", "harness/fit_ranker.py")]
    files += [path for folder in folders for path in (root / folder).glob("*.*")]
    return digest(
        {str(path.relative_to(root.parent)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
    )


def scoring_code(loader: Callable[..., object]) -> str:
    """A hash of the code that determines prompts, metrics and verdicts. If it changes, scores are not comparable.

    Args:
        loader: The function that loads the benchmark's data. Its package, or its file outside a package, is included.
    """
    root = Path(__file__).parent.parent
    own = Path(inspect.getfile(inspect.unwrap(loader)))
    folders = [root / name for name in ("benchmarks", "judging", "models")]
    files = [path for folder in folders for path in folder.glob("*.py")]
    files += own.parent.glob("*.py") if (own.parent / "__init__.py").exists() else [own]
    return digest([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(files)])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this code, with + if files were changed; None outside a checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
