"""The REST service under mixed load: throughput, latency and growth of its memory.

    python benchmarks/service.py [--minutes 30] [--clients 8] [--turns 5000] [--encoder minilm] [--json FILE]

The service runs in its own process on one SQLite file, with tokens of two tenants, who have half of the clients each.
Each client sends its next request when the last one is answered. Every half minute, each tenant exports its memory and
imports the file into another one. Of ten requests, six retrieve, two store, one recalls within a budget, and one lists
or reads the metrics; every thousandth one consolidates. A client that has stored a hundred turns deletes one for each
new one, so the number of turns is constant and memory has no reason to grow. The turns are random words of LOCOMO's
length (benchmarks/stores.py). Resident memory is sampled every second; slopes are fitted to the second half, when the
caches are full. A run of a minute checks that everything works; a slope needs half an hour.

Exits 1 if a request failed, if a turn that was acknowledged is missing at the end, or if anonymous memory grows faster
than --slope.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.stores import texts, turns

PORT = 8799
MIX = ["retrieve"] * 6 + ["store"] * 2 + ["recall", "read"]


def resident(pid: int) -> tuple[float, float]:
    """Return resident memory in MB: total, and anonymous only (without mapped files such as the encoder's weights)."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1e3, int(status["RssAnon"].split()[0]) / 1e3


class Load:
    """The clients of the service, and their latencies and failures."""

    def __init__(self, address: str, tokens: list[str], lines: list[str], seconds: float) -> None:
        self.address = address
        self.tokens = tokens
        self.kept: dict[int, list[str]] = defaultdict(list)
        self.lines = lines
        self.end = time.monotonic() + seconds
        self.milliseconds: dict[str, list[float]] = defaultdict(list)
        self.failed: Counter[str] = Counter()
        self.stored = 0

    def run(self, seed: int) -> None:
        """Send requests until the time is over."""
        import httpx

        draw = random.Random(seed)
        tenant = seed % len(self.tokens)
        ids: list[str] = []
        number = 0
        with self.client(tenant) as client:
            while time.monotonic() < self.end:
                number += 1
                kind = draw.choice(MIX)
                if kind == "store" and len(ids) > 100 and number % 2:
                    kind = "forget"
                if number % 1000 == 0:
                    kind = "consolidate"
                started = time.perf_counter()
                try:
                    reply = self.send(client, kind, draw, ids)
                    if reply.status_code >= 400:
                        self.failed[f"{kind} {reply.status_code} {reply.text[:200]}"] += 1
                except httpx.HTTPError as error:
                    self.failed[f"{kind} {error!r}"] += 1
                self.milliseconds[kind].append(1000 * (time.perf_counter() - started))
        self.kept[tenant] += ids

    def client(self, tenant: int) -> Any:
        """Return a client with the token of a tenant."""
        import httpx

        headers = {"Authorization": f"Bearer {self.tokens[tenant]}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=120)

    def copy(self, tenant: int) -> None:
        """Export and import a tenant's memory every half minute."""
        with self.client(tenant) as client:
            while time.monotonic() < self.end - 30:
                time.sleep(30)
                started = time.perf_counter()
                exported = client.get("/v1/memories/default/cartridge")
                self.milliseconds["export"].append(1000 * (time.perf_counter() - started))
                started = time.perf_counter()
                imported = client.put("/v1/memories/copy/cartridge", content=exported.content)
                self.milliseconds["import"].append(1000 * (time.perf_counter() - started))
                for reply in (exported, imported):
                    if reply.status_code != 200:
                        self.failed[f"copy {reply.status_code} {reply.text[:200]}"] += 1

    def missing(self) -> int:
        """Return the number of acknowledged turns that are not stored."""
        missing = 0
        for tenant, kept in self.kept.items():
            with self.client(tenant) as client:
                archived = client.get("/v1/memories/default/archived", params={"limit": 1000}).json()
                found, cursor = {turn["id"] for turn in archived["turns"]}, None
                while True:
                    page = {"limit": 1000, **({"cursor": cursor} if cursor else {})}
                    listed = client.get("/v1/memories/default/turns", params=page).json()
                    found |= {turn["id"] for turn in listed["turns"]}
                    cursor = listed["next"]
                    if cursor is None:
                        break
            missing += len(set(kept) - found)
        return missing

    def send(self, client: Any, kind: str, draw: random.Random, ids: list[str]) -> Any:
        """Send one request of a kind."""
        words = " ".join(draw.choice(self.lines).split()[1:9])
        if kind == "retrieve":
            return client.get("/memory/retrieve", params={"q": words, "k": 10})
        if kind == "recall":
            return client.post("/v1/memories/default/recall", json={"question": words, "budget_tokens": 1024})
        if kind == "store":
            reply = client.post("/memory/store", json={"text": draw.choice(self.lines), "speaker": "Nadia"})
            ids += reply.json().get("ids", [])
            self.stored += 1
            return reply
        if kind == "forget":
            return client.delete(f"/v1/memories/default/turns/{ids.pop(0)}")
        if kind == "consolidate":
            return client.post("/memory/consolidate", json={})
        path = draw.choice(
            ["/v1/memories/default/turns?limit=20", "/memory/stats", "/metrics", "/readyz", "/v1/memories"]
        )
        return client.get(path)


def _token(url: str, tenant: str) -> str:
    """Issue a token to a tenant of a store."""
    from memometer.serve.auth import AccessTokens
    from memometer.store import open_store

    with open_store(url) as store:
        return AccessTokens(store).issue(tenant, at=time.time())


def main() -> int:
    """Run the benchmark; print and write the measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5000, help="turns of each tenant stored before the load")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--slope", type=float, default=10.0, help="allowed growth of anonymous memory, MB per hour")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import httpx

    lines = list(texts(turns(), max(args.turns, 2000)))
    address = f"http://127.0.0.1:{PORT}"
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/memory.db"
        tokens = [_token(url, tenant) for tenant in ("ada", "grace")]
        command = [sys.executable, "-m", "memometer", "serve", "--port", str(PORT), "--rate", "0", "--auth",
                   "--memory-url", url, "--encoder", args.encoder]  # fmt: skip
        process = subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent)
        try:
            while True:
                try:
                    httpx.get(f"{address}/readyz", timeout=60).raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            empty = resident(process.pid)
            load = Load(address, tokens, lines, 60 * args.minutes)
            for tenant in range(len(tokens)):
                with load.client(tenant) as client:
                    client.get("/memory/retrieve", params={"q": "a"}, timeout=600).raise_for_status()
                    for start in range(0, args.turns, 500):
                        part = lines[start : min(start + 500, args.turns)]
                        body = {"turns": [{"text": line, "speaker": "Nadia"} for line in part]}
                        client.post("/v1/memories/default/observe", json=body, timeout=600).raise_for_status()
            load.end = time.monotonic() + 60 * args.minutes
            threads = [threading.Thread(target=load.run, args=(seed,)) for seed in range(args.clients)]
            threads += [threading.Thread(target=load.copy, args=(tenant,)) for tenant in range(len(tokens))]
            started = time.monotonic()
            for thread in threads:
                thread.start()
            samples: list[tuple[float, float, float]] = []
            while any(thread.is_alive() for thread in threads):
                samples.append((time.monotonic() - started, *resident(process.pid)))
                time.sleep(1)
            seconds = time.monotonic() - started
            missing = load.missing()
            process.send_signal(signal.SIGTERM)
            exit_code = process.wait(120)
        finally:
            process.kill()
            process.wait()
    half = samples[len(samples) // 2 :]
    times, total_mb, anonymous_mb = (np.array(column, float) for column in zip(*half, strict=True))
    slopes = [
        float(np.polyfit(times, used, 1)[0]) * 3600 if len(half) > 2 else 0.0 for used in (total_mb, anonymous_mb)
    ]
    total = sum(map(len, load.milliseconds.values()))
    measures = {
        "minutes": round(seconds / 60, 2), "clients": args.clients, "requests": total,
        "per_second": round(total / seconds, 1), "stored": load.stored, "errors": sum(load.failed.values()),
        "missing_turns": missing,
        "rss_empty_mb": empty, "rss_first_mb": samples[0][1:3],
        "rss_middle_mb": half[0][1:3], "rss_last_mb": samples[-1][1:3],
        "anonymous_mb_by_tenths": [round(samples[(len(samples) - 1) * tenth // 10][2], 1) for tenth in range(11)],
        "rss_slopes_mb_per_hour": [round(slope, 2) for slope in slopes],
        "exit_code": exit_code,
        "p50_p95_ms": {kind: [round(float(np.percentile(ms, p)), 1) for p in (50, 95)]
                       for kind, ms in sorted(load.milliseconds.items())},
    }  # fmt: skip
    for name, value in measures.items():
        print(f"{name:>24} {value}")
    for failure, count in load.failed.most_common(5):
        print(f"{count} x {failure}")
    if args.json:
        args.json.write_text(json.dumps(measures, indent=1) + "\n")
    return int(bool(load.failed or missing) or slopes[1] > args.slope)


if __name__ == "__main__":
    sys.exit(main())
