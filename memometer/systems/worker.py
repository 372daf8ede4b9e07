"""Runs a memory system of the plug-in protocol in a process of its own. This file needs Python 3.9 and nothing else.

    python worker.py my_memory.py:MyMemory                     JSON lines over standard input and output
    python worker.py 'my_module:MyMemory?top_k=200'            with a parameter of the constructor
    python worker.py my_memory.py:MyMemory --http 8000         the same messages as POST requests to 127.0.0.1:8000

A request is one JSON object, {"id": 1, "method": "search", "params": {...}}; the reply is {"id": 1, "result": ...} or
{"id": 1, "error": "a sentence"}. Everything that the system prints goes to standard error, so it cannot be mistaken
for a reply. The methods may be coroutines. The process ends at the end of standard input.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

METHODS = ("open", "add", "ready", "search", "close", "describe")
"""The methods that every system has; `forget` is optional."""

OPTIONAL_METHODS = ("forget",)


class LoadError(Exception):
    """The system cannot be loaded. The message is one sentence for its author."""


def split_parameters(text: str) -> tuple[str, dict[str, Any]]:
    """Split `target?key=value&other=1` into the target and its parameters.

    Args:
        text: The target, optionally with parameters. A value that is JSON, such as 5, true or null, is decoded.

    Returns:
        The target and the parameters by name.
    """
    target, _, query = text.partition("?")
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        try:
            found[name] = json.loads(value, parse_constant=_refuse, parse_float=_finite)
        except ValueError:
            found[name] = value
    return target, found


def _refuse(name: str) -> Any:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(name)


def _finite(text: str) -> float:
    """Decode a number that a float can hold."""
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(text)
    return number


def load_class(target: str) -> Any:
    """Load the class that a target names.

    Args:
        target: `module:Class`, or `path/to/file.py:Class`. The current folder is searched for modules.

    Raises:
        LoadError: There is no such file, module or class, or its import fails.
    """
    place, _, name = target.rpartition(":")
    if not place or not name.isidentifier():
        raise LoadError(f"{target!r} names no class; write module:Class or ./file.py:Class")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    if not hasattr(module, name):
        known = sorted(k for k, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__)
        raise LoadError(f"{place} has no class {name}; it defines {', '.join(known) or 'no class'}")
    return getattr(module, name)


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise LoadError(f"there is no file {path}")
    # At the end, and under a name of its own, because a file mem0.py must not hide the package mem0.
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    name = f"_memory_system_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise LoadError(f"{path} cannot be imported ({_sentence(error)})") from error
    return module


def _load_module(name: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise LoadError(f"the module {name} cannot be imported ({_sentence(error)})") from error


def check_parameters(kind: Any, parameters: dict[str, Any]) -> None:
    """Check the arguments of a constructor.

    Args:
        kind: The class.
        parameters: Its arguments by name.

    Raises:
        LoadError: A parameter is missing or unknown.
    """
    try:
        taken = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):  # a class written in C has no signature
        return
    name = getattr(kind, "__name__", str(kind))
    named = [p for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in taken)
    if unknown := [key for key in parameters if key not in names and not takes_any]:
        raise LoadError(f"{name} takes no parameter {unknown[0]}; it takes {', '.join(names) or 'none'}")
    if missing := [p.name for p in named if p.default is p.empty and p.name not in parameters]:
        raise LoadError(f"{name} needs the parameter {missing[0]}; add ?{missing[0]}=VALUE")


def make(kind: Any, parameters: dict[str, Any]) -> Any:
    """Construct a system.

    Args:
        kind: Its class.
        parameters: Arguments of the constructor.

    Raises:
        LoadError: A parameter is missing or unknown, the constructor fails, or the class lacks a method.
    """
    name = getattr(kind, "__name__", str(kind))
    if not callable(kind):
        raise LoadError(f"{name} is not a class")
    check_parameters(kind, parameters)
    if lacking := [method for method in METHODS if not callable(getattr(kind, method, None))]:
        raise LoadError(f"{name} lacks the method {lacking[0]}; the protocol is {', '.join(METHODS)}")
    try:
        return kind(**parameters)
    except (Exception, SystemExit) as error:
        raise LoadError(f"{name} cannot be constructed ({_sentence(error)})") from error


class Caller:
    """Calls the methods of one system, one at a time, and returns what JSON can hold.

    Args:
        system: The system.
    """

    def __init__(self, system: Any) -> None:
        self.system = system
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def reply(self, request: Any) -> dict[str, Any]:
        """Carry out a request. A failure of the system is a reply with `error`, not an exception."""
        number = request.get("id") if isinstance(request, dict) else None
        try:
            if not isinstance(request, dict) or not isinstance(request.get("params", {}), dict):
                raise TypeError('a request is an object {"id": ..., "method": ..., "params": {...}}')
            with self._lock:
                return {"id": number, "result": self.call(str(request.get("method")), request.get("params") or {})}
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a system may raise anything
            return {"id": number, "error": _sentence(error)}

    def stop(self) -> None:
        """Close the event loop of coroutines."""
        if self._loop:
            self._loop.close()
            self._loop = None

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """Call a method and return its result as plain JSON values."""
        if method not in METHODS + OPTIONAL_METHODS:
            raise ValueError(f"unknown method {method}; the protocol is {', '.join(METHODS + OPTIONAL_METHODS)}")
        result = getattr(self.system, method)(**params)
        if inspect.isawaitable(result):
            self._loop = self._loop or asyncio.new_event_loop()
            result = self._loop.run_until_complete(result)
        if method == "describe" and isinstance(result, dict):
            result = {"source": source_digest(type(self.system)), "optional": optional_parts(self.system), **result}
        return json.loads(json.dumps(result, default=_plain))


def optional_parts(system: Any) -> list[str]:
    """Return what a system has of the optional parts of the protocol: `forget`, and `asker` in `search`."""
    found = [method for method in OPTIONAL_METHODS if callable(getattr(system, method, None))]
    try:
        taken = inspect.signature(system.search).parameters.values()
    except (TypeError, ValueError):  # a method written in C has no signature
        return found
    return found + ["asker"] * any(p.name == "asker" or p.kind is p.VAR_KEYWORD for p in taken)


def _plain(value: Any) -> Any:
    """Convert numbers of NumPy, and iterables, to what JSON holds."""
    if callable(getattr(value, "item", None)):
        return value.item()
    if isinstance(value, (set, frozenset)) or inspect.isgenerator(value):
        return list(value)
    raise TypeError(f"it returned a {type(value).__name__}, which JSON cannot hold")


def _sentence(error: BaseException) -> str:
    """Return `Type: first line of the message`."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return " ".join(f"{type(error).__name__}: {first}".split())[:400]


def source_digest(kind: Any) -> str:
    """Hash the source file of a class and the files next to it that it imports.

    Returns:
        A digest; empty if the source cannot be read.
    """
    try:
        return files_digest(Path(inspect.getfile(kind)))
    except (OSError, TypeError):
        return ""


def files_digest(path: Path) -> str:
    """Hash a file and, if it is Python, the modules of its folder that it imports, directly or not."""
    found: dict[str, str] = {}
    todo = [path.resolve()]
    while todo:
        file = todo.pop()
        if str(file) in found or not file.is_file():
            continue
        content = file.read_bytes()
        found[str(file)] = hashlib.sha256(content).hexdigest()
        for name in _imports(content) if file.suffix == ".py" else ():
            place = path.resolve().parent.joinpath(*name.split("."))
            todo += [place.with_suffix(".py"), *sorted(place.glob("*.py"))]
    return hashlib.sha256(json.dumps(sorted(found.values())).encode()).hexdigest()[:16]


def _imports(content: bytes) -> list[str]:
    """Return the names of modules that Python code may import."""
    # Not with `ast`, which fails in threads under some versions of Python 3.11.
    found = re.findall(
        rb"^[ \t]*(?:from[ \t]+\.*([\w.]+)[ \t]+import\b|import[ \t]+([\w., \t]+))", content, re.MULTILINE
    )
    found += [
        (name, b"")
        for names in re.findall(rb"^[ \t]*from[ \t]+\.+[ \t]+import[ \t]+([\w, \t]+)", content, re.M)
        for name in names.split(b",")
    ]
    names = [name for module, several in found for name in (module or several).split(b",")]
    return [name.decode("ascii", "ignore").split()[0] for name in names if name.strip(b" .")]


class _Unavailable:
    """Answers every request with the reason why the system could not be loaded."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def reply(self, request: Any) -> dict[str, Any]:
        return {"id": request.get("id") if isinstance(request, dict) else None, "error": self.reason}


class _MeteredSystems:
    """One system for each metered endpoint. An evaluation sends the address of its endpoint with every request.

    The address is in OPENAI_BASE_URL while the system works, so that its clients send their calls there.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._callers: dict[str, Any] = {}
        self._lock = threading.Lock()

    def reply(self, request: Any) -> dict[str, Any]:
        """Carry out a request. The reply says that the calls of the system are metered if they are."""
        url = request.get("openai_base_url") if isinstance(request, dict) else None
        url = url if isinstance(url, str) else ""
        with self._lock:
            if url:
                os.environ.update(
                    {"OPENAI_BASE_URL": url, "OPENAI_API_BASE": url, "OPENAI_API_KEY": "metered-by-memometer"}
                )
            if url not in self._callers:
                self._callers = {url: _caller(self._target), **dict(list(self._callers.items())[:MOST_ENDPOINTS])}
            reply: dict[str, Any] = self._callers[url].reply(request)
        return {**reply, "metered": True} if url else reply


MOST_ENDPOINTS = 7
"""Endpoints of earlier evaluations whose systems are kept: those evaluations may still run."""


def _caller(target: str) -> Any:
    try:
        place, parameters = split_parameters(target)
        return Caller(make(load_class(place), parameters))
    except LoadError as error:
        print(f"worker.py: {error}", file=sys.stderr, flush=True)
        return _Unavailable(str(error))


def serve_lines(target: str) -> None:
    """Answer JSON lines of standard input on standard output, until the input ends.

    Args:
        target: The class of the system, with its parameters.
    """
    # Replies get a copy of standard output; whatever else is printed, also by C code, goes to standard error.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    caller = _caller(target)
    for line in requests:
        if not line.strip():
            continue
        try:
            request = json.loads(line)
        except ValueError as error:
            reply = {"id": None, "error": f"the request is not JSON ({error})"}
        else:
            reply = caller.reply(request)
        data = memoryview(json.dumps(reply).encode("ascii") + b"\n")
        while data:  # a pipe takes a long line in parts
            data = data[replies.write(data) :]


def serve_http(target: str, port: int) -> None:
    """Answer the same messages as POST requests, until the process ends.

    Args:
        target: The class of the system, with its parameters.
        port: Port of 127.0.0.1; 0 chooses a free one. The URL is printed.
    """
    systems = _MeteredSystems(target)

    class Requests(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                request = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            except ValueError as error:
                reply = {"id": None, "error": f"the request is not JSON ({error})"}
            else:
                reply = systems.reply(request)
            body = json.dumps(reply).encode("ascii")
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Requests)
    print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
    server.serve_forever()


def main(words: list[str]) -> int:
    """Serve the system that the command line names; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what the system opened is closed at exit
    if len(words) == 3 and words[1] == "--http" and words[2].isdigit():
        serve_http(words[0], int(words[2]))
    elif len(words) == 1 and not words[0].startswith("-"):
        serve_lines(words[0])
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
