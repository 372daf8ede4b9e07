"""A system of the plug-in protocol behind an HTTP server."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from memometer.systems.connection import MOST_REPLY, error_text, seconds
from memometer.systems.open_scopes import OpenScopes
from memometer.systems.plugin import PluginError

NOT_METERED = (
    "its model calls are not metered, because the server does not confirm the address of the metered endpoint; calls, "
    "tokens and cost leave them out, and no limit applies to them"
)


class Http:
    """A system behind an HTTP server that answers the messages of the protocol as POST requests.

    Every request carries the address of the metered endpoint as `openai_base_url`. A reply with `"metered": true`
    confirms that the system sends its model calls there.

    Scopes that a killed run left in the server are closed when the next run starts.

    Args:
        url: The URL of the requests. Redirects are not followed, and no proxy is used.
        environment: Environment variables of the metered endpoint.
    """

    def __init__(self, url: str, environment: Mapping[str, str]) -> None:
        self.url = url
        self.metered = False
        self.starts = 1
        self._endpoint = environment.get("OPENAI_BASE_URL", "")
        self._scopes = OpenScopes(url)
        self._closed: list[str] = []
        self._number = 0
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        self._lock = threading.Lock()

    def begin(self) -> int:
        return self.starts

    def call(self, method: str, params: Mapping[str, Any], *, timeout_seconds: float) -> Any:
        if method == "open":
            self._scopes.add(params["scope"])
        result = self._call(method, params, timeout_seconds)
        if method == "close":
            self._scopes.discard(params["scope"])
        if method == "describe":
            self._close_left_over(timeout_seconds)
        return result

    def _close_left_over(self, timeout_seconds: float) -> None:
        for scope in self._scopes.left_over():
            with contextlib.suppress(PluginError):  # the server may have lost it as well
                self._call("close", {"scope": scope}, min(timeout_seconds, 60.0))
                self._closed.append(scope)

    def _call(self, method: str, params: Mapping[str, Any], timeout_seconds: float) -> Any:
        with self._lock:
            self._number += 1
            replies: queue.Queue[Any] = queue.Queue()
            # In a thread, because the time-out of a socket does not bound a reply that arrives byte by byte.
            request = {"id": self._number, "method": method, "params": dict(params)}
            if self._endpoint:
                request["openai_base_url"] = self._endpoint
            arguments = (request, timeout_seconds, replies)
            threading.Thread(target=self._post, args=arguments, daemon=True).start()
            try:
                reply = replies.get(timeout=timeout_seconds + 1)
            except queue.Empty:
                reply = TimeoutError()
        if isinstance(reply, TimeoutError):
            raise PluginError(f"{method} got no reply within {seconds(timeout_seconds)}") from reply
        if isinstance(reply, Exception):
            raise PluginError(f"{method} failed: {reply}") from reply
        self.metered = self.metered or reply.get("metered") is True
        return reply.get("result")

    def _post(self, request: Mapping[str, Any], timeout_seconds: float, replies: queue.Queue[Any]) -> None:
        body = json.dumps(request).encode("ascii")
        message = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        try:
            with self._opener.open(message, timeout=timeout_seconds) as response:
                replies.put(_http_result(response.read(MOST_REPLY + 1)))
        except urllib.error.HTTPError as error:
            replies.put(PluginError(_http_error(error)))
        except TimeoutError as error:
            replies.put(error)
        except urllib.error.URLError as error:
            is_timeout = isinstance(error.reason, TimeoutError)
            replies.put(
                TimeoutError() if is_timeout else PluginError(f"no server answers at {self.url} ({error.reason})")
            )
        except Exception as error:  # noqa: BLE001 - broken HTTP has many forms; each is one failed call
            first = str(error).splitlines()[:1]
            replies.put(error if isinstance(error, PluginError) else PluginError(f"{type(error).__name__}: {first}"))

    def stop(self) -> None:
        self._scopes.stop()

    def source(self) -> str:
        return ""

    def notices(self) -> list[str]:
        found = [] if self.metered else [NOT_METERED]
        if self._closed:
            found.append(f"{len(self._closed):,} memories that an earlier run had left in it were deleted")
        return found

    def peak_memory(self) -> int | None:
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Do not follow a redirect; it becomes an HTTPError."""


def _http_error(error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
        return f"the server redirects to {error.headers.get('Location', 'another address')[:200]}; name that URL"
    with contextlib.suppress(Exception):
        body = error.read(2000).decode("utf-8", "replace")
        with contextlib.suppress(ValueError, AttributeError):
            body = error_text(json.loads(body)["error"])
        if first := " ".join(body.split())[:200]:
            return f"the server answered HTTP {error.code}: {first}"
    return f"the server answered HTTP {error.code}"


def _http_result(body: bytes) -> dict[str, Any]:
    if len(body) > MOST_REPLY:
        raise PluginError(f"the reply is longer than {MOST_REPLY >> 20} MiB")
    try:
        found = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise PluginError("the reply is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise PluginError(
            f"the reply is not JSON ({' '.join(body[:60].decode('utf-8', 'replace').split())!r})"
        ) from error
    if not isinstance(found, dict) or ("result" not in found and "error" not in found):
        raise PluginError('the reply is not an object with "result" or "error"')
    if found.get("error") is not None:
        raise PluginError(error_text(found["error"]))
    return found


def check_url(url: str) -> str:
    """Return a sentence about what is wrong with the URL of a system; empty if it can be used."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"{url} is not a URL ({error})"
    if not host:
        return f"{url} names no host; write http://127.0.0.1:8000/"
    if parts.username or parts.password:
        return "the URL contains a user or password, which would be saved with the run; leave it out"
    return ""
