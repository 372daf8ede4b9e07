"""Resume a run: read its options, and refuse to continue if anything that shapes its results has changed.

    options, identity = resume.read(path, EvaluateOptions)
    plan = make_plan(options)
    resume.check(path, identity, plan.identity())

The command then reopens the folder and continues. `evaluate`, `optimize` and `train` use the same functions. A run's
manifest holds `config` (`Options.as_json()`) and `identity` (name -> digest or short text; `configuration` is the
digest of `config`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from memometer.run.folder import RunFolderError, changes, read_manifest
from memometer.run.options import Options

OptionsT = TypeVar("OptionsT", bound=Options)


def command(name: str, path: Path, *more: str) -> str:
    """Return the command line that continues a run, for the script or the command that runs now.

    Args:
        name: The command, such as `eval`.
        path: The run folder.
        more: Further words.
    """
    script = {"eval": "evaluate.py"}.get(name, f"{name}.py")
    program = ["python", sys.argv[0]] if Path(sys.argv[0]).name == script else ["memometer", name]
    return shlex.join([*program, "--resume", str(path), *more])


def read(path: Path, kind: type[OptionsT], *, required: str = "") -> tuple[OptionsT, dict[str, str]]:
    """Read the options and the identity that a run was started with.

    Args:
        path: The run folder.
        kind: The options class of the command.
        required: A key that the saved options must have; other commands do not have it.

    Returns:
        The options and the identity as they were saved.

    Raises:
        RunFolderError: The folder holds no run of this command, or one of an incompatible version.
    """
    manifest = read_manifest(path)
    config: dict[str, Any] = manifest["config"]
    if required and required not in config:
        raise RunFolderError(f"{path} is a run of another command (its options have no {required}); name another run.")
    try:
        return kind.of_saved(config), manifest["identity"]
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"{path} has options that this version cannot use ({error}); start a new run.") from error


def check(path: Path, saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Refuse to continue a run under another identity.

    Args:
        path: The run folder.
        saved: The identity in the manifest.
        current: The identity that the same options have now.

    Raises:
        RunFolderError: The two differ, or files of the run were changed by hand. The message names every difference.
    """
    if found := changes(path):
        raise RunFolderError(f"{path} cannot be resumed: {found[0]} Restore the files, or start a new run.")
    changed = [name for name in {**saved, **current} if current.get(name) != saved.get(name)]
    if changed:
        raise RunFolderError(
            f"{path} cannot be resumed: {', '.join(changed)} changed since it began, and results of two configurations "
            "may not be mixed. Restore what changed, or start a new run."
        )
