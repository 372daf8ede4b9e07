"""A RunPod account and a rented machine on loopback: servers that check requests, and a local `ssh`."""

from __future__ import annotations

import json
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "rpa_0123456789ABCDEFGHIJKLMNOP"
KINDS = [
    {"id": "NVIDIA A100 80GB PCIe", "displayName": "A100 PCIe", "memoryInGb": 80, "price": 1.64},
    {"id": "NVIDIA A100-SXM4-80GB", "displayName": "A100 SXM", "memoryInGb": 80, "price": 1.89},
    {"id": "NVIDIA L40S", "displayName": "L40S", "memoryInGb": 48, "price": 0.86},
]


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler, bytes], tuple[int, Any]]) -> Iterator[str]:
    """A loopback HTTP server. `answer` maps (handler, body) to (status, JSON content); status 0 hangs up."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status, content = answer(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            if not status:
                self.close_connection = True
                return
            text = json.dumps(content).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                pass  # the client gave up waiting

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()


@dataclass
class Account:
    """The parts of RunPod's GraphQL that its client uses. Set attributes to make it fail."""

    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    """The input of every mutation that rents."""
    terminated: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    polls_until_up: int = 1
    usd_per_hour: float | None = None
    """Price of a rented machine; None for the announced price."""
    refuse: str = ""
    """Error message in place of renting."""
    lose_reply: bool = False
    """True if the reply to renting is lost."""
    stuck: str = ""
    """Id of a machine that cannot be terminated."""
    silent: int = 0
    """Number of status requests that fail."""
    lists_until_known: int = 0
    """Number of lists from which a rented machine is still missing."""
    null_order: bool = False
    """True if renting is answered with null."""
    null_polls: int = 0
    """Number of status requests that are answered with null."""
    on_poll: Callable[[], None] = lambda: None
    on_terminate: Callable[[], None] = lambda: None

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Any]:
        if handler.headers["Authorization"] != f"Bearer {KEY}":
            return 401, {}
        assert handler.path == "/graphql"
        query = json.loads(body)["query"]
        self.queries.append(query)
        if self.refuse and "podFindAndDeploy" in query:
            return 200, {"errors": [{"message": self.refuse}]}
        if self.lose_reply and "podFindAndDeploy" in query:
            self._rent(query)
            return 500, "lost"
        if (named := re.search(r'podTerminate.*podId: "(\w+)"', query)) and named[1] in (self.stuck, *self._gone()):
            return 200, {"errors": [{"message": "pod not found to terminate"}]}
        if self.silent and "pod(input" in query:
            self.silent -= 1
            return 502, "bad gateway"
        return 200, {"data": self._data(query)}

    def _gone(self) -> set[str]:
        return {f"pod{n + 1}" for n in range(len(self.created))} - set(self.pods)

    def _data(self, query: str) -> Any:
        if "podFindAndDeployOnDemand" in query:
            return {"podFindAndDeployOnDemand": None if self.null_order else self._rent(query)}
        if terminate := re.search(r'podTerminate\(input: \{ podId: "(\w+)" \}\)', query):
            self.on_terminate()
            self.terminated.append(terminate[1])
            del self.pods[terminate[1]]
            return {"podTerminate": None}
        if one := re.search(r'pod\(input: \{podId: "(\w+)"\}\)', query):
            if self.null_polls and self.pods.get(one[1], {}).get("asked"):  # after the price was read
                self.null_polls -= 1
                return {"pod": None}
            if one[1] in self.pods:
                self.pods[one[1]]["asked"] = True
            return {"pod": self._poll(one[1])}
        if "myself" in query:
            if self.lists_until_known:
                self.lists_until_known -= 1
                return {"myself": {"pods": []}}
            volumes = [{"id": "vol9", "dataCenterId": "EU-RO-1"}]
            return {"myself": {"pods": list(self.pods.values()), "networkVolumes": volumes}}
        if kind := re.search(r'gpuTypes\(input: \{id: "([^"]+)"\}\)', query):
            return {"gpuTypes": [self._full(k) for k in KINDS if k["id"] == kind[1]]}
        assert "gpuTypes" in query
        return {"gpuTypes": [{k: v for k, v in kind.items() if k != "price"} for kind in KINDS]}

    def _full(self, kind: dict[str, Any]) -> dict[str, Any]:
        rest = {"maxGpuCount": 8, "securePrice": kind["price"], "communityPrice": kind["price"] - 0.2}
        return {**kind, **rest, "lowestPrice": {"uninterruptablePrice": kind["price"] - 0.2}}

    def _rent(self, query: str) -> dict[str, Any]:
        self.created.append(query)
        values = dict(re.findall(r'(\w+): "([^"]*)"', query))
        gpus = int(re.search(r"gpuCount: (\d+)", query)[1])  # type: ignore[index]
        price = next(k["price"] for k in KINDS if k["id"] == values["gpuTypeId"])
        pod = {
            "id": f"pod{len(self.created)}",
            "name": values["name"],
            "desiredStatus": "RUNNING",
            "gpuCount": gpus,
            "costPerHr": price * gpus if self.usd_per_hour is None else self.usd_per_hour,
            "env": [f"SECRET_OF_ANOTHER={KEY[::-1]}"],
            "dockerArgs": values["dockerArgs"],
            "machine": {"gpuDisplayName": "A100 PCIe"},
            "runtime": None,
        }
        self.pods[pod["id"]] = pod
        return pod

    def _poll(self, pod: str) -> dict[str, Any] | None:
        self.on_poll()
        if pod not in self.pods:
            return None
        self.polls_until_up -= 1
        if self.polls_until_up < 0:
            ports = [
                {"ip": "100.65.0.1", "isIpPublic": False, "privatePort": 19123, "publicPort": 60000, "type": "http"},
                {"ip": "203.0.113.7", "isIpPublic": True, "privatePort": 22, "publicPort": 10022, "type": "tcp"},
            ]
            self.pods[pod]["runtime"] = {"ports": ports}
        return self.pods[pod]


SSH = '''#!{python}
"""Runs its command here, or forwards to {forward}; logs its arguments to {log}."""
import os, socket, subprocess, sys, threading
argv = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(repr(argv) + "\\n")
if "-N" not in argv:
    command = argv[-1].replace("/workspace/arbor", {home!r})
    sys.exit(subprocess.call(["bash", "-c", command]))
local, port, remote, _ = argv[argv.index("-L") + 1].split(":")
assert local == remote == "127.0.0.1"
listening = socket.create_server((local, int(port)))
def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
while True:
    near, _ = listening.accept()
    try:
        far = socket.create_connection(("127.0.0.1", {forward}))
    except OSError:
        near.close()
        continue
    for pair in ((near, far), (far, near)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
'''


def install_ssh(folder: Path, *, forward: int, home: Path) -> Path:
    """Write an `ssh` to `folder`, which must be first in PATH; return its log of arguments. `forward` is the port that
    its tunnels lead to, `home` the folder that replaces /workspace/arbor."""
    folder.mkdir(exist_ok=True)
    script = folder / "ssh"
    log = folder / "ssh.log"
    script.write_text(SSH.format(python=sys.executable, forward=forward, home=str(home), log=str(log)))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return log
