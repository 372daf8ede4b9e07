"""The memory systems of an evaluation with their parameters: encoder, store, turn format, reader."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from memometer import systems
from memometer.harness.options import EvaluateOptions
from memometer.memory import Memory, TurnFormat
from memometer.models.encoders import Encoder, EncoderUnavailable, TokenEncoder
from memometer.models.encoders import load as load_encoder
from memometer.models.metered_endpoint import ClientUpstream, HttpUpstream, MeteredEndpoint, Upstream
from memometer.models.resolve_models import Model
from memometer.reader.abstention import AbstentionRule
from memometer.reader.program_file import Program, ProgramError
from memometer.reader.reader import Reader, RefusingReader
from memometer.run.options import OptionError, option_errors
from memometer.run.progress import eprint
from memometer.systems import specification as specifications
from memometer.systems.connect import connect
from memometer.systems.connection import Connection
from memometer.systems.in_process import InProcess
from memometer.systems.plugin import PluginError
from memometer.systems.plugin_memory import PluginMemory
from memometer.systems.specification import Specification, SpecificationError
from memometer.systems.through_search import ThroughSearch
from memometer.systems.worker import LoadError, check_parameters, load_class
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
        endpoint: The server through which plug-ins call the model.
    """

    memories: dict[str, Memory[Any]]
    readers: dict[str, Reader]
    encoder: Encoder | None
    turn_format: TurnFormat | None
    notices: tuple[str, ...]
    endpoint: MeteredEndpoint


def configure_memories(
    options: EvaluateOptions,
    *,
    model: Model | None,
    count: TokenCounter,
    program: Program | None,
    rule: AbstentionRule | None,
) -> Systems:
    """Build the memory systems that options name, and the baselines.

    Args:
        options: Resolved options.
        model: The model that answers, and that plug-ins may call; None if none is called.
        count: Counts the tokens of a budget.
        program: An optimised or trained prompt, for every system and baseline whose reader has its fields.
        rule: The abstention rule of those readers.

    Raises:
        OptionError: A system is unknown, or does not support an option.
    """
    rounds = options.rounds or (program.rounds if program else 0)
    reading: dict[str, Any] = {"rounds": rounds, "question_budget": options.question_budget, "abstention": rule}
    _check_url(options.memory_url)
    endpoint = MeteredEndpoint(_upstream(options, model))
    build = _Builder(options, count, endpoint)
    memories: dict[str, Memory[Any]] = {}
    readers: dict[str, Reader] = {}
    # With --recall-only there are no answers, so the refusal baseline would equal `none`.
    baselines = [name for name in systems.BASELINES if name != "refusal" or not options.recall_only]
    for text in [*options.systems, *baselines]:
        with option_errors("--systems: ", SpecificationError):
            specification = specifications.read(text)
        name = specification.name
        if name in memories and name not in baselines:
            raise OptionError(f"--systems: two systems are called {name}; give one a label, as in other={text}.")
        memory = memories[name] = build(specification)
        readers[name] = RefusingReader() if name == "refusal" else Reader(**(reading if memory.reads_in_rounds else {}))
        if options.prompt and name != "refusal":
            readers[name].instruct(_instructions(options.prompt))
        # A prompt for the bare answer fits every reader; one for rounds needs a memory that can be read in rounds.
        if program and name != "refusal" and (memory.reads_in_rounds or not program.rounds):
            with option_errors("--program: ", ProgramError):
                program.into(readers[name])
    named = {name: memory for name, memory in memories.items() if name not in baselines}
    if named and all(memory.skipped for memory in named.values()):
        raise OptionError(" ".join(f"{name} cannot be evaluated: {memory.skipped}." for name, memory in named.items()))
    notices = [f"SKIPPED {name}: {memory.skipped}." for name, memory in memories.items() if memory.skipped]
    if options.memory_url and not any(memory.takes_memory_url for memory in memories.values()):
        raise OptionError("--memory-url needs a system that keeps episodes: name episodic or codebook with --systems.")
    turn_format = _set_format(options.context_format, memories, readers)
    if turn_format:
        notices.append(f"Recalled turns are written into the prompt as {turn_format.name}.")
    return Systems(memories, readers, build.encoder, turn_format, (*build.notices, *notices), endpoint)


def _upstream(options: EvaluateOptions, model: Model | None) -> Upstream | None:
    """The model behind the endpoint of plug-ins. A server with OpenAI's protocol gets their requests as they are."""
    if model is None:
        return None
    provider, _, name = model.name.partition("/")
    if provider == "openai" or (provider == "hosted_vllm" and options.api_base):
        base_url = options.api_base or "https://api.openai.com/v1"
        key = os.environ.get("OPENAI_API_KEY", "")
        return HttpUpstream(base_url, key, name, timeout_seconds=options.timeout_seconds)
    return ClientUpstream(model.lm, model.name)


class _Builder:
    """Builds memory systems; they share an encoder."""

    def __init__(self, options: EvaluateOptions, count: TokenCounter, endpoint: MeteredEndpoint) -> None:
        self.options, self.count, self.endpoint = options, count, endpoint
        self.encoder: Encoder | None = None
        self.notices: list[str] = []

    def __call__(self, specification: Specification) -> Memory[Any]:
        name, kind = specification.name, specification.kind
        if kind == specifications.BUILT_IN:
            return self._of_class(name, systems.load(specification.target), specification.parameters)
        if kind == specifications.THROUGH_SEARCH:
            inner = self._of_class(name, systems.load(specification.target), specification.parameters)
            built = inner if inner.skipped else ThroughSearch(inner, specification.target)
            return self._plug_in(name, InProcess(specification.target, {}, {}, build=lambda: built))
        environment = self.endpoint.environment(name)
        if kind in (specifications.COMMAND, specifications.HTTP):
            return self._plug_in(name, connect(specification, environment))
        try:
            with redirect_stdout(sys.stderr):
                found = load_class(specification.target)
        except LoadError as error:
            return _skipped(str(error), self.count)
        if isinstance(found, type) and issubclass(found, Memory):
            return self._of_class(name, found, specification.parameters)
        return self._plug_in(name, connect(specification, environment))

    def _plug_in(self, name: str, connection: Connection) -> Memory[Any]:
        memory = PluginMemory(
            name,
            connection,
            largest_budget=max(self.options.budgets),
            ingest_seconds=self.options.ingest_timeout,
            search_seconds=self.options.timeout_seconds,
            stage=partial(self.endpoint.set_stage, name),
            usage=lambda stage: asdict(self.endpoint.take(name, stage)),
            count=self.count,
        )
        try:
            memory.start()
        except PluginError as error:
            memory.skipped = str(error)
            memory.stop()
        else:
            self.notices += [f"{name}: {notice}." for notice in connection.notices()]
        return memory

    def _of_class(self, name: str, kind: Any, parameters: Mapping[str, Any]) -> Memory[Any]:
        """Build a memory of a class of ours, or of a subclass of Memory."""
        options = self.options
        if kind.needs_model and options.recall_only:
            raise OptionError(
                f"{name} writes its memory with a model, but --recall-only calls no model; leave out one of them."
            )
        parts = self._encoder_for(name, kind) | self._ranking_for(kind)
        if options.memory_url and kind.takes_memory_url:
            parts["memory_url"] = options.memory_url
        if clash := [key for key in parameters if key in {*parts, "count", "encoder", "memory_url"}]:
            raise OptionError(
                f"--systems: {name} takes {clash[0]} from the options of the command, not from ?{clash[0]}=."
            )
        try:
            check_parameters(kind, {"count": self.count, **parts, **parameters})
            memory: Memory[Any] = kind(count=self.count, **parts, **parameters)
        except (LoadError, TypeError, ValueError) as error:
            return _skipped(str(error), self.count)
        if "memory_url" in parts:
            with option_errors(f"--memory-url: {name} cannot use it: ", RuntimeError):
                memory.new()
        return memory

    def _encoder_for(self, name: str, kind: Any) -> dict[str, Any]:
        if kind.takes_token_encoder and not self.options.encoder and not kind.needs_encoder:
            self.notices.append(f"{name} matches words only; --encoder minilm adds meaning (83 MB, no key).")
        if not kind.needs_encoder and not (kind.takes_token_encoder and self.options.encoder):
            return {}
        with option_errors(f"{name} needs an encoder: ", EncoderUnavailable):
            encoder = self.encoder = self.encoder or load_encoder(
                self.options.encoder, api_base=self.options.encoder_api_base, log=eprint
            )
        if kind.takes_token_encoder and not isinstance(encoder, TokenEncoder):
            raise OptionError(
                f"{name} needs token vectors, which {encoder.name} does not return; use --encoder minilm, the "
                "folder of a BERT model, or leave it out."
            )
        return {"encoder": encoder}

    def _ranking_for(self, kind: Any) -> dict[str, Any]:
        """Return the parameter of a system with learned weights, if other ones than the default are asked for."""
        if self.options.ranking == "default" or not kind.takes_ranking:
            return {}
        return {"ranking": self.options.ranking}


def _skipped(reason: str, count: TokenCounter) -> Memory[Any]:
    memory: Memory[Any] = Memory(count=count)
    memory.skipped = reason
    return memory


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


def _instructions(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--prompt: {file} cannot be read as UTF-8 text ({error}).") from error
    if not text:
        raise OptionError(f"--prompt: {file} is empty; write the instructions for the reader into it.")
    return text


def _check_url(url: str | None) -> None:
    if url and re.search(r"://[^/@]*:[^/@]*@", unquote(url)):
        raise OptionError(
            "--memory-url contains a password, which would be saved with the run; leave it out and let the client find "
            "it (PGPASSWORD, ~/.pgpass)."
        )
