"""Options are made from arguments or from a saved run, and a resumed run is refused if its identity changed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from memometer.run import resume
from memometer.run.folder import RunFolder, RunFolderError
from memometer.run.options import OptionError, Options


@dataclass(frozen=True)
class Example(Options):
    RENAMED: ClassVar[Mapping[str, str]] = {"old_name": "steps"}

    steps: int = 3
    budgets: tuple[int, ...] = ()
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise OptionError(f"--steps is {self.steps}; it must be 1 or more.")


def test_what_is_saved_is_read_back() -> None:
    options = Example(steps=7, budgets=(512, 1024), folder=Path("a/b"))
    assert Example.of_saved(json.loads(json.dumps(options.as_json()))) == options
    assert Example.of_saved({}) == Example()


def test_arguments_become_options() -> None:
    assert Example.of_args(argparse.Namespace(steps=2, budgets=(1,), folder=None, dry_run=True)) == Example(2, (1,))
    with pytest.raises(OptionError, match="--steps is 0"):
        Example.of_args(argparse.Namespace(steps=0))


def test_a_field_of_an_earlier_version_is_renamed_and_an_unknown_one_ignored() -> None:
    assert Example.of_saved({"old_name": 9, "dropped": True}).steps == 9


def test_a_run_is_resumed_under_its_own_identity_alone(tmp_path: Path) -> None:
    path = tmp_path / "run"
    saved = {"configuration": "a", "code": "b"}
    with RunFolder.create(path, {"config": Example(4).as_json(), "identity": saved}):
        options, identity = resume.read(path, Example, required="steps")
    assert (options, identity) == (Example(4), saved)
    resume.check(path, identity, saved)
    with pytest.raises(RunFolderError, match="cannot be resumed: code, data changed"):
        resume.check(path, identity, {"configuration": "a", "code": "c", "data": "d"})
    with pytest.raises(RunFolderError, match="another command"):
        resume.read(path, Example, required="optimizer")


def test_saved_options_that_are_impossible_now_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", {"config": {"steps": 0}, "identity": {}}), pytest.raises(RunFolderError):
        resume.read(tmp_path / "run", Example)
