"""The service under mixed load: what it sustains, and whether its memory stays flat.

    python benchmarks/service.py [--minutes 30] [--clients 8] [--turns 5000] [--encoder minilm] [--json FILE]

A service in a process of its own, on one SQLite file with every write on disk before it is acknowledged, is asked by
clients that each send the next request when the last was answered: of ten, six retrieve, two store, one recalls under
a budget, one lists or reads the measures; every thousandth consolidates. A client that has stored a hundred turns
removes one for each that it stores, so that the service holds the same number throughout and its memory has no reason
to grow. Turns are of LOCOMO's size and of no sense (benchmarks/stores.py). Resident memory is read from the process
every second, in all and its own; slopes are fitted to the second half, after the caches have filled. Exits 1 where a
request failed, or its own memory grows faster than --slope. Half an hour shows a slope; a minute shows that everything
answers, and its slope nothing.
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
MIX = ["retrieve"] * 6 + ["store"] * 2 + ["recall", "look"]


def resident(pid: int) -> tuple[float, float]:
    """MB in all, and without pages that are mapped from files: of the weights, those whose words have occurred."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1e3, int(status["RssAnon"].split()[0]) / 1e3


class Load:
    """What the clients do, and what came of it."""

    def __init__(self, address: str, lines: list[str], seconds: float) -> None:
        self.address = address
        self.lines = lines
        self.until = time.monotonic() + seconds
        self.milliseconds: dict[str, list[float]] = defaultdict(list)
        self.failed: Counter[str] = Counter()
        self.stored = 0

    def run(self, seed: int) -> None:
        import httpx

        draw = random.Random(seed)
        ids: list[str] = []
        number = 0
        with httpx.Client(base_url=self.address, timeout=120) as client:
            while time.monotonic() < self.until:
                number += 1
                what = draw.choice(MIX)
                if what == "store" and len(ids) > 100 and number % 2:
                    what = "forget"
                if number % 1000 == 0:
                    what = "consolidate"
                began = time.perf_counter()
                try:
                    reply = self.ask(client, what, draw, ids)
                    if reply.status_code >= 400:
                        self.failed[f"{what} {reply.status_code} {reply.text[:200]}"] += 1
                except httpx.HTTPError as error:
                    self.failed[f"{what} {error!r}"] += 1
                self.milliseconds[what].append(1000 * (time.perf_counter() - began))

    def ask(self, client: Any, what: str, draw: random.Random, ids: list[str]) -> Any:
        words = " ".join(draw.choice(self.lines).split()[1:9])
        if what == "retrieve":
            return client.get("/memory/retrieve", params={"q": words, "k": 10})
        if what == "recall":
            return client.post("/v1/memories/default/recall", json={"question": words, "budget_tokens": 1024})
        if what == "store":
            reply = client.post("/memory/store", json={"text": draw.choice(self.lines), "speaker": "Nadia"})
            ids += reply.json().get("ids", [])
            self.stored += 1
            return reply
        if what == "forget":
            return client.delete(f"/v1/memories/default/turns/{ids.pop(0)}")
        if what == "consolidate":
            return client.post("/memory/consolidate", json={})
        path = draw.choice(
            ["/v1/memories/default/turns?limit=20", "/memory/stats", "/metrics", "/readyz", "/v1/memories"]
        )
        return client.get(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5000, help="that are there before")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--slope", type=float, default=10.0, help="MB an hour that its own memory may grow")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import httpx

    lines = list(texts(turns(), max(args.turns, 2000)))
    address = f"http://127.0.0.1:{PORT}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "memometer", "serve", "--port", str(PORT), "--rate", "0",
                   "--memory-url", f"sqlite:///{folder}/memory.db", "--encoder", args.encoder]  # fmt: skip
        process = subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent)
        try:
            while True:
                try:
                    httpx.get(f"{address}/readyz", timeout=60).raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            empty = resident(process.pid)
            for start in range(0, args.turns, 500):
                told = [{"text": line, "speaker": "Nadia"} for line in lines[start : min(start + 500, args.turns)]]
                body = {"turns": told}
                httpx.get(f"{address}/memory/retrieve", params={"q": "a"}, timeout=600).raise_for_status()
                httpx.post(f"{address}/v1/memories/default/observe", json=body, timeout=600).raise_for_status()
            load = Load(address, lines, 60 * args.minutes)
            threads = [threading.Thread(target=load.run, args=(seed,)) for seed in range(args.clients)]
            began = time.monotonic()
            for thread in threads:
                thread.start()
            seen: list[tuple[float, float, float]] = []
            while any(thread.is_alive() for thread in threads):
                seen.append((time.monotonic() - began, *resident(process.pid)))
                time.sleep(1)
            seconds = time.monotonic() - began
            process.send_signal(signal.SIGTERM)
            ended = process.wait(120)
        finally:
            process.kill()
            process.wait()
    half = seen[len(seen) // 2 :]
    at, whole, own = (np.array(column, float) for column in zip(*half, strict=True))
    slopes = [float(np.polyfit(at, used, 1)[0]) * 3600 if len(half) > 2 else 0.0 for used in (whole, own)]
    total = sum(map(len, load.milliseconds.values()))
    figures = {
        "minutes": round(seconds / 60, 2), "clients": args.clients, "requests": total,
        "per_second": round(total / seconds, 1), "stored": load.stored, "errors": sum(load.failed.values()),
        "rss_empty_mb": empty, "rss_first_mb": seen[0][1:3],
        "rss_middle_mb": half[0][1:3], "rss_last_mb": seen[-1][1:3],
        "own_mb_by_tenths": [round(seen[(len(seen) - 1) * tenth // 10][2], 1) for tenth in range(11)],
        "rss_slopes_mb_per_hour": [round(slope, 2) for slope in slopes],
        "ended": ended,
        "p50_p95_ms": {w: [round(float(np.percentile(ms, p)), 1) for p in (50, 95)]
                       for w, ms in sorted(load.milliseconds.items())},
    }  # fmt: skip
    for name, value in figures.items():
        print(f"{name:>24} {value}")
    for failure, count in load.failed.most_common(5):
        print(f"{count} x {failure}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(bool(load.failed) or slopes[1] > args.slope)


if __name__ == "__main__":
    sys.exit(main())
