"""Servers that speak OpenAI's chat protocol, as an engine of `dspy.LM`: one address, or several of the same model.

DSPy's own client makes the calls. This module chooses the address, names the limit of a reply as the server does, and
words every failure.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dspy import lm15
from dspy.lm15 import (
    LMRouter,
    OpenAIChatCompat,
    OpenAIChatLM,
    Request,
    Response,
    RouterConfig,
    Timeouts,
    response_from_openai_chat,
)

from memometer.models import server_errors
from memometer.models.server_errors import Flags

LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
"""Names of the limit of a reply. Servers other than OpenAI's own know the first; some ignore the second silently."""

REST_SECONDS = 30.0
"""After a failed connection, an address gets no call for this time if others are left."""

MAX_CONNECTIONS = 1024
LISTING_SECONDS = 10.0


class ChatServers:
    """The servers of one model. Thread-safe; a call goes to the address with the fewest calls in flight.

    If a connection fails, the call is repeated at the other addresses, and the address rests for `REST_SECONDS`.

    Args:
        model: the name that the servers know.
        addresses: URLs of the servers, with /v1.
        api_key: the key; servers without one ignore it.
        timeout_seconds: limit of a call: until the first byte of the reply, and again until its last.
        flags: the options that error messages name.
    """

    def __init__(
        self, model: str, addresses: Sequence[str], *, api_key: str, timeout_seconds: float, flags: Flags | None = None
    ) -> None:
        self.model = model
        self.addresses = tuple(dict.fromkeys(address.rstrip("/") for address in addresses))
        self.flags = flags or Flags()
        self.limit_name = LIMIT_NAMES[0]
        self._refused_names: set[str] = set()
        self._key = api_key
        self._timeout = timeout_seconds
        self._lock = threading.Lock()
        # An address that was used less often comes first, so that idle servers share the calls.
        self._in_flight = dict.fromkeys(self.addresses, 0)
        self._used = dict.fromkeys(self.addresses, 0)
        self._resting = dict.fromkeys(self.addresses, 0.0)
        timeouts = Timeouts(read=timeout_seconds, write=timeout_seconds, pool=None)
        # The router builds DSPy's HTTP transport with these limits; "vllm" names only its rules for the body.
        self._router = LMRouter(
            RouterConfig(env={}, api_keys={"vllm": api_key}, timeouts=timeouts, max_connections=MAX_CONNECTIONS)
        )
        self._transport = _Deadline(self._router.lm("vllm:any").transport, timeout_seconds)
        self._clients: dict[tuple[str, str], _Client] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> ChatServers:
        return self  # optimisers copy programs often; connections and refusals are shared

    def complete(self, request: Request) -> Response:
        """Send one request.

        Raises:
            dspy.lm15.LM15Error: the call failed at every address, or a server refused it.
        """
        request = replace(request, model=self.model)
        for left in range(len(self.addresses), 0, -1):
            address = self._acquire()
            try:
                return self._client(address).complete(request)
            except lm15.TransportError as error:
                problem = server_errors.of_connection(
                    error.__cause__ or error, address, self.flags, timeout_seconds=self._timeout
                )
                if left == 1 or not isinstance(problem, lm15.TransportError):
                    raise problem from error
                self._resting[address] = time.monotonic() + REST_SECONDS
            finally:
                with self._lock:
                    self._in_flight[address] -= 1
        raise AssertionError("the last address raises its error")

    def change_limit_name(self, message: str) -> bool:
        """Use the other name for the limit of a reply, after a server refused one.

        Args:
            message: the refusal; it names the refused one first.

        Returns:
            False if both names are refused.
        """
        with self._lock:
            found = re.search("|".join(reversed(LIMIT_NAMES)), message)
            refused = found[0] if found else self.limit_name
            if refused not in self._refused_names:
                self._refused_names.add(refused)
                left = [name for name in LIMIT_NAMES if name not in self._refused_names]
                self.limit_name = left[0] if left else self.limit_name
            return len(self._refused_names) < len(LIMIT_NAMES)

    def listing(self, address: str) -> dict[str, Any] | None:
        """Return the server's list of models: name -> its entry; None if it has none.

        Raises:
            dspy.lm15.LM15Error: the server cannot be reached.
        """
        found = self.get_json(f"{address}/models")
        entries = found.get("data") if isinstance(found, dict) else None
        if not isinstance(entries, list):
            return None
        return {str(entry["id"]): entry for entry in entries if isinstance(entry, dict) and entry.get("id")}

    def get_json(self, url: str) -> Any:
        """Return what a server sends for a URL; None if it is not JSON.

        Raises:
            dspy.lm15.LM15Error: the server cannot be reached.
        """
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = min(LISTING_SECONDS, self._timeout)
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError:
            return None
        except urllib.error.URLError as error:
            text = f"failed to connect: {error.reason}"
            raise server_errors.of_connection(
                ConnectionError(text), self._address_of(url), self.flags, timeout_seconds=timeout
            ) from error
        except (OSError, ValueError):  # slow, cut, or not JSON; a call will show if the server answers
            return None

    def _address_of(self, url: str) -> str:
        return next((address for address in self.addresses if url.startswith(address)), url)

    def _acquire(self) -> str:
        with self._lock:
            now = time.monotonic()
            address = min(self.addresses, key=lambda a: (self._resting[a] > now, self._in_flight[a], self._used[a]))
            self._in_flight[address] += 1
            self._used[address] += 1
            return address

    def _client(self, address: str) -> _Client:
        key = (address, self.limit_name)
        with self._lock:
            if key not in self._clients:
                compat = replace(OpenAIChatCompat.preset("vllm"), max_tokens_field=self.limit_name)
                client = _Client(api_key=self._key, transport=self._transport, base_url=address, compat=compat)
                client.address, client.flags = address, self.flags
                self._clients[key] = client
            return self._clients[key]


class _Client(OpenAIChatLM):
    """DSPy's client of one address, with our reading of replies and failures."""

    address: str
    flags: Flags

    def normalize_error(self, status: int, body: str) -> Any:
        return server_errors.of_status(status, body, self.address, self.flags, super().normalize_error(status, body))

    def parse_response(self, request: Request, response: Any) -> Response:
        try:
            body = json.loads(response.body)
        except (ValueError, RecursionError):
            raise server_errors.of_reply("not JSON", response.body, self.address, self.flags) from None
        if message := server_errors.error_in(body):
            raise server_errors.of_reply(message, response.body, self.address, self.flags)
        try:
            return response_from_openai_chat(_usable(body), model=request.model)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise server_errors.of_reply(str(error), response.body, self.address, self.flags) from error


def _usable(body: dict[str, Any]) -> dict[str, Any]:
    """Return a completion with one choice and with the counts of tokens that are numbers."""
    usage = body.get("usage")
    return {**body, "choices": body["choices"][:1], "usage": _counts(usage) if isinstance(usage, dict) else {}}


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in usage.items():
        if isinstance(value, dict):
            found[name] = _counts(value)
        elif isinstance(value, int | float | str) and str(value).replace(".0", "").isdigit():
            found[name] = int(float(value))
    return found


@dataclass(frozen=True, slots=True)
class _Deadline:
    """A transport whose replies must be complete in time. DSPy's own waits as long as single bytes keep coming."""

    inner: Any
    seconds: float

    def stream(self, request: Any) -> _Reply:
        return _Reply(self.inner.stream(request), self.seconds)


class _Reply:
    def __init__(self, inner: Any, seconds: float) -> None:
        self.inner, self.seconds = inner, seconds

    def __enter__(self) -> _Reply:
        self.inner.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.inner.__exit__(*exc)

    def __iter__(self) -> Iterator[bytes]:
        end = time.monotonic() + self.seconds
        for chunk in self.inner:
            yield chunk
            if time.monotonic() > end:
                raise lm15.TransportError("read timed out: the reply is too slow")

    def read(self) -> bytes:
        return b"".join(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
