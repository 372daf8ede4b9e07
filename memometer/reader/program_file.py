"""Optimised prompts on disk: DSPy's JSON of a program, with notes on its origin under `metadata`.

    program = load(Path("optimized_memory_qa.json"))
    program.into(reader)                                   # reader.read has its instructions and examples

A file contains no model, key or memory, and nothing in it is executed. It can be shared and used with any model.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from memometer.errors import UserError
from memometer.reader.reader import Reader
from memometer.run.environment import digest

PREDICTOR = "read"
NOTES = "adaptive_memory"
"""The key of our notes under `metadata`."""


class ProgramError(UserError, ValueError):
    """A program file cannot be used."""


@dataclass(frozen=True)
class Program:
    """A prompt of the reader.

    Attributes:
        state: signature and demos, as DSPy saves them.
        rounds: calls per question at most; 0 for the bare answer.
        notes: notes of `optimize.py` about its origin.
    """

    state: Mapping[str, Any]
    rounds: int
    notes: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """A hash of instructions and examples, without the notes."""
        return _digest(self.state)

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The conversations that its instructions and examples were derived from."""
        return tuple(self.notes.get("trained_on", ()))

    @property
    def selected_on(self) -> tuple[str, ...]:
        """The conversations on which it was selected among candidates."""
        return tuple(self.notes.get("selected_on", ()))

    def into(self, reader: Reader) -> None:
        """Set the prompt of a reader.

        Raises:
            ProgramError: the reader's own prompt has other fields.
        """
        if fields(self.state["signature"]) != fields(reader.read.signature.dump_state()):
            raise ProgramError(
                f"the program reads in {self.rounds} round(s) and this reader in {reader.rounds}, so their prompts "
                f"have different fields; use --rounds {self.rounds}, or leave --rounds out."
            )
        reader.read.load_state(deepcopy(dict(self.state)))
        reader.read.demos = [dspy.Example(**demo) for demo in reader.read.demos]


def digest_of(read: dspy.Predict) -> str:
    """Return the digest that the program of a predictor has after `save` and `load`."""
    return _digest(read.dump_state())


def _digest(state: Mapping[str, Any]) -> str:
    return digest([state["signature"], state["demos"]])


def fields(signature: Mapping[str, Any]) -> list[str]:
    """Return the fields of a saved signature, by their prefixes in the prompt."""
    return [field["prefix"] for field in signature["fields"]]


def load(path: Path) -> Program:
    """Load a program that `save` wrote.

    Raises:
        ProgramError: the file does not exist, is not a program, or is one of another signature.
    """
    try:
        return parse(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise ProgramError(f"{path} does not exist; create it with python optimize.py.") from error
    except OSError as error:
        raise ProgramError(f"{path} is not a program file ({error!r}); create one with python optimize.py.") from error


def parse(text: str | bytes, origin: str) -> Program:
    """Read a program from the text of its file.

    Args:
        text: the text.
        origin: the name of its file, for errors.

    Raises:
        ProgramError: the text is not a program, or is one of another signature.
    """
    try:
        saved = json.loads(text)
        # Only the parts of a prompt are taken, because DSPy would set any attribute that a file names.
        state = {name: saved[PREDICTOR][name] for name in ("signature", "demos")} | {"lm": None}
        demos = [dict(demo) for demo in state["demos"]]
        notes = dict(saved.get("metadata", {}).get(NOTES, {}))
        own, instructions = fields(state["signature"]), state["signature"]["instructions"]
        if not isinstance(instructions, str) or not all(isinstance(name, str) for demo in demos for name in demo):
            raise TypeError("instructions must be a string and the fields of examples must have names")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ProgramError(
            f"{origin} is not a program file ({error!r}); create one with python optimize.py."
        ) from error
    rounds = next((n for n in (1, 2) if own == fields(Reader(rounds=n).read.signature.dump_state())), None)
    if own == fields(Reader().read.signature.dump_state()):
        rounds = 0
    if rounds is None:
        raise ProgramError(
            f"{origin} has the prompt fields {', '.join(own)}, which the reader does not use; create a program with "
            "python optimize.py."
        )
    if rounds > 1:
        rounds = int(notes.get("rounds", rounds))
    return Program(state, rounds, notes)


def load_for(
    source: Path | Program, conversation_ids: Collection[str], *, judge: str = "", unofficial_data: bool = False
) -> tuple[Program, str]:
    """Load a program for the evaluation of some conversations.

    Args:
        source: the file, or the program.
        conversation_ids: the conversations that are evaluated.
        judge: the judge model.
        unofficial_data: True for sample or synthetic data, for which an overlap is reported but allowed.

    Returns:
        The program, and a notice about overlaps, or an empty string.

    Raises:
        ProgramError: the program was derived from an evaluated conversation, or optimised with this judge.
    """
    program = source if isinstance(source, Program) else load(source)
    if judge and judge == program.notes.get("judge"):
        raise ProgramError(f"the program was optimised with {judge} as judge; use another --judge-model, or none.")
    if seen := sorted(set(conversation_ids) & set(program.trained_on)):
        if not unofficial_data:
            raise ProgramError(
                f"the program was derived from {', '.join(seen)}, evaluated here; choose other conversations."
            )
        return program, f"The program was derived from {', '.join(seen)}, evaluated here."
    if seen := sorted(set(conversation_ids) & set(program.selected_on)):
        return program, f"The program was selected on {', '.join(seen)}, evaluated here."
    return program, ""


def save(read: dspy.Predict, path: Path, notes: Mapping[str, Any]) -> None:
    """Write a predictor as a DSPy program, atomically.

    Args:
        read: the predictor; its model is not written.
        path: the file.
        notes: JSON values about its origin.

    Raises:
        OSError: the file cannot be written.
    """
    holder = dspy.Module()
    setattr(holder, PREDICTOR, deepcopy(read))
    holder.set_lm(None)
    part = path.with_name(f".{path.name}.part.json")
    try:
        holder.save(part)
    except RuntimeError as error:  # DSPy raises it for a full disk, too
        raise error.__context__ if isinstance(error.__context__, OSError) else error from error
    saved = json.loads(part.read_bytes())
    saved["metadata"][NOTES] = dict(notes)
    part.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
