"""What tokens cost in US dollars: by the table that DSPy carries (LiteLLM's), by what the user named, or nothing where
the model runs on this machine. A price that is not known is None, never zero."""

from __future__ import annotations

import ipaddress
import urllib.parse
from dataclasses import dataclass
from typing import Any

LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token: of a prompt, of the part of it that the provider read from its cache, of a reply.

    `source` is `local`, `named` by the user, or the table and its version. Surcharges for long prompts, written caches
    and other service tiers are not in it.
    """

    prompt: float
    cached: float
    completion: float
    source: str

    def usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Dollars; `cached_tokens` are part of `prompt_tokens`."""
        fresh = prompt_tokens - cached_tokens
        return fresh * self.prompt + cached_tokens * self.cached + completion_tokens * self.completion


def price_of(name: str, *, api_base: str | None = None, named: tuple[float, float] | None = None) -> Price | None:
    """The price of a model, None where it is not known.

    Args:
        api_base: a server of this machine is local; any other may ask whatever it likes, and its price is not known.
        named: dollars per million tokens of prompt and reply, which go before all else.
    """
    if named is not None:
        prompt, completion = (dollars / 1e6 for dollars in named)
        return Price(prompt, prompt, completion, "named")
    if name.startswith(("embedded:", "embedded/")) or (api_base and _is_loopback(api_base)):
        return Price(0.0, 0.0, 0.0, LOCAL)
    if api_base:
        return None
    info = published(name)
    prompt_price, reply_price = info.get("input_cost_per_token"), info.get("output_cost_per_token")
    if prompt_price is None or reply_price is None:
        return None
    return Price(prompt_price, info.get("cache_read_input_token_cost", prompt_price), reply_price, table())


def published(name: str) -> dict[str, Any]:
    """Window and prices from the table that DSPy carries; empty for a model that is not in it."""
    from dspy.clients.model_metadata import model_info

    provider, _, model = name.rpartition("/") if name.count("/") < 2 else name.partition("/")
    return model_info(provider or "openai", model)


def table() -> str:
    """The table's name and version, which is its date."""
    from importlib.metadata import version

    from dspy.clients.model_metadata import source_info

    found = source_info()
    kind = "" if found["source"] == "local" else ", fetched"
    return f"LiteLLM's table {found['snapshot_version']} in dspy {version('dspy')}{kind}"


def _is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
