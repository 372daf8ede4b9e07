"""The cost of a run: calls, tokens, seconds and dollars of the stages ingest, recall, answer, judge and calibration.

Every attempt is counted, including failed ones and those that a resumed run repeats. Nothing is estimated: if a server
does not report the tokens of a call, the call is counted in `unreported` and the sums are lower bounds. If a price is
unknown, the dollars are null. The calls of a batch cost half. Calls to a provider's encoder are not metered, so the
dollars of ingest and recall of the systems that use one are null too.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from memometer.run.folder import Record, RunFolder
from memometer.run.prices import LOCAL, Price, price_of

Results = dict[str, Any]


class Model(Protocol):
    """The attributes of a language model that its cost depends on."""

    @property
    def name(self) -> str: ...

    @property
    def lm(self) -> Any: ...

    @property
    def price(self) -> Price | None: ...


Prices = Mapping[str, Price | None]

COUNTED = ("calls", "unreported", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")


def prices(*models: Model | None) -> dict[str, Any]:
    """Return the prices of models for the manifest, by both names that records and verdicts use for a model."""
    found: dict[str, Any] = {}
    for model in filter(None, models):
        price = asdict(model.price) if model.price else None
        found |= {model.name: price, model.lm.model: price}
    return found


def prices_in(manifest: Mapping[str, Any]) -> dict[str, Price | None]:
    """Return the prices at the start of the run, by model name."""
    return {name: Price(**price) if price else None for name, price in manifest.get("prices", {}).items()}


def unmetered(memories: Mapping[str, Any]) -> list[str]:
    """List the systems that use a provider's encoder, whose calls are not counted."""
    encoders = {name: getattr(memory, "encoder", None) for name, memory in memories.items()}
    return [name for name, encoder in encoders.items() if getattr(encoder, "is_paid", False)]


def unknown_cost(reader: Model | None, judge: Model | None, memories: Mapping[str, Any]) -> str:
    """Return why the cost of a run cannot be computed and what to do about it; empty if it can."""
    for model, flag in ((reader, "--price"), (judge, "--judge-price")):
        if model and model.price is None:
            price = f"name it with {flag} PROMPT,REPLY in dollars per million tokens"
            return f"the price of {model.name} is not known; {price}"
    if names := unmetered(memories):
        return f"the calls of {', '.join(names)} to a provider's encoder are not metered; use --encoder minilm"
    return ""


def forecast(model: Model, prompt_tokens: int, reply_tokens: int) -> float | None:
    """Return the price of a number of tokens in dollars, without cached tokens; None if it is unknown."""
    return None if model.price is None else model.price.usd(prompt_tokens, reply_tokens)


def money(usd: float | None, *models: Model | None) -> str:
    """Format the cost of calls to some models as text."""
    if all(model.price is not None and model.price.source == LOCAL for model in models if model):
        return "free (local models)"
    return "unknown cost (no price for this model)" if usd is None else f"${usd:,.2f}"


def summarize(
    manifest: Mapping[str, Any],
    records: Iterable[Record],
    ingests: Iterable[Record],
    measurings: Iterable[Record] = (),
    probes: Iterable[Record] = (),
) -> Results:
    """Compute the field `cost` of results.json, without `frontier` and `areas`.

    Args:
        manifest: The manifest of the run.
        records: All attempts.
        ingests: The lines of ingest.jsonl.
        measurings: The lines of measuring.jsonl: calls that calibrated judges.
        probes: The lines of probes.jsonl: hidden probes that judges graded.

    Returns:
        `prices` as in the manifest. `systems.<name>` has the stage `ingest`, and under `budgets.<tokens>` the stages
        `recall`, `answer` and `judge`. `calibration` is the stage of calibrating judges for this run and of its hidden
        probes, without the calibrations that were cached. `total` is the sum of all stages.

        A stage has `calls`, `unreported`, `prompt_tokens`, `completion_tokens`, `cached_tokens` (part of the prompt
        tokens), `reasoning_tokens` (part of the completion tokens), `seconds` (null if not measured), `usd` (null if
        unknown) and `local` (true if it cost nothing because the model runs on this machine).
    """
    known, unmetered = prices_in(manifest), set(manifest.get("unmetered", ()))
    records, ingests = list(records), list(ingests)
    attempts: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        attempts[record["system"], record["budget_tokens"]].append(record)
    readings: dict[str, list[Record]] = defaultdict(list)
    for ingest in ingests:
        readings[ingest["system"]].append(ingest)
    reader = manifest.get("reader")
    systems: dict[str, Results] = {
        name: {"ingest": _stage([(part, reader) for part in parts], known), "budgets": {}}
        for name, parts in readings.items()
    }
    for (name, budget), own in attempts.items():
        entry = systems.setdefault(name, {"ingest": _stage([], known), "budgets": {}})
        entry["budgets"][str(budget)] = _stages(own, known)
    for name in unmetered & set(systems):
        for stage in (systems[name]["ingest"], *(found["recall"] for found in systems[name]["budgets"].values())):
            stage["usd"], stage["local"] = None, False
    verdicts = [probe["verdict"] for probe in probes]
    measured = [*((found, found["judge"]) for found in measurings), *((_call(v), v["judge"]) for v in verdicts)]
    calibration = _stage(measured, known)
    return {
        "prices": dict(manifest.get("prices", {})),
        "systems": systems,
        "calibration": calibration,
        "total": _total([*(stage for _, _, _, stage in each_stage(systems)), calibration]),
    }


def each_stage(systems: Mapping[str, Results]) -> list[tuple[str, str, str, Results]]:
    """List (system, budget, stage name, stage). All budgets share the ingest, so its budget is empty."""
    return [
        (name, budget, stage, found)
        for name, entry in systems.items()
        for budget, stages in (("", {"ingest": entry["ingest"]}), *entry["budgets"].items())
        for stage, found in stages.items()
    ]


def _stages(records: Sequence[Record], known: Prices) -> Results:
    """Sum recall, answer and judge of some attempts. A record without `answering` has no cost of its recall."""
    answers, recalls = [], []
    for record in records:
        answering = record.get("answering")
        answers.append((answering or record, record["model"]))
        if answering:
            rest = {name: record.get(name, 0) - answering.get(name, 0) for name in COUNTED}
            rest["seconds"] = None if record.get("batch") else record.get("seconds", 0) - answering.get("seconds", 0)
            recalls.append((rest, record["model"]))
    verdicts = [_call(verdict) for record in records for verdict in record["verdicts"]]
    stages = {
        "recall": _stage(recalls, known),
        "answer": _stage(answers, known),
        "judge": _stage([(verdict, verdict["judge"]) for verdict in verdicts], known),
    }
    if len(recalls) < len(records):
        stages["recall"]["seconds"] = None
    return stages


def _call(verdict: Record) -> Record:
    """Return a verdict with its number of calls: 1, or 0 if a rule decided."""
    return {"calls": 0 if verdict.get("rule") else 1, **verdict}


def _stage(parts: Iterable[tuple[Record, str | None]], known: Prices) -> Results:
    """Sum the cost of calls, each with its model. A field is null if it is unknown for a call, as in imported runs."""
    stage: Results = {**dict.fromkeys(COUNTED, 0), "seconds": 0.0, "usd": 0.0, "local": False}
    for part, model in parts:
        for name in COUNTED:
            stage[name] = _plus(stage[name], part.get(name, 0))
        stage["seconds"] = _plus(stage["seconds"], part.get("seconds"))
        stage["usd"] = _plus(stage["usd"], usd(part, model, known))
        stage["local"] |= bool(part.get("calls")) and model is not None and _is_local(model, known)
    stage["local"] &= stage["usd"] == 0
    return stage


def usd(part: Record, model: str | None, known: Prices) -> float | None:
    """Return the dollars of one record, verdict or ingest; None if its tokens or its model's price are unknown.

    Args:
        part: The record, verdict or ingest.
        model: Name of the model; None if unknown.
        known: Prices by model name.
    """
    if part.get("calls") == 0:
        return 0.0
    price = _price(model, known)
    if (part.get("outside") or {}).get("embedding_calls") and (price is None or price.source != LOCAL):
        return None  # the price of the encoder is unknown
    prompt, completion = part.get("prompt_tokens"), part.get("completion_tokens")
    if price is None or prompt is None or completion is None:
        return None
    price = price.of_batch if part.get("batch") else price
    return price.usd(prompt, completion, part.get("cached_tokens") or 0)


def _price(model: str | None, known: Prices) -> Price | None:
    if model is None:
        return None
    # The manifest does not list judges of a later rescore. Only for local ones the price is certain.
    return known[model] if model in known else price_of(model) if model.startswith("embedded") else None


def _is_local(model: str, known: Prices) -> bool:
    price = _price(model, known)
    return price is not None and price.source == LOCAL


def _plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _total(stages: Sequence[Results]) -> Results:
    total: Results = {}
    for name in (*COUNTED, "seconds", "usd"):
        total[name] = 0
        for stage in stages:
            total[name] = _plus(total[name], stage[name])
    return {**total, "local": total["usd"] == 0 and any(stage["local"] for stage in stages)}


def cost_columns(accounting: Results, system: str, budget: str) -> dict[str, float | None]:
    """Return the cost of one system at one budget as flat columns.

    Args:
        accounting: The result of `summarize`.
        system: Name of the system.
        budget: The budget as text.

    Returns:
        `usd_<stage>`, `tokens_<stage>`, `calls_<stage>` and `seconds_<stage>`. All budgets share the ingest.
    """
    entry = accounting["systems"].get(system, {})
    stages = {"ingest": entry.get("ingest"), **entry.get("budgets", {}).get(budget, {})}
    found: dict[str, float | None] = {}
    for name, stage in stages.items():
        if stage:
            found |= {f"{unit}_{name}": stage[unit] for unit in ("usd", "calls", "seconds")}
            found[f"tokens_{name}"] = _plus(stage["prompt_tokens"], stage["completion_tokens"])
    return found


class Spending:
    """Counts the dollars that a run has cost so far, and compares them with a limit.

    Calls in flight when the limit is reached still cost money, so a run may exceed its limit a little.

    Args:
        manifest: The manifest of the run.
        limit: The limit in dollars; None for no limit.
    """

    def __init__(self, manifest: Mapping[str, Any], *, limit: float | None) -> None:
        self.known = prices_in(manifest)
        self.reader = manifest.get("reader")
        self.limit = limit
        self.usd = 0.0
        self.has_unreported = False
        self.held_back = ""
        """The message of a run that sends no further request, because it could exceed the limit."""
        self.not_recorded: Callable[[], Record] = lambda: {"calls": 0}
        """Returns the usage of plug-ins that no line of the folder has yet."""

    def follow(self, folder: RunFolder, stop: threading.Event) -> None:
        """Count the lines of a folder, now and whenever one is appended.

        Args:
            folder: The run folder.
            stop: The event to set when the limit is reached.
        """

        def count(file: str, line: Record) -> None:
            self.add(file, line)
            if self.reached:
                stop.set()

        for record in folder.records():
            self.add("records.jsonl", record)
        for ingest in folder.ingests():
            self.add("ingest.jsonl", ingest)
        for measuring in folder.measurings():
            self.add("measuring.jsonl", measuring)
        for probe in folder.probes():
            self.add("probes.jsonl", probe)
        if self.reached:
            stop.set()
        folder.on_append = count

    def add(self, file: str, line: Record) -> None:
        """Count one line.

        Args:
            file: Name of its file: records.jsonl, verdicts.jsonl, ingest.jsonl, measuring.jsonl or probes.jsonl.
            line: The line.
        """
        if file == "measuring.jsonl":
            self._count(line, line["judge"], answered=True)
            return
        if file in ("verdicts.jsonl", "probes.jsonl"):
            verdicts = [line["verdict"]]
        else:
            verdicts = line.get("verdicts", [])
            self._count(line, self.reader, answered=not line["error"])
        for verdict in verdicts:
            self._count(_call(verdict), verdict["judge"], answered=verdict["label"] != "missing")

    def _count(self, part: Record, model: str | None, *, answered: bool) -> None:
        self.has_unreported |= answered and bool(part.get("unreported"))
        self.usd += usd(part, model, self.known) or 0.0

    @property
    def _spent(self) -> float:
        return self.usd + (usd(self.not_recorded(), self.reader, self.known) or 0.0)

    @property
    def reached(self) -> str:
        """The message for a run that must stop because of the limit; empty if it may go on."""
        if self.limit is None:
            return ""
        if self.has_unreported:
            return "--cost-limit cannot be enforced: a server did not report the number of tokens of an answer."
        if self._spent < self.limit:
            return ""
        return f"The run has cost ${self._spent:,.4f}, and --cost-limit is ${self.limit:,.4f}."

    def next_limit(self, share: float) -> str:
        """Estimate a --cost-limit that suffices for the rest of the run.

        Args:
            share: The share of the questions that are answered.

        Returns:
            Dollars, rounded up to two digits: a tenth more than the run would cost at the price of its answers so far,
            and at least double the present limit. `none` if the cost cannot be known.
        """
        if self.has_unreported:
            return "none"
        wanted = max(1.1 * self._spent / share if share else 0.0, 2 * self._spent, 2 * (self.limit or 0.0))
        unit = 10.0 ** (math.floor(math.log10(wanted)) - 1)
        return f"{math.ceil(wanted / unit) * unit:.12g}"


def dollars(stage: Results) -> str:
    """Format the dollars of a stage.

    Returns:
        `$0.1234`, `$0.1234+` for a lower bound, `local` if the model runs on this machine, `?` if the price is unknown,
        or `-` if there were no calls.
    """
    if stage["usd"] is None:
        return "?"
    if not stage["calls"]:
        return "-"
    return "local" if stage["local"] else f"${stage['usd']:,.4f}{'+' if stage['unreported'] else ''}"
