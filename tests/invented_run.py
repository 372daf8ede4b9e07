"""A run folder as an evaluation leaves it, with invented answers about simulated conversations: for tests and timings
of what reads run folders. Nothing in it was measured."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locomo.dataset import read
from locomo.synthetic.simulate import as_json, conversation
from memometer.benchmarks.protocol import Dataset
from memometer.budget import UNBOUNDED
from memometer.report.results import compute_results
from memometer.run.environment import provenance

SKILL = {"adaptive": 0.72, "bm25": 0.55, "session": 0.5, "recent": 0.3, "full_context": 0.66, "summary": 0.42,
         "none": 0.05, "oracle": 0.9}  # fmt: skip
JUDGE = {"judge": "openai/invented-judge", "prompt": "strict", "prompt_hash": "0123456789abcdef"}


def simulated(path: Path, *, conversations: int, seed: int = 1) -> Dataset:
    """A simulated data file."""
    made = [conversation(seed, number) for number in range(1, conversations + 1)]
    path.write_text(json.dumps([as_json(c, seed=seed) for c in made]))
    return read(path)


def invent(
    folder: Path,
    data: Dataset,
    *,
    systems: Sequence[str] = ("adaptive", "bm25", "recent", "none", "oracle"),
    budgets: Sequence[int] = (1024,),
    questions: int | None = None,
    recalled_turns: Mapping[int, int] | None = None,
    seed: int = 0,
    calibrations: Sequence[dict[str, Any]] | None = None,
    reference: str | None = None,
) -> Path:
    """Write manifest.json, records.jsonl, ingest.jsonl and results.json. One answer in fifty failed. With None for
    `calibrations` the judge passed its calibration."""
    draw = random.Random(seed)
    asked = list(data.questions)
    if questions:
        asked = sorted(draw.sample(asked, questions), key=lambda q: (q.conversation, q.index))
    turns = {c.id: [turn.id for turn in c.turns] for c in data.conversations}
    records, ingests, planned = [], [], []
    for c in data.conversations:
        ingests += [
            {"system": system, "conversation": c.id, "turns": len(c.turns), "seconds": 0.5, "error": "",
             **(_usage(27, 9000, 2000) if system == "summary" else _usage(0, 0, 0))}
            for system in systems
        ]  # fmt: skip
    for question in asked:
        for system in systems:
            for budget in [0] if system == "none" else [UNBOUNDED] if system == "full_context" else budgets:
                many = (recalled_turns or {}).get(budget, budget // 35)
                record = _record(draw, question, system, budget, turns[question.conversation], many)
                records.append(record)
                planned.append((system, budget, question.id, "free"))
    manifest = _manifest(data, seed)
    facts = {
        "status": "valid", "split": "all", "subset": len(asked) < len(data.questions), "left_out": {},
        "reader": "openai/invented-reader", "judge": "openai/invented-judge (strict)", "token_counter": "o200k_base",
    }  # fmt: skip
    calibrations = [calibration()] if calibrations is None else calibrations
    manifest["config"]["reference"] = reference
    results = compute_results(manifest, records, ingests, data, planned, facts, calibrations=calibrations)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "results.json").write_text(json.dumps(results))
    for name, lines in (("records.jsonl", records), ("ingest.jsonl", ingests)):
        (folder / name).write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    return folder


def calibration(*, passed: bool = True) -> dict[str, Any]:
    found = {"rate": 0.031, "low": 0.02, "high": 0.045, "n": 1540}
    sets = {"gold": 0.01, "paraphrase": 0.06, "refusal": 0.0, "other speaker": 0.04, "adjacent date": 0.02,
            "specific wrong": 0.03}  # fmt: skip
    return {
        **JUDGE, "date": "2026-11-21", "passed": passed, "reasons": [] if passed else ["it accepts 40 %"],
        "false_accept": found, "false_reject": {**found, "rate": 0.02},
        "sets": {name: {**found, "rate": rate, "low": max(0, rate - 0.02), "high": min(1, rate + 0.02), "n": 200,
                        "missing": 1} for name, rate in sets.items()},
        "stability": {"repeats": 3, "n": 20, "flipped": 1, "rate": 0.05, "low": 0.01, "high": 0.24},
        "parser": {"failed": [], "cases": 20}, "missing": 0.0,
    }  # fmt: skip


def _usage(calls: int, prompt: int, completion: int) -> dict[str, Any]:
    return {"calls": calls, "unreported": 0, "prompt_tokens": prompt, "completion_tokens": completion,
            "cached_tokens": prompt // 4}  # fmt: skip


def _record(
    draw: random.Random, question: Any, system: str, budget: int, turns: list[str], many: int
) -> dict[str, Any]:
    ease = random.Random(question.id).random()  # the same for every system, so that pairing has something to win
    skill = SKILL[system] + 0.05 * (budget > 1500) - 0.25 * (question.category == "1")
    right = draw.random() < 0.5 * skill + 0.5 * (ease < skill)
    failed = draw.random() < 0.02
    answer = (question.gold if right else "somewhere else, later") if question.gold else "No information available"
    if system == "none":
        shown = set()
    elif system == "full_context":
        shown = set(turns)
    else:
        shown = set() if system == "oracle" else set(draw.sample(turns, min(many, len(turns))))
        shown |= {id for id in question.evidence if draw.random() < skill + 0.15}
    ids = [id for id in turns if id in shown]
    usage = _usage(1, min(budget, 21_000) + 180, 6)
    label = "missing" if draw.random() < 0.005 else "correct" if right else "wrong"
    raw = {"correct": "yes", "wrong": "no"}.get(label, "I would say that it depends.")
    reason = "the reply is not a label" if label == "missing" else ""
    verdict = {**JUDGE, "label_set": "original", "repeat": 0, "label": label, "raw": raw, "reason": reason,
               "prompt_tokens": 120, "completion_tokens": 1, "unreported": 0, "seconds": 0.2}  # fmt: skip
    return {
        "system": system, "budget_tokens": budget, "question_id": question.id, "option_order": "free", "attempt": 1,
        "answer": None if failed else answer,
        "recall": {"turn_ids": ids, "ranked": ids[:50], "tokens": min(budget, 35 * len(ids)), "counter": "o200k_base"},
        "speaker_gap": None,
        "verdicts": [verdict] if question.gold and not failed else [],
        **usage, "seconds": 0.9,
        "answering": {**usage, "seconds": 0.8},
        "truncated": False, "model": "openai/invented-reader",
        "error": "LMServerError: scripted failure" if failed else "", "at": 1.0,
    }  # fmt: skip


def _manifest(data: Dataset, seed: int) -> dict[str, Any]:
    price = {"prompt": 1.5e-7, "cached": 7.5e-8, "completion": 6e-7, "source": "invented"}
    return {
        "config": {"data": str(data.path), "split": "all", "seed": seed, "num_test": None, "fail_on_error": 0.05,
                   "categories": [1, 2, 3, 4, 5], "max_answer_tokens": 64, "trace": False},
        "identity": {"configuration": f"invented-{seed}", "data": data.sha256, "reader": "openai/invented-reader"},
        "left_out": {}, "stand_in": data.kind, "unmetered": [], "reader": "openai/invented-reader",
        "prices": {"openai/invented-reader": price, JUDGE["judge"]: None},
        **provenance(),
    }  # fmt: skip
