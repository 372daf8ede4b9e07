"""Description of a memory as data: system name, parameters and prompts, and names of token counter and encoder."""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
import typing
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memometer import systems
from memometer.cartridge import columnar
from memometer.cartridge.container import CartridgeError
from memometer.memory import Memory
from memometer.models import encoders
from memometer.models.encoders import Encoder
from memometer.retrieval import late_interaction
from memometer.token_counters import ENCODINGS, HuggingFace, Tiktoken, TokenCounter, Utf8Bytes

if TYPE_CHECKING:
    from memometer.reader.reader import Reader

NOT_PARAMETERS = ("self", "count", "encoder", "memory_url")
"""Arguments of a memory that a cartridge does not hold."""

READER_PARAMETERS = ("rounds", "question_budget", "abstention")
"""Parameters of a reader. They are stored with those of a memory that can be read in rounds."""


def system_of(memory: Memory[Any]) -> str:
    """Return the name of a memory's system. Raises CartridgeError if the system is not registered."""
    kind = type(memory)
    for name, target in systems.SYSTEMS.items():
        if target == f"{kind.__module__}:{kind.__qualname__}":
            return name
    raise CartridgeError(f"{kind.__name__} is not a registered memory system; add it to memometer/systems/__init__.py")


def kind_of(system: Any) -> type[Memory[Any]]:
    """Return the class of a system. Raises CartridgeError for an unknown name."""
    if not isinstance(system, str) or system not in systems.SYSTEMS:
        known = ", ".join(systems.SYSTEMS)
        raise CartridgeError(f"its system {str(system)[:60]!r} is unknown; known systems: {known}")
    return systems.load(system)


def has_vectors(kind: type[Memory[Any]]) -> bool:
    """Return True if the state of a system holds a float32 vector for each turn."""
    return bool(columnar.fields(kind.state_type).get("vectors") == list[bytes])


# ---------------------------------------------------------------- parameters


def parameter_types(kind: type[Memory[Any]]) -> dict[str, Any]:
    """Return the types of a system's parameters. `**name` stands for those of the base class or for named numbers."""
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
        from memometer.reader.reader import Reader

        hints = typing.get_type_hints(Reader.__init__)
        found |= {name: hints[name] for name in READER_PARAMETERS}
    return found


def parameters_of(memory: Memory[Any], reader: Reader | None = None) -> dict[str, Any]:
    """Return the parameters of a memory, and those of its reader if it can be read in rounds."""
    try:
        names = [name for name in parameter_types(type(memory)) if name not in READER_PARAMETERS]
        parameters = {name: getattr(memory, name) for name in names}
    except AttributeError as error:
        raise CartridgeError(f"{type(memory).__name__} does not keep its parameters as attributes ({error})") from error
    if memory.reads_in_rounds:
        from memometer.reader.reader import Reader

        reader = reader or Reader()
        parameters |= {name: getattr(reader, name) for name in READER_PARAMETERS}
    return {**parameters, **vars(memory).get("parameters", {})}


def is_plain(value: Any) -> bool:
    """Return True for None, numbers, text and dataclasses of them, which the manifest can hold."""
    values = _as_dict(value).values() if dataclasses.is_dataclass(value) else [value]
    return all(each is None or isinstance(each, bool | int | float | str) for each in values)


def to_plain(value: Any) -> Any:
    """Convert a dataclass to a dictionary; return other values as they are."""
    return _as_dict(value) if dataclasses.is_dataclass(value) else value


def _as_dict(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def from_plain(hint: Any, value: Any, name: str) -> Any:
    """Convert a value of the manifest to the type `hint`. Raises CartridgeError if it has another type."""
    for kind in typing.get_args(hint) or (hint,):
        if kind is float and type(value) in (int, float):
            return value
        if kind in (bool, int, str, type(None)) and type(value) is kind:
            return value
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
            hints = typing.get_type_hints(kind)
            if set(value) == {field.name for field in dataclasses.fields(kind)}:
                return kind(**{key: from_plain(hints[key], item, name) for key, item in value.items()})
    raise CartridgeError(f"its parameter {name} has the invalid value {str(value)[:60]!r}")


def build(
    kind: type[Memory[Any]], parameters: Mapping[str, Any], *, program: Any = None, **given: Any
) -> tuple[Memory[Any], Reader | None]:
    """Build a memory and its reader.

    Args:
        kind: class of the memory.
        parameters: parameters of memory and reader.
        program: prompts as `changed_prompts` returns them; None for the defaults.
        given: further arguments of the memory.

    Returns:
        The memory, and its reader if there are parameters or prompts for one.

    Raises:
        CartridgeError: a parameter or prompt does not fit the system.
    """
    reading = {name: value for name, value in parameters.items() if name in READER_PARAMETERS and kind.reads_in_rounds}
    reader = None
    try:
        memory = kind(**{name: value for name, value in parameters.items() if name not in reading}, **given)
        if kind.reads_in_rounds or program is not None:
            from memometer.reader.reader import Reader

            reader = Reader(**reading)
    except (TypeError, ValueError) as error:
        raise CartridgeError(f"its parameters do not fit {kind.__name__} ({error})") from error
    if program is not None:
        assert reader
        _set_prompts(memory, reader, program)
    return memory, reader


# ---------------------------------------------------------------- prompts


def changed_prompts(memory: Memory[Any], reader: Reader | None) -> dict[str, Any] | None:
    """Return instructions and examples of memory and reader as DSPy saves them; None if they are the defaults."""
    if reader is None and not memory.needs_model:
        return None
    from memometer.reader.reader import Reader

    default = build(type(memory), parameters_of(memory, reader), count=memory.count)
    prompts = _prompts(memory, reader or Reader())
    return prompts if prompts != _prompts(default[0], default[1] or Reader()) else None


def _prompts(memory: Memory[Any], reader: Reader) -> dict[str, Any]:
    from memometer.reader.reader import predictors_of

    states = {name: predictor.dump_state() for name, predictor in predictors_of(memory, reader).items()}
    return {
        name: {"traces": [], "train": [], "demos": state["demos"], "signature": state["signature"], "lm": None}
        for name, state in states.items()
    }


def _set_prompts(memory: Memory[Any], reader: Reader, program: Any) -> None:
    """Set the prompts. Only instructions, descriptions and examples are taken from the file."""
    import dspy

    from memometer.reader.reader import predictors_of

    predictors = predictors_of(memory, reader)
    try:
        if set(program) - {"metadata"} != set(predictors):
            raise ValueError(f"the predictors are {', '.join(predictors)}")
        for name, predictor in predictors.items():
            prompt, demos = program[name]["signature"], program[name]["demos"]
            fields = [{"prefix": f["prefix"], "description": f["description"]} for f in prompt["fields"]]
            expected = [field["prefix"] for field in predictor.signature.dump_state()["fields"]]
            if [field["prefix"] for field in fields] != expected:
                raise ValueError(f"the fields of {name} are {', '.join(expected)}")
            texts = [prompt["instructions"], *(field["description"] for field in fields)]
            if not all(isinstance(text, str) for text in texts) or not all(isinstance(demo, dict) for demo in demos):
                raise TypeError("instructions must be text and examples must have named fields")
            predictor.load_state(
                {"signature": {"instructions": prompt["instructions"], "fields": fields}, "demos": [], "lm": None}
            )
            predictor.demos = [dspy.Example(**deepcopy(demo)) for demo in demos]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CartridgeError(f"its program does not fit the memory ({error!r})") from error


# ---------------------------------------------------------------- token counter and encoder


def counter_named(name: Any, tokenizer: bytes | None) -> TokenCounter:
    """Return the token counter of a name.

    Args:
        name: name of the counter.
        tokenizer: content of a tokenizer.json; None for a built-in counter.

    Raises:
        CartridgeError: the name is unknown or is not the tokenizer's.
    """
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
    raise CartridgeError(f"its token counter {name!r} is unknown; load it with count= and reobserve=True")


class LazyEncoder:
    """An encoder that is loaded by its name when it encodes the first text."""

    def __init__(self, name: str, dimensions: int) -> None:
        self.name = name
        self.dimensions = dimensions
        self._encoder: Any = None

    def __deepcopy__(self, memo: dict[int, object]) -> LazyEncoder:
        return self

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors: np.ndarray = self._loaded()(texts)
        return vectors

    def compact(self, texts: Sequence[str], projection: late_interaction.Projection) -> list[bytes]:
        made: list[bytes] = self._loaded().compact(texts, projection)
        return made

    def _loaded(self) -> Any:
        if self._encoder is None:
            # The names of local encoders end with a digest of their weights.
            encoder = encoders.load(self.name if "/" in self.name else self.name.rpartition("-")[0])
            if encoder.name != self.name:
                raise CartridgeError(
                    f"the vectors are from the encoder {self.name} instead of {encoder.name}; load the cartridge with "
                    "encoder=, or with reobserve=True."
                )
            self._encoder = encoder
        return self._encoder


def encoder_of(memory: Memory[Any]) -> Encoder | None:
    return getattr(memory, "encoder", None)


def projection_digest(memory: Memory[Any]) -> str:
    """Return the digest of the projection of token vectors; empty for a memory without one."""
    if not memory.takes_token_encoder or encoder_of(memory) is None:
        return ""
    encoder = encoder_of(memory)
    assert encoder
    projection = getattr(memory, "projection", None) or late_interaction.Projection.identity(encoder.dimensions)
    return projection.digest
