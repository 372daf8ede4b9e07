"""Measure the harness's own wall time, against a server that answers every call in exactly 200 ms.

    python benchmarks/harness_overhead.py

The script runs the evaluation loop and dspy.Evaluate alternately on the same program with 32 threads. It prints the
wall time of both as a multiple of the ideal time (calls x 0.2 s / threads). With 256 threads it compares the calls per
second of the loop, of DSPy's predictor and client alone, and of bare httpx in the same process; the CPU time per call
shows whose cost it is. The loop runs with `recent`, whose recall costs little, and with `adaptive`. httpx has a client
for each thread, made before the measurement, because one shared client is slower. The script exits with code 1 if the
loop takes more than 1.05 times the ideal time with 32 threads, or longer than dspy.Evaluate.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

QUESTIONS, THREADS, SECONDS, ROUNDS = 512, 32, 0.2, 3
MANY_THREADS, MANY_CALLS = 256, 2000

REPLY = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Sourdough"}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 3, "total_tokens": 103},
    }
).encode()


async def _serve(pipe: Connection) -> None:
    """Send the port, then answer every request SECONDS after it arrived."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                arrived = asyncio.get_running_loop().time()
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(int(lengths[0].split(b":")[1]))
                await asyncio.sleep(max(0.0, arrived + SECONDS - asyncio.get_running_loop().time()))
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(REPLY)
                writer.write(head + REPLY)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=256)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def serve(pipe: Connection) -> None:
    asyncio.run(_serve(pipe))


def main() -> int:
    pipe, server_end = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(server_end,), daemon=True)
    process.start()
    api_base = f"http://127.0.0.1:{pipe.recv()}/v1"

    import dspy
    import httpx

    from locomo.dataset import Question
    from memometer.benchmarks.protocol import Conversation, Session
    from memometer.harness.loop import run
    from memometer.harness.tasks import plan_tasks
    from memometer.memory import Memory, Turn
    from memometer.models import resolve_models
    from memometer.models.plain_adapter import PlainAdapter
    from memometer.reader.reader import Reader
    from memometer.run.folder import RunFolder
    from memometer.systems.recent import Recent
    from memory_system import MemorySystem

    said_at = datetime(2024, 3, 3)
    turns = tuple(Turn(f"D1:{i}", "Nadia", f"I baked bread number {i} today.", 1, said_at) for i in range(50))
    questions = tuple(Question("c", i, f"Which bread was number {i % 50}?", "4", "x", ()) for i in range(QUESTIONS))
    conversation = Conversation("c", ("Nadia", "Oskar"), (Session(1, said_at, turns),), questions)
    reader = resolve_models.load("openai/scripted", api_base=api_base, tokenizer="o200k_base")
    memory = MemorySystem(count=reader.count)
    state = memory.new()
    memory.observe(state, turns)
    memories: dict[str, Memory[Any]] = {"recent": Recent(count=reader.count), "adaptive": memory.memory}

    def run_loop(system: str, questions: tuple[Question, ...] = questions, threads: int = THREADS) -> float:
        with tempfile.TemporaryDirectory() as scratch, RunFolder.create(Path(scratch) / "run", {}) as folder:
            tasks = plan_tasks({system: memories[system]}, questions, budgets=[512])
            started = time.perf_counter()
            run(
                tasks,
                lambda *_: memories[system],
                [conversation],
                folder,
                reader=reader,
                readers={system: Reader()},
                num_threads=threads,
            )
            seconds = time.perf_counter() - started
            assert sum(record["answer"] == "Sourdough" for record in folder.records()) == len(questions)
            return seconds

    def run_dspy_evaluate() -> float:
        devset = [
            dspy.Example(state=state, question=question.text, budget_tokens=512).with_inputs(
                "state", "question", "budget_tokens"
            )
            for question in questions
        ]
        evaluate = dspy.Evaluate(
            devset=devset,
            metric=lambda example, prediction: prediction.answer == "Sourdough",
            num_threads=THREADS,
            display_progress=False,
        )
        started = time.perf_counter()
        with dspy.context(lm=reader.lm, adapter=PlainAdapter()):
            assert evaluate(memory).score == 100.0
        return time.perf_counter() - started

    def measured(call: Callable[[], object]) -> tuple[float, float]:
        """Calls per second of MANY_CALLS calls, and CPU milliseconds per call."""
        started, cpu = time.perf_counter(), time.process_time()
        call()
        seconds, used = time.perf_counter() - started, time.process_time() - cpu
        return MANY_CALLS / seconds, 1000 * used / MANY_CALLS

    def in_threads(call: Callable[[], object]) -> None:
        with ThreadPoolExecutor(MANY_THREADS) as pool:
            for future in [pool.submit(call) for _ in range(MANY_CALLS)]:
                future.result()

    def run_httpx() -> None:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "x" * 2000}], "temperature": 0.0}
        own = threading.local()

        def call() -> None:
            if not hasattr(own, "client"):
                own.client = clients.pop()
            own.client.post(f"{api_base}/chat/completions", json=body).raise_for_status().json()

        in_threads(call)

    def run_dspy_client() -> None:
        in_threads(lambda: reader.lm("x" * 2000))

    def run_predictor() -> None:
        read = Reader().read

        def call() -> None:
            with dspy.context(lm=reader.lm, adapter=PlainAdapter(), disable_history=True):
                read(memory="x" * 2000, question="Which bread was it?")

        in_threads(call)

    many = tuple(Question("c", i, f"Which bread was number {i % 50}?", "4", "x", ()) for i in range(MANY_CALLS))
    ideal = QUESTIONS * SECONDS / THREADS
    run_loop("adaptive"), run_dspy_evaluate()  # imports and first connections are not measured
    rounds = [(run_loop("recent"), run_loop("adaptive"), run_dspy_evaluate()) for _ in range(ROUNDS)]
    ratios = [statistics.median(column) / ideal for column in zip(*rounds, strict=True)]
    print(
        f"{QUESTIONS} questions, {THREADS} threads, {SECONDS} s a call: ideal {ideal:.2f} s, median of {ROUNDS} rounds"
    )
    for name, ratio in zip(("loop, recent", "loop, adaptive", "dspy.Evaluate, adaptive"), ratios, strict=True):
        print(f"{name:<25}{ratio:.3f} x ideal")
    clients = [httpx.Client() for _ in range(MANY_THREADS)]
    rates = {
        name: measured(call)
        for name, call in (
            ("bare httpx", run_httpx),
            ("DSPy's client", run_dspy_client),
            ("DSPy's predictor", run_predictor),
            ("loop, recent", lambda: run_loop("recent", many, MANY_THREADS)),
            ("loop, adaptive", lambda: run_loop("adaptive", many, MANY_THREADS)),
        )
    }
    bare = rates["bare httpx"][0]
    print(f"{MANY_CALLS} calls, {MANY_THREADS} threads: at most {MANY_THREADS / SECONDS:,.0f} calls per second")
    for name, (rate, milliseconds) in rates.items():
        print(f"{name:<25}{rate:5.0f} calls/s, {rate / bare:.2f} x httpx, {milliseconds:.2f} ms of CPU per call")
    process.terminate()
    return 0 if max(ratios[:2]) <= 1.05 and ratios[1] <= ratios[2] else 1


if __name__ == "__main__":
    sys.exit(main())
