"""The memory systems of an evaluation with their parameters: encoder, store, turn format, reader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from memometer import systems
from memometer.harness.options import EvaluateOptions
from memometer.memory import Memory, TurnFormat
from memometer.models.encoders import Encoder, EncoderUnavailable, TokenEncoder
from memometer.models.encoders import load as load_encoder
from memometer.reader.abstention import AbstentionRule
from memometer.reader.program_file import Program, ProgramError
from memometer.reader.reader import Reader, RefusingReader
from memometer.retrieval import late_interaction
from memometer.run.options import OptionError, option_errors
from memometer.run.progress import eprint
from memometer.token_counters import TokenCounter


@dataclass(frozen=True)
class Systems:
    """The memory systems by name, with the reader of each.

    Attributes:
        memories: Name -> memory, the baselines last.
        readers: Name -> reader.
        encoder: The encoder that some of the memories share.
        turn_format: The format of the turns in a prompt; None for plain lines.
        notices: Sentences for the announcement.
    """

    memories: dict[str, Memory[Any]]
    readers: dict[str, Reader]
    encoder: Encoder | None
    turn_format: TurnFormat | None
    notices: tuple[str, ...]


def configure_memories(
    options: EvaluateOptions, *, count: TokenCounter, program: Program | None, rule: AbstentionRule | None
) -> Systems:
    """Build the memory systems that options name, and the baselines.

    Args:
        options: Resolved options.
        count: Counts the tokens of a budget.
        program: An optimised prompt for the readers that can use it.
        rule: The abstention rule of those readers.

    Raises:
        OptionError: A system is unknown, or does not support an option.
    """
    rounds = options.rounds or (program.rounds if program else 0)
    reading: dict[str, Any] = {"rounds": rounds, "question_budget": options.question_budget, "abstention": rule}
    _check_url(options.memory_url)
    encoder: Encoder | None = None
    memories: dict[str, Memory[Any]] = {}
    readers: dict[str, Reader] = {}
    notices: list[str] = []
    # With --recall-only there are no answers, so the refusal baseline would equal `none`.
    baselines = [name for name in systems.BASELINES if name != "refusal" or not options.recall_only]
    for name in [*options.systems, *baselines]:
        kind = _class_of(name)
        if kind.needs_model and options.recall_only:
            raise OptionError(
                f"{name} writes its memory with a model, but --recall-only calls no model; leave out one of them."
            )
        parts: dict[str, Any] = {}
        if kind.needs_encoder or (kind.takes_token_encoder and options.encoder):
            with option_errors(f"{name} needs an encoder: ", EncoderUnavailable):
                encoder = parts["encoder"] = encoder or load_encoder(options.encoder, log=eprint)
        if kind.takes_token_encoder and "encoder" in parts:
            fitted = late_interaction.load(late_interaction.SHIPPED).encoder
            if not isinstance(encoder, TokenEncoder) or encoder.name != fitted:
                raise OptionError(
                    f"{name} has weights for the encoder {fitted} only, not for {parts['encoder'].name}; use --encoder "
                    "minilm, or leave it out."
                )
        elif kind.takes_token_encoder:
            notices.append(f"{name} matches words only; --encoder minilm adds meaning (83 MB, no key).")
        if options.memory_url and kind.takes_memory_url:
            parts["memory_url"] = options.memory_url
        memories[name] = kind(count=count, **parts)
        if "memory_url" in parts:
            with option_errors(f"--memory-url: {name} cannot use it: ", RuntimeError):
                memories[name].new()
        readers[name] = RefusingReader() if name == "refusal" else Reader(**(reading if kind.reads_in_rounds else {}))
        if program and kind.reads_in_rounds:
            with option_errors("--program: ", ProgramError):
                program.into(readers[name])
    if options.memory_url and not any(memory.takes_memory_url for memory in memories.values()):
        raise OptionError("--memory-url needs a system that keeps episodes: name episodic or codebook with --systems.")
    turn_format = _set_format(options.context_format, memories, readers)
    if turn_format:
        notices.append(f"Recalled turns are written into the prompt as {turn_format.name}.")
    return Systems(memories, readers, encoder, turn_format, tuple(notices))


def _class_of(name: str) -> Any:
    try:
        return systems.load(name)
    except KeyError as error:
        raise OptionError(f"--systems: {error.args[0]}.") from error


def _set_format(name: str, memories: Mapping[str, Memory[Any]], readers: Mapping[str, Reader]) -> TurnFormat | None:
    if name == "lines":
        return None
    for system, memory in memories.items():
        if not memory.shows_turns:
            raise OptionError(
                f"{system} shows text that a model wrote, which has no fields for --context-format {name}; leave out "
                "one of them."
            )
        if readers[system].rounds:
            raise OptionError(
                f"{system} is read in rounds, which cite numbered lines; leave out --rounds (or the --program that "
                f"needs them) or --context-format {name}."
            )
    with option_errors("--context-format: ", ValueError, RuntimeError):  # an unknown name, a missing library
        turn_format = systems.form(name)
    for memory in memories.values():
        memory.form = turn_format
    return turn_format


def _check_url(url: str | None) -> None:
    if url and re.search(r"://[^/@]*:[^/@]*@", unquote(url)):
        raise OptionError(
            "--memory-url contains a password, which would be saved with the run; leave it out and let the client find "
            "it (PGPASSWORD, ~/.pgpass)."
        )
