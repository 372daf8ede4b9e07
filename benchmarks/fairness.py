"""Fairness of the REST service: latency of a quiet tenant while another tenant sends heavy requests.

    python benchmarks/fairness.py [--turns 30000] [--seconds 20] [--encoder minilm] [--json FILE]

The service runs in its own process on one SQLite file, with tokens of two tenants. The quiet tenant retrieves ten turns
of its 5,000, twenty times a second at most. The other tenant does one of these at a time: 20 clients that retrieve
k=1000, 20 clients that call `answer` of a model that takes two seconds, exports of a memory of --turns turns, and
imports of that export. Between them, the quiet tenant is measured alone. A ratio compares the 95th percentile with that
of the idle time before it. The stored vectors are random, because only their number matters; questions are encoded.

Exits 1 if a request of the quiet tenant failed or if a ratio is over --limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.stores import texts, turns

PORT = 8798
QUIET_TURNS = 5_000
MODEL_SECONDS = 2.0


class RandomVectors:
    """An encoder with the name and the dimensions of another, and random vectors."""

    def __init__(self, name: str, dimensions: int) -> None:
        self.name, self.dimensions = name, dimensions
        self._draw = np.random.default_rng(0)

    def __call__(self, lines: Sequence[str]) -> np.ndarray:
        vectors = self._draw.standard_normal((len(lines), self.dimensions)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class SlowModel(BaseHTTPRequestHandler):
    """A chat server whose answers take MODEL_SECONDS."""

    def do_POST(self) -> None:  # the name that http.server calls
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(MODEL_SECONDS)
        message = {"role": "assistant", "content": "[[ ## answer ## ]]\nkayak\n\n[[ ## completed ## ]]"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        reply = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "slow",
                            "choices": choices, "usage": usage}).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def fill(url: str, encoder: str, count: int) -> dict[str, str]:
    """Store the turns of both tenants; return their tokens."""
    from memometer.models import encoders
    from memometer.serve.auth import AccessTokens
    from memometer.serve.new_turns import NewTurn
    from memometer.serve.tenants import TenantMemories

    real = encoders.load(encoder, cached=False)
    memories = TenantMemories(url, encoder=RandomVectors(real.name, real.dimensions))
    try:
        lines = list(texts(turns(), count))
        for tenant, size in (("quiet", QUIET_TURNS), ("busy", count)):
            memories.registry.ensure(tenant, "default", system="episodic")
            for start in range(0, size, 1000):
                new = [NewTurn(line, "Nadia") for line in lines[start : min(start + 1000, size)]]
                memories.observe(tenant, "default", new)
        tokens = AccessTokens(memories.store)
        return {tenant: tokens.issue(tenant, at=memories.now()) for tenant in ("quiet", "busy")}
    finally:
        memories.close()


@contextmanager
def service(url: str, encoder: str, model_port: int) -> Iterator[subprocess.Popen[bytes]]:
    import httpx

    command = [sys.executable, "-m", "memometer", "serve", "--port", str(PORT), "--rate", "0", "--auth",
               "--memory-url", url, "--encoder", encoder,
               "--model", "openai/slow", "--api-base", f"http://127.0.0.1:{model_port}/v1"]  # fmt: skip
    process = subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{PORT}/readyz", timeout=60).raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    finally:
        process.kill()
        process.wait()


class Quiet:
    """The quiet tenant: retrieves, and notes latencies in milliseconds."""

    def __init__(self, token: str, lines: list[str]) -> None:
        self._token, self._lines = token, lines
        self.failed: list[str] = []

    def measure(self, seconds: float) -> np.ndarray:
        import httpx

        found, end, draw = [], time.monotonic() + seconds, random.Random(7)
        headers = {"Authorization": f"Bearer {self._token}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=120) as client:
            while time.monotonic() < end:
                words = " ".join(draw.choice(self._lines).split()[1:9])
                started = time.perf_counter()
                try:
                    reply = client.get("/memory/retrieve", params={"q": words, "k": 10})
                    if reply.status_code != 200:
                        self.failed.append(f"{reply.status_code} {reply.text[:200]}")
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                found.append(1000 * (time.perf_counter() - started))
                time.sleep(max(0.0, 0.05 - found[-1] / 1000))
        return np.array(found)


def send(client: Any, kind: str, words: str, cartridge: Path) -> int:
    """Send one heavy request; return the status of the reply."""
    if kind == "retrieve":
        reply = client.get("/memory/retrieve", params={"q": words, "k": 1000})
    elif kind == "answer":
        reply = client.post("/v1/memories/default/answer", json={"question": words})
    elif kind == "export":
        reply = client.get("/v1/memories/default/cartridge")
        cartridge.write_bytes(reply.content)
    else:
        reply = client.put("/v1/memories/copy/cartridge", content=cartridge.read_bytes())
    return int(reply.status_code)


def run_clients(kind: str, clients: int, token: str, lines: list[str], cartridge: Path, stop: Any, out: Any) -> None:
    """Let clients repeat a request until `stop` is set; send the statuses. Runs in a process of its own."""
    import httpx

    os.nice(10)  # the clients' own work shall not slow the quiet client
    statuses: list[int] = []

    def run(seed: int) -> None:
        draw, headers = random.Random(seed), {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=300) as client:
            while not stop.is_set():
                try:
                    statuses.append(send(client, kind, " ".join(draw.choice(lines).split()[1:9]), cartridge))
                except httpx.HTTPError:
                    statuses.append(0)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.send(statuses)


@contextmanager
def busy(kind: str, clients: int, token: str, lines: list[str], cartridge: Path) -> Iterator[list[int]]:
    """Run clients during the block; yield a list that holds the statuses of their replies afterwards."""
    context = multiprocessing.get_context("spawn")
    stop, (receiving, sending) = context.Event(), context.Pipe(False)
    process = context.Process(target=run_clients, args=(kind, clients, token, lines, cartridge, stop, sending))
    process.start()
    statuses: list[int] = []
    try:
        yield statuses
    finally:
        stop.set()
        statuses += receiving.recv()
        process.join()


def main() -> int:
    """Run the benchmark; print and write the measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=30_000, help="turns of the busy tenant")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of each measurement")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--limit", type=float, default=3.0, help="highest ratio")
    parser.add_argument("--only", nargs="+", help="kinds of load (default: all)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    lines = list(texts(turns(), 2000))
    loads = {"retrieve": 20, "answer": 20, "export": 1, "import": 1}
    measures: dict[str, Any] = {}
    model = ThreadingHTTPServer(("127.0.0.1", 0), SlowModel)
    threading.Thread(target=model.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/memory.db"
        tokens = fill(url, args.encoder, args.turns)
        with service(url, args.encoder, model.server_port):
            quiet = Quiet(tokens["quiet"], lines)
            quiet.measure(2)
            for name, clients in loads.items():
                if args.only and name not in args.only:
                    continue
                idle = quiet.measure(args.seconds / 2)
                with busy(name, clients, tokens["busy"], lines, Path(folder) / "busy.cartridge") as counts:
                    time.sleep(2)
                    loaded = quiet.measure(args.seconds)
                alone, beside = (float(np.percentile(ms, 95)) for ms in (idle, loaded))
                by_status = {str(status): counts.count(status) for status in sorted(set(counts))}
                measures[name] = {
                    "idle_p50_p95_ms": [round(float(np.percentile(idle, 50)), 1), round(alone, 1)],
                    "loaded_p50_p95_max_ms": [round(float(np.percentile(loaded, p)), 1) for p in (50, 95, 100)],
                    "ratio": round(beside / alone, 2), "requests": len(loaded), "replies_of_the_other": by_status,
                }  # fmt: skip
                print(f"{name:>10} {measures[name]}", flush=True)
    model.shutdown()
    for failure in quiet.failed[:5]:
        print(failure)
    if args.json:
        args.json.write_text(json.dumps(measures, indent=1) + "\n")
    return int(bool(quiet.failed) or any(measure["ratio"] > args.limit for measure in measures.values()))


if __name__ == "__main__":
    sys.exit(main())
