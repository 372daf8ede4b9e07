"""Optimised prompts on disk: DSPy's own JSON of a program, with what it was made for and on under `metadata`.

    program = load(Path("optimized_memory_qa.json"))
    program.into(reader)                                   # reader.read has its instructions and examples

No model, key or memory is in it, and nothing of it is executed, so that it can be given away and read with any model.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from memometer.reader.reader import Reader
from memometer.run.environment import digest

PREDICTOR = "read"
NOTES = "adaptive_memory"
"""The key under `metadata` where `optimize.py` writes down what it has done."""


class ProgramError(ValueError):
    """The file holds no program that can be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Program:
    """A reading prompt. `rounds` is how often it may ask; `notes` what `optimize.py` wrote beside it."""

    state: Mapping[str, Any]
    rounds: int
    notes: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Tells prompts apart: instructions and examples, not where they come from."""
        return digest([self.state["signature"], self.state["demos"]])

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Conversations from which its instructions and examples were made."""
        return tuple(self.notes.get("trained_on", ()))

    @property
    def selected_on(self) -> tuple[str, ...]:
        """Conversations on which it was chosen among others."""
        return tuple(self.notes.get("selected_on", ()))

    def into(self, reader: Reader) -> None:
        """Give a reader this prompt.

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


def fields(signature: Mapping[str, Any]) -> list[str]:
    """The fields of a saved signature, by what stands before them in a prompt."""
    return [field["prefix"] for field in signature["fields"]]


def load(path: Path) -> Program:
    """A program that `save` wrote. Raises ProgramError."""
    try:
        saved = json.loads(path.read_bytes())
        # Only what a prompt is made of: DSPy would set any attribute that a file names.
        state = {name: saved[PREDICTOR][name] for name in ("signature", "demos")} | {"lm": None}
        demos = [dict(demo) for demo in state["demos"]]
        notes = dict(saved.get("metadata", {}).get(NOTES, {}))
        own, instructions = fields(state["signature"]), state["signature"]["instructions"]
        if not isinstance(instructions, str) or not all(isinstance(name, str) for demo in demos for name in demo):
            raise TypeError("instructions are text, examples have named fields")
    except FileNotFoundError as error:
        raise ProgramError(f"{path} does not exist; write it with python optimize.py.") from error
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ProgramError(f"{path} holds no program ({error!r}); write one with python optimize.py.") from error
    rounds = next((n for n in (1, 2) if own == fields(Reader(rounds=n).read.signature.dump_state())), None)
    if own == fields(Reader().read.signature.dump_state()):
        rounds = 0
    if rounds is None:
        raise ProgramError(
            f"{path} is a program of another signature ({', '.join(own)}); use one that python optimize.py wrote here."
        )
    if rounds > 1:
        rounds = int(notes.get("rounds", rounds))
    return Program(state, rounds, notes)


def load_for(path: Path, asked: Collection[str], *, judge: str = "", stand_in: bool = False) -> tuple[Program, str]:
    """(a program for questions about the conversations `asked`, what to say of it). Raises ProgramError where it was
    made from one of them (a stand-in, of which no figure counts, may be asked all the same), or to please `judge`."""
    program = load(path)
    if judge and judge == program.notes.get("judge"):
        raise ProgramError(f"it was made to please {judge}; let another --judge-model grade it, or none.")
    if seen := sorted(set(asked) & set(program.trained_on)):
        if not stand_in:
            raise ProgramError(f"it was made from {', '.join(seen)}, asked here; ask other conversations.")
        return program, f"The program was made from {', '.join(seen)}, asked here."
    if seen := sorted(set(asked) & set(program.selected_on)):
        return program, f"The program was chosen by its answers on {', '.join(seen)}, asked here."
    return program, ""


def save(read: dspy.Predict, path: Path, notes: Mapping[str, Any]) -> None:
    """Write a predictor as DSPy saves a program with this one, atomically. `notes` is what JSON can hold."""
    holder = dspy.Module()
    setattr(holder, PREDICTOR, deepcopy(read))
    holder.set_lm(None)
    part = path.with_name(f".{path.name}.part.json")
    try:
        holder.save(part)
    except RuntimeError as error:  # which DSPy makes of a full disk, too
        raise error.__context__ if isinstance(error.__context__, OSError) else error from error
    saved = json.loads(part.read_bytes())
    saved["metadata"][NOTES] = dict(notes)
    part.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
