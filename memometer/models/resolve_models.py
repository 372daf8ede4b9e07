"""Language models by name: any DSPy model string, a local server, or an embedded model.

openai/gpt-4o-mini            a provider that DSPy knows, with its key in the environment
openai/NAME with an api base  any OpenAI-compatible server, or several of the same model: URL,URL,…
embedded:tiny|small|base      runs in this process without a key; embedded:/path/model.gguf loads another GGUF file
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dspy.utils.exceptions import LMConfigurationError

from memometer.models import embedded, gguf_metadata
from memometer.models.addresses import check_address
from memometer.models.bounded_retries import BoundedRetryLM
from memometer.models.chat_servers import ChatServers
from memometer.models.server_errors import Flags
from memometer.run.prices import Price, price_of, published
from memometer.token_counters import TokenCounter, counter_for

PROVIDER_DEFAULTS = {
    "TOGETHER_API_KEY": "together_ai/Qwen/Qwen2.5-7B-Instruct-Turbo",
    "OPENAI_API_KEY": "openai/gpt-4o-mini",
}
"""The first key found in the environment selects the default model of reader and judge."""

NO_KEY_DEFAULT = "embedded:tiny"

CHAT_PROVIDERS = {"openai", "hosted_vllm", "lm_studio", "llamafile", "ollama", "ollama_chat", "openai_like",
                  "custom_openai", "litellm_proxy"}  # fmt: skip
"""Prefixes of servers that speak OpenAI's chat protocol at an address of their own."""

MAX_ANSWER_TOKENS = 64
REASONING_TOKENS = 16_000
"""Upper bounds on the tokens of a reply: of an answer, and of a reasoning model, which also writes its thoughts."""


@dataclass(frozen=True)
class Model:
    """A language model, ready for its role.

    Attributes:
        name: the model string.
        lm: DSPy's client for it.
        count: counts tokens as the model does, or an upper bound.
        context_tokens: the context window; None if unknown.
        max_tokens: upper bound on the tokens of a reply.
        price: None if unknown.
        revision: distinguishes weights of the same name, if they are on this machine.
        addresses: of its servers; empty for a provider's own.
        program: text of the program file with the prompt that the model was trained with, if its file contains one.
    """

    name: str
    lm: BoundedRetryLM
    count: TokenCounter
    context_tokens: int | None
    max_tokens: int
    price: Price | None
    revision: str = ""
    addresses: tuple[str, ...] = ()
    program: str | None = None

    @property
    def is_remote(self) -> bool:
        """True if calls leave this process."""
        return not self.name.startswith("embedded:")


def default_model() -> str:
    """Return the model of the provider whose key is set, else the embedded model."""
    return next((model for key, model in PROVIDER_DEFAULTS.items() if os.environ.get(key)), NO_KEY_DEFAULT)


def load(
    name: str,
    *,
    api_base: str | None = None,
    tokenizer: str | None = None,
    context_tokens: int | None = None,
    max_tokens: int = MAX_ANSWER_TOKENS,
    timeout_seconds: float = 120.0,
    retries: int = 4,
    price: tuple[float, float] | None = None,
    flags: Flags | None = None,
    log: Callable[[str], None] = print,
) -> Model:
    """Load a model for calls at temperature 0, without DSPy's cache, so that the model really gives every answer.

    Args:
        name: as in this module's documentation.
        api_base: URL of an OpenAI-compatible server; several URLs separated by commas share the calls.
        tokenizer: as in `counter_for`; None derives it from `name`.
        context_tokens: the context window; None looks it up.
        max_tokens: upper bound on the tokens of a reply.
        timeout_seconds: read timeout per call.
        retries: retries per failed call, with bounded waits.
        price: dollars per million tokens of prompt and reply; None looks it up.
        flags: the options that error messages name; None for those of the reader.
        log: receives progress messages, and once each parameter that the server refuses.

    Raises:
        ValueError: the name, the URL or the tokenizer is not valid.
        WeightsUnavailable: the weights of an embedded model cannot be fetched.
    """
    flags = flags or Flags()
    addresses = addresses_of(name, api_base)
    options: dict[str, Any] = {"max_tokens": max_tokens, "cache": False, "token_flag": flags.tokens, "log": log}
    if name.startswith("embedded:"):
        if addresses:
            raise ValueError(f"{name} runs in this process and takes no API base; omit the model or the API base.")
        path = embedded.weights(name.removeprefix("embedded:"), log=log)
        if tokenizer:
            raise ValueError(f"{name} uses its own tokenizer; omit --tokenizer.")
        engine = embedded.Embedded(path, context_tokens=context_tokens or embedded.CONTEXT_TOKENS)
        engine("")  # reject a broken file now, not at the first question
        lm = BoundedRetryLM(name.replace(":", "/", 1), engine=engine, temperature=0.0, retries=0, **options)
        tier = embedded.TIERS.get(name.removeprefix("embedded:"))
        program = None if tier else gguf_metadata.trained_prompt(path)
        engine.template_kwargs = gguf_metadata.template_kwargs(program)
        engine.always_chats = program is not None
        revision = tier.sha256 if tier else embedded.sha256(path)
        return Model(
            name,
            lm,
            engine,
            engine.context_tokens,
            max_tokens,
            price_of(name, named=price),
            revision[:12],
            program=program,
        )
    _check_provider(name)
    options |= {"retries": retries, **_client(name, addresses, timeout_seconds, flags)}
    try:
        lm = BoundedRetryLM(name, temperature=0.0, **options)
    except LMConfigurationError:  # a reasoning model sets its own temperature; its reasoning is part of the reply
        max_tokens = REASONING_TOKENS
        lm = BoundedRetryLM(name, temperature=None, **{**options, "max_tokens": max_tokens})
    return Model(
        name=name,
        lm=lm,
        count=counter_for(name, tokenizer=tokenizer),
        context_tokens=context_tokens or published(name).get("max_input_tokens"),
        max_tokens=max_tokens,
        price=price_of(name, api_base=",".join(addresses) or None, named=price),
        addresses=addresses,
    )


def addresses_of(name: str, api_base: str | None) -> tuple[str, ...]:
    """Return the addresses of a model's servers: those of the option, or of the provider's environment variable.

    Args:
        name: as in this module's documentation.
        api_base: URLs separated by commas; None for the variable, such as OPENAI_BASE_URL or OPENAI_API_BASE.

    Returns:
        The addresses; empty for a provider's own.

    Raises:
        ValueError: a URL is not valid.
    """
    provider = name.partition("/")[0]
    if api_base is None and provider in CHAT_PROVIDERS:
        names = (f"{provider.upper()}_{suffix}" for suffix in ("BASE_URL", "API_BASE"))
        api_base = next((value for name in names if (value := os.environ.get(name))), None)
    found = [part.strip() for part in (api_base or "").split(",") if part.strip()]
    for address in found:
        check_address(address)
    if provider.startswith("ollama"):  # Ollama's own clients name the server without the path
        found = [address if urllib.parse.urlsplit(address).path.strip("/") else f"{address.rstrip('/')}/v1"
                 for address in found]  # fmt: skip
    return tuple(dict.fromkeys(found))


def _client(name: str, addresses: tuple[str, ...], timeout_seconds: float, flags: Flags) -> dict[str, Any]:
    """Return the options of `dspy.LM` that choose and configure its client."""
    provider, _, model = name.partition("/")
    if not addresses:
        return {"timeout": timeout_seconds}
    if provider not in CHAT_PROVIDERS:
        if len(addresses) > 1:
            raise ValueError(f"several API bases need a model such as openai/NAME; {name} takes one.")
        return {"timeout": timeout_seconds, "api_base": addresses[0]}
    variable = f"{provider.upper()}_API_KEY"
    key = os.environ.get(variable) or "none"  # local servers need no key, but the client requires one
    flags = replace(flags, key=variable)
    return {"engine": ChatServers(model, addresses, api_key=key, timeout_seconds=timeout_seconds, flags=flags)}


def _check_provider(name: str) -> None:
    """Raise ValueError for an unknown provider before a run begins."""
    import litellm
    from litellm import BadRequestError, get_llm_provider

    litellm.suppress_debug_info = True  # it would print an advertisement to standard output
    try:
        get_llm_provider(name)
    except BadRequestError as error:
        raise ValueError(
            f"unknown provider in model {name!r}; use embedded:tiny|small|base, or PROVIDER/NAME such as "
            "openai/gpt-4o-mini."
        ) from error
