"""What a memory is made of, as data: its system by name, parameters, prompts, and who counts and encodes for it.

What a memory remembers is not in it; what is needed to build the same memory again is, but for models, which are named.
"""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
import typing
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import dspy
import numpy as np

from memometer import systems
from memometer.cartridge import columnar
from memometer.cartridge.container import CartridgeError
from memometer.memory import Memory
from memometer.models import encoders
from memometer.models.encoders import Encoder
from memometer.reader.reader import Reader, predictors_of
from memometer.retrieval import late_interaction
from memometer.token_counters import ENCODINGS, HuggingFace, Tiktoken, TokenCounter, Utf8Bytes

NOT_PARAMETERS = ("self", "count", "encoder", "memory_url")
"""What a memory is given at each place where it is used."""

COLUMNS = {"projection": "token_map"}
"""Parameters that the columns of a file call by an earlier name."""

READER_PARAMETERS = ("rounds", "question_budget", "abstention")
"""The parameters of a reader. They are stored with those of a memory that can be read in rounds."""


def system_of(memory: Memory[Any]) -> str:
    """The name under which a memory is registered. Raises CartridgeError for one that is not."""
    for name in systems.SYSTEMS:
        if systems.load(name) is type(memory):
            return name
    raise CartridgeError(
        f"{type(memory).__name__} is no registered memory system, so no cartridge could name it; add a line for it to "
        "memometer/systems/__init__.py."
    )


def kind_of(system: Any) -> type[Memory[Any]]:
    """The class of a system. Raises CartridgeError for a name that is not known here."""
    if not isinstance(system, str) or system not in systems.SYSTEMS:
        known = ", ".join(systems.SYSTEMS)
        raise CartridgeError(f"it is of the system {str(system)[:60]!r}, which is not known here; known: {known}")
    return systems.load(system)


def has_vectors(kind: type[Memory[Any]]) -> bool:
    """Whether a system keeps a vector of each turn, as float32, for which a cartridge has a place of their own."""
    return bool(columnar.fields(kind.state_type).get("vectors") == list[bytes])


# ---------------------------------------------------------------- parameters


def parameter_types(kind: type[Memory[Any]]) -> dict[str, Any]:
    """The parameters of a system with their types. `**name` stands for the next class's, or for numbers by name."""
    found: dict[str, Any] = {}
    for ancestor in kind.__mro__[: kind.__mro__.index(Memory)]:
        if "__init__" not in vars(ancestor):
            continue
        hints = typing.get_type_hints(vars(ancestor)["__init__"])
        signature = inspect.signature(vars(ancestor)["__init__"]).parameters
        names = [name for name in signature if name not in NOT_PARAMETERS]
        found |= {name: hints[name] for name in names if signature[name].kind is not inspect.Parameter.VAR_KEYWORD}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values()):
            break
    if kind.reads_in_rounds:
        hints = typing.get_type_hints(Reader.__init__)
        found |= {name: hints[name] for name in READER_PARAMETERS}
    return found


def parameters_of(memory: Memory[Any], reader: Reader | None = None) -> dict[str, Any]:
    """The parameters that a memory was made with, and those of its reader if it can be read in rounds."""
    try:
        names = [name for name in parameter_types(type(memory)) if name not in READER_PARAMETERS]
        named = {name: getattr(memory, name) for name in names}
    except AttributeError as error:
        raise CartridgeError(f"{type(memory).__name__} does not keep its parameters ({error})") from error
    if memory.reads_in_rounds:
        named |= {name: getattr(reader or Reader(), name) for name in READER_PARAMETERS}
    return {**named, **vars(memory).get("parameters", {})}


def is_plain(value: Any) -> bool:
    """Whether JSON holds a value as it is, or as a dictionary of such: numbers, text, and dataclasses of them."""
    if dataclasses.is_dataclass(value):
        return all(value is None or isinstance(value, bool | int | float | str) for value in vars_of(value).values())
    return value is None or isinstance(value, bool | int | float | str)


def vars_of(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def plain(value: Any) -> Any:
    return vars_of(value) if dataclasses.is_dataclass(value) else value


def from_plain(hint: Any, value: Any, name: str) -> Any:
    """A value of the type `hint` from its JSON. Raises CartridgeError where it is of another type."""
    kinds = typing.get_args(hint) or (hint,)
    for kind in kinds:
        if kind is float and type(value) in (int, float):
            return value
        if kind in (bool, int, str, type(None)) and type(value) is kind:
            return value
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
            hints = typing.get_type_hints(kind)
            if set(value) == {field.name for field in dataclasses.fields(kind)}:
                return kind(**{key: from_plain(hints[key], item, name) for key, item in value.items()})
    raise CartridgeError(f"its parameter {name} is {str(value)[:60]!r}, which this system does not take")


def build(kind: type[Memory[Any]], parameters: Mapping[str, Any], **given: Any) -> tuple[Memory[Any], Reader]:
    """The memory and its reader. Raises CartridgeError for parameters that they do not take."""
    reading = {name: value for name, value in parameters.items() if name in READER_PARAMETERS and kind.reads_in_rounds}
    own = {name: value for name, value in parameters.items() if name not in reading}
    try:
        return kind(**own, **given), Reader(**reading)
    except (TypeError, ValueError) as error:
        raise CartridgeError(f"its parameters are not those of {kind.__name__} ({error})") from error


# ---------------------------------------------------------------- prompts


def prompts_of(memory: Memory[Any], reader: Reader) -> dict[str, Any]:
    """The instructions and examples of a memory's and its reader's predictors, as DSPy saves a program with them."""
    states = {name: predictor.dump_state() for name, predictor in predictors_of(memory, reader).items()}
    return {
        name: {"traces": [], "train": [], "demos": state["demos"], "signature": state["signature"], "lm": None}
        for name, state in states.items()
    }


def with_prompts(memory: Memory[Any], reader: Reader, program: Any) -> None:
    """Give a memory and its reader their prompts. Only instructions, descriptions and examples are taken from the file.

    Raises CartridgeError where the predictors or their fields are others.
    """
    predictors = predictors_of(memory, reader)
    try:
        if set(program) - {"metadata"} != set(predictors):
            raise ValueError("its predictors are others")
        for name, predictor in predictors.items():
            prompt, demos = program[name]["signature"], program[name]["demos"]
            own = predictor.signature.dump_state()
            if [f["prefix"] for f in prompt["fields"]] != [f["prefix"] for f in own["fields"]]:
                raise ValueError("its fields are others")
            said = [prompt["instructions"], *(field["description"] for field in prompt["fields"])]
            if not all(isinstance(text, str) for text in said) or not all(isinstance(demo, dict) for demo in demos):
                raise TypeError("instructions are text, and examples have named fields")
            kept = {"instructions": prompt["instructions"], "fields": [
                {"prefix": f["prefix"], "description": f["description"]} for f in prompt["fields"]]}  # fmt: skip
            predictor.load_state({"signature": kept, "demos": [], "lm": None})
            predictor.demos = [dspy.Example(**deepcopy(demo)) for demo in demos]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CartridgeError(f"its program is not of this memory ({error!r})") from error


# ---------------------------------------------------------------- who counts, who encodes


def counter_named(name: Any, tokenizer: bytes | None) -> TokenCounter:
    """The counter of a name, or of a tokenizer.json. Raises CartridgeError for one that is not known."""
    if tokenizer is not None:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            file.write(tokenizer)
            file.flush()
            try:
                counter = HuggingFace(Path(file.name))
            except Exception as error:  # the tokenizers library raises bare Exception for a bad file
                raise CartridgeError(f"its tokenizer cannot be read ({error})") from error
        if counter.name == name:
            return counter
    elif name == Utf8Bytes.name:
        return Utf8Bytes()
    elif name in ENCODINGS:
        return Tiktoken(name)
    raise CartridgeError(f"its tokens were counted by {name!r}, which is not here; load it with count=, and reobserve")


class Awaited:
    """An encoder that is known by name, and loaded when the first text is to be encoded."""

    def __init__(self, name: str, dimensions: int) -> None:
        self.name = name
        self.dimensions = dimensions
        self._encoder: Any = None

    def __deepcopy__(self, memo: dict[int, object]) -> Awaited:
        return self

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors: np.ndarray = self._loaded()(texts)
        return vectors

    def compact(self, texts: Sequence[str], projection: late_interaction.Projection) -> list[bytes]:
        made: list[bytes] = self._loaded().compact(texts, projection)
        return made

    def _loaded(self) -> Any:
        if self._encoder is None:
            # A provider's model is loaded by its name, ours by its name without the digest of its weights.
            found = encoders.load(self.name if "/" in self.name else self.name.rpartition("-")[0])
            if found.name != self.name:
                raise CartridgeError(
                    f"the vectors are of {self.name}, and the encoder here is {found.name}; load the cartridge with "
                    "the encoder that made them, or with reobserve."
                )
            self._encoder = found
        return self._encoder


def encoder_of(memory: Memory[Any]) -> Encoder | None:
    return getattr(memory, "encoder", None)


def projection_digest(memory: Memory[Any]) -> str:
    """What tells maps of token vectors apart; "" for a memory without one."""
    if not memory.takes_token_encoder or encoder_of(memory) is None:
        return ""
    return (getattr(memory, "projection", None) or late_interaction.load(late_interaction.SHIPPED)).digest
