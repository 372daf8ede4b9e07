"""The facts that a model server reports about itself: its models, the context window and the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspy.lm15 import LM15Error

from memometer.models.chat_servers import ChatServers
from memometer.models.resolve_models import Model

WINDOW_FIELDS = ("max_model_len", "context_length", "context_window", "loaded_context_length", "max_context_length")
"""Names of the context window in a list of models: vLLM, SGLang; OpenRouter, Together; Groq; LM Studio."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the servers of a model report.

    Attributes:
        models: the names that the first server lists; None if it lists none.
        lists_model: True if every server lists the model; None if one lists nothing.
        context_tokens: the smallest context window; None if no server reports one.
        tokenizer: the repository whose tokenizer the server uses, such as Qwen/Qwen3-8B; empty if it names none.
    """

    models: tuple[str, ...] | None = None
    lists_model: bool | None = None
    context_tokens: int | None = None
    tokenizer: str = ""


def server_facts(model: Model) -> ServerFacts:
    """Ask the servers of a model for their list of models; no reply is generated.

    Raises:
        dspy.lm15.LM15Error: a server cannot be reached.
    """
    servers = model.lm.engine
    if not isinstance(servers, ChatServers):
        return ServerFacts()
    listings = [servers.listing(address) for address in servers.addresses]
    entries = [_entry(listing or {}, servers.model) for listing in listings]
    windows = [
        window
        for address, entry in zip(servers.addresses, entries, strict=True)
        if (window := _window(servers, address, entry))
    ]
    return ServerFacts(
        tuple(listings[0]) if listings[0] is not None else None,
        None if None in listings else all(servers.model in (listing or ()) for listing in listings),
        min(windows, default=None),
        next(filter(None, (_repository(entry, servers.model) for entry in entries)), ""),
    )


def listed_window(model: Model) -> int | None:
    """Return the context window that the servers of a model report; None if they report none or cannot be reached."""
    try:
        return server_facts(model).context_tokens
    except LM15Error:
        return None


def _entry(listing: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a model's entry; a server with one model, such as llama.cpp, answers to any name."""
    return listing.get(name) or (next(iter(listing.values())) if len(listing) == 1 else {})


def _window(servers: ChatServers, address: str, entry: Mapping[str, Any]) -> int | None:
    found = next((entry[name] for name in WINDOW_FIELDS if isinstance(entry.get(name), int)), None)
    if found is None and entry.get("owned_by") == "llamacpp":  # its list has the window of the training only
        properties = servers.get_json(f"{re.sub(r'/v1$', '', address)}/props")
        settings = properties.get("default_generation_settings") if isinstance(properties, dict) else None
        found = settings.get("n_ctx") if isinstance(settings, dict) else None
    return found if isinstance(found, int) and found > 0 else None


def _repository(entry: Mapping[str, Any], name: str) -> str:
    """Return the Hugging Face repository that a server names (vLLM and SGLang as `root`)."""
    for value in (entry.get("root"), entry.get("hugging_face_id"), name if entry else None):
        if isinstance(value, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            return value
    return ""
