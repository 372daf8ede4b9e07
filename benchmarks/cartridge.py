"""Cost of cartridges: time to save and load, file size, and peak memory.

    python benchmarks/cartridge.py [--quick] [--out runs/cartridge]

The states hold LOCOMO's turns (or the sample's), repeated with new ids, and random vectors. Each is saved and loaded in
a process of its own on one core. `verify` reads the file without loading it. `copies` is the additional peak memory of
saving and of loading, as a share of the state's own memory.

Targets: 5,882 turns are saved in 1 s and loaded in 0.5 s of CPU time; 100,000 turns need less than one copy.
Exit codes: 0 all targets are met, 1 one is missed.
"""

from __future__ import annotations

import os

# Set before NumPy is imported, so that each process uses one core.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from memometer import systems
from memometer.cartridge.load import load_cartridge, open_manifest
from memometer.cartridge.save import save_cartridge
from memometer.memory import Memory, Turn

DIMENSIONS = 384
FULL, QUICK = (5_882, 100_000), (5_882,)
SYSTEMS = ("recent", "vector", "episodic", "adaptive")
MAX_SAVE, MAX_LOAD = 1.0, 0.5
"""CPU seconds for 5,882 turns."""
MB = 1e6

Measures = dict[str, Any]


class RandomVectors:
    """An encoder with a random vector for each text."""

    name = "random"
    dimensions = DIMENSIONS

    def __init__(self) -> None:
        self._draw = np.random.default_rng(0)

    def __call__(self, texts: Any) -> np.ndarray:
        rows = self._draw.normal(size=(len(texts), DIMENSIONS)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def turns(count: int) -> list[Turn]:
    from locomo.dataset import load

    known = [turn for conversation in load(None).conversations for turn in conversation.turns]
    return [
        replace(
            known[n % len(known)],
            id=f"{n // len(known)}-{n}",
            session=n // 20,
            said_at=known[0].said_at + timedelta(days=n // 20),
        )
        for n in range(count)
    ]


def build(system: str) -> Memory[Any]:
    kind = systems.load(system)
    return kind(encoder=RandomVectors()) if kind.needs_encoder else kind()


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def save(system: str, count: int, path: Path, out: Any) -> None:
    import_module("memometer.reader.reader")  # not part of the measurement
    observed = turns(count)
    memory = build(system)
    before = resident()
    state = memory.new()
    for start in range(0, count, 1000):
        memory.observe(state, observed[start : start + 1000])
    held, highest, started, used = resident() - before, peak(), time.perf_counter(), time.process_time()
    save_cartridge(path, memory, state)
    out.send(
        {
            "save_seconds": time.perf_counter() - started,
            "save_cpu": time.process_time() - used,
            "held_mb": held,
            "save_extra_mb": max(0.0, peak() - max(highest, before + held)),
        }
    )


def load(system: str, path: Path, out: Any) -> None:
    encoder = {"encoder": RandomVectors()} if systems.load(system).needs_encoder else {}
    import_module("memometer.reader.reader")  # not part of the measurement
    open_manifest(path)
    started = time.perf_counter()
    open_manifest(path)
    verified, used = time.perf_counter() - started, time.process_time()
    started = time.perf_counter()
    cartridge = load_cartridge(path, **encoder)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    after, highest = resident(), peak()
    assert cartridge.state
    out.send(
        {
            "open_seconds": seconds,
            "open_cpu": cpu,
            "verify_seconds": verified,
            "open_extra_mb": max(0.0, highest - after),
        }
    )


def measured(target: Any, *arguments: Any) -> Measures:
    """Run a function in a new process and return what it sends."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=target, args=(*arguments, sender))
    process.start()
    sender.close()
    found: Measures = receiver.recv()
    process.join()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5,882 turns only")
    parser.add_argument("--out", type=Path, default=Path("runs/cartridge"))
    args = parser.parse_args()
    found: list[Measures] = []
    missed: list[str] = []
    print(" memories system       save s  (cpu)  open s  (cpu) verify s      MB   copies")
    with tempfile.TemporaryDirectory() as folder:
        for count in QUICK if args.quick else FULL:
            for system in SYSTEMS:
                path = Path(folder) / f"{system}-{count}.cartridge"
                measures = {"memories": count, "system": system, **measured(save, system, count, path)}
                measures |= measured(load, system, path)
                measures["mb"] = path.stat().st_size / MB
                measures["save_copies"] = measures["save_extra_mb"] / max(1.0, measures["held_mb"])
                measures["open_copies"] = measures["open_extra_mb"] / max(1.0, measures["held_mb"])
                path.unlink()
                found.append(measures)
                print(
                    f"{count:>9,} {system:<10} {measures['save_seconds']:>8.2f} {measures['save_cpu']:>6.2f}"
                    f" {measures['open_seconds']:>7.2f} {measures['open_cpu']:>6.2f} {measures['verify_seconds']:>8.2f}"
                    f" {measures['mb']:>7.1f} {measures['save_copies']:>4.2f} {measures['open_copies']:.2f}",
                    flush=True,
                )
                if count == FULL[0] and measures["save_cpu"] > MAX_SAVE:
                    missed.append(f"{system} takes {measures['save_cpu']:.2f} s to save")
                if count == FULL[0] and measures["open_cpu"] > MAX_LOAD:
                    missed.append(f"{system} takes {measures['open_cpu']:.2f} s to load")
                if count > FULL[0] and max(measures["save_copies"], measures["open_copies"]) >= 1:
                    missed.append(f"{system} needs more memory than a second copy of its {count:,} turns")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cartridge.json").write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(f"MISSED: {each}" for each in missed) or "All targets are met.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
