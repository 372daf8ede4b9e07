"""What an adapter is worth: the same questions, memory and budget, read by the adapter, by its own base under the same
prompt, and by the base with the style of the gold answers described to it, so that learned style is not sold as
learned memory.

It is a run as evaluate.py makes them, in a run folder: `memometer compare` and `memometer.report.viewer` read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy

from memometer.benchmarks.protocol import Conversation, DataError, Question
from memometer.benchmarks.reward import Objective, Reply
from memometer.benchmarks.sampling import sample
from memometer.harness import loop
from memometer.harness.plan import Refused
from memometer.memory import Memory
from memometer.models import resolve_models
from memometer.models.resolve_models import Model
from memometer.reader.reader import Reader
from memometer.report import aggregate
from memometer.report.results import write_results
from memometer.run import cost, test_set_usage
from memometer.run.environment import digest, provenance, recalling_code
from memometer.run.folder import Record, RunFolder, RunFolderError, is_answered, new_path
from memometer.run.interrupts import stopping
from memometer.run.progress import eprint
from memometer.stats.intervals import Comparison, paired
from memometer.systems.adaptive import AdaptiveMemory
from memometer.systems.baselines import Oracle
from memometer.token_counters import counter_for
from memometer.train import local_model
from memometer.train.local_engine import LocalEngine
from memometer.train.plan import Config, Outcome, data_of
from memometer.train.prompt_dataset import reading_prompts
from memometer.train.reward import gold_reply

ADAPTER, BASE, STYLED = "adapter", "base", "base with style rules"

STYLE = (
    "The answer has at most six words and is no sentence: no article, no explanation, nothing that the question says "
    "already. Several things are separated by commas. A date is written like 7 May 2023, and a day that is told "
    "relative to another like the week before 7 May 2023. What is only likely is answered with Likely yes or Likely no."
)
"""How LOCOMO's gold answers are written, for a reader that was not trained on any."""

LOOKED_AT = 16
"""Questions whose gold reply's log-probability is taken."""


class Evaluation:
    """Everything that is settled before the first question. Raises Refused."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.adapter = Path(config["adapter"] or Path(config["output_dir"]) / "best")
        self.notes = _notes(self.adapter)
        self.data = data_of(config)
        self.budget: int = config["budget_tokens"] or max(self.notes["budgets"])
        self.questions = self._questions()
        asked = {question.conversation for question in self.questions}
        self.conversations = [c for c in self.data.conversations if c.id in asked]
        self.count = counter_for()
        self.served = bool(config["api_base"])
        self.models = self._served() if self.served else self._local()
        memory = Oracle if self.notes["memory"] == "oracle" else AdaptiveMemory
        self.memory: Memory[Any] = memory(count=self.count)
        self.readers = {name: self._reader(name) for name in (ADAPTER, BASE, STYLED)}
        memories = dict.fromkeys(self.readers, self.memory)
        self.tasks = loop.plan(memories, self.questions, budgets=[self.budget])

    def _questions(self) -> tuple[Question, ...]:
        try:
            conversations = self.data.part(self.config["split"])
        except DataError as error:
            raise Refused(str(error)) from error
        seen = sorted({c.id for c in conversations} & set(self.notes["trained_on"]))
        if seen and not self.data.kind:
            raise Refused(f"the adapter was trained on {', '.join(seen)}, asked here; ask other conversations.")
        pool = [question for c in conversations for question in c.questions]
        if self.notes["memory"] == "oracle":
            pool = [question for question in pool if question.evidence]
        return sample(pool, self.config["num_test"], seed=self.config["seed"])

    def _local(self) -> dict[str, Model]:
        notes, values = self.notes, self.notes["values"]
        base = local_model.load(
            notes["model"],
            precision=values["precision"],
            quantize=notes["quantize"],
            attn=self.config["attn"],
            unsloth=self.config["unsloth"],
            window=values["max_prompt_tokens"] + values["max_completion_tokens"],
        )
        self.local = base.adapter(self.adapter)
        most = values["max_completion_tokens"]
        models = {}
        for name in (ADAPTER, BASE):
            engine = LocalEngine(self.local, with_adapter=name == ADAPTER)
            lm = dspy.LM(f"local/{name}", engine=engine, temperature=0.0, max_tokens=most, cache=False, num_retries=0)
            revision = digest(_weights(self.adapter)) if name == ADAPTER else ""
            models[name] = Model(notes["model"], lm, self.count, base.context_tokens, most, None, revision)
        return models

    def _served(self) -> dict[str, Model]:
        if not self.config["adapter_name"]:
            raise Refused("--api-base needs --adapter-name, by which the server knows the adapter.")
        names = {ADAPTER: self.config["adapter_name"], BASE: self.notes["model"]}
        most = self.notes["values"]["max_completion_tokens"]
        try:
            return {
                name: resolve_models.load(
                    f"openai/{model}", api_base=self.config["api_base"], tokenizer="o200k_base", max_tokens=most
                )
                for name, model in names.items()
            }
        except ValueError as error:
            raise Refused(str(error)) from error

    def _reader(self, arm: str) -> Reader:
        reader = Reader(rounds=0 if self.notes["memory"] == "oracle" else self.notes["rounds"])
        if not self.notes["examples"]:
            reader.read.demos = []
        if arm == STYLED:
            instructions = f"{reader.read.signature.instructions} {STYLE}"
            reader.read.signature = reader.read.signature.with_instructions(instructions)
        reader.read.lm = self.models[ADAPTER if arm == ADAPTER else BASE].lm
        return reader

    def cautions(self) -> list[str]:
        """What flatters the adapter."""
        chosen = sorted({c.id for c in self.conversations} & set(self.notes["selected_on"]))
        if not chosen:
            return []
        return [f"The adapter's checkpoint was chosen on {', '.join(chosen)}, asked here: its gain is flattered."]

    def manifest(self) -> dict[str, Any]:
        """As evaluate.py writes it, so that its readers know what was asked."""
        prompts = {
            name: digest([reader.read.signature.instructions, [dict(demo) for demo in reader.read.demos]])
            for name, reader in self.readers.items()
        }
        config = {
            **{name: self.config[name] for name in ("mode", "split", "num_test", "seed", "api_base", "attn")},
            "model": self.notes["model"],
            "no_mlflow": self.config["no_mlflow"],
            "adapter": str(self.adapter),
            "budgets": [self.budget],
            "benchmark": self.data.benchmark,
            "categories": list(self.data.categories),
            "two_options": False,
            "folds": False,
            "trace": False,
            "fail_on_error": 0.05,
            "max_answer_tokens": self.notes["values"]["max_completion_tokens"],
            "data": None if self.config["data"] == "simulated" else self.config["data"],
        }
        return {
            "config": config,
            "identity": {
                "configuration": digest(config),
                "data": self.data.sha256,
                "questions": digest([question.id for question in self.questions]),
                "systems": recalling_code(),
                "answer prompts": digest(prompts),
                "reader": f"{self.notes['model']} {self.models[ADAPTER].revision}",
                "token counter": self.count.name,
            },
            "questions": [question.id for question in self.questions],
            "answer_prompts": prompts,
            "left_out": {},
            "stand_in": self.data.kind,
            "reader": self.notes["model"],
            "prices": cost.prices(None, None),
            "unmetered": [],
            "trained": self.notes,
            "cautions": self.cautions(),
            **provenance(),
        }


def evaluate(config: Config) -> Outcome:
    """Ask, compare, say. The outcome is valid, invalid where too many calls failed, failed or stopped."""
    evaluation = Evaluation(config)
    data = evaluation.data
    path = Path(config["run_dir"]) if config["run_dir"] else new_path()
    try:
        # A folder that holds this very evaluation goes on where it was stopped.
        known = (path / "manifest.json").exists()
        folder = RunFolder.reopen(path) if known else RunFolder.create(path, evaluation.manifest())
        if known and folder.manifest["identity"] != evaluation.manifest()["identity"]:
            raise Refused(f"{path} holds another evaluation; name another --run-dir.")
    except (RunFolderError, OSError) as error:
        raise Refused(str(error)) from error
    with folder:
        for line in _announcement(evaluation):
            eprint(f"{data.prefix}{line}")
        with stopping() as stop:
            fatal = loop.run(
                evaluation.tasks,
                lambda _system, _conversation: evaluation.memory,
                evaluation.conversations,
                folder,
                reader=evaluation.models[BASE],
                readers=evaluation.readers,
                num_threads=4 if evaluation.served else 1,
                stop=stop,
                progress=_progress(len(evaluation.tasks), data.prefix),
            )
        return _conclude(evaluation, folder, fatal, stopped=stop.is_set())


def _conclude(evaluation: Evaluation, folder: RunFolder, fatal: str, *, stopped: bool) -> Outcome:
    data, config = evaluation.data, evaluation.config
    keys = [task.key for task in evaluation.tasks]
    records = aggregate.current(folder.records(), keys)
    left = len(keys) - sum(is_answered(record) for record in records)
    again = f"python train.py --mode evaluate --adapter {evaluation.adapter} --run-dir {folder.path}"
    if fatal or (stopped and left):
        eprint(f"{data.prefix}Stopped{f': {fatal}' if fatal else ''}. Go on, with the same flags, by {again}")
        return "failed" if fatal else "stopped"
    outcome = "invalid" if left > 0.05 * len(keys) else "valid"
    looks = None
    if data.held_out(config["split"]):
        looks = test_set_usage.look(folder, questions=len(evaluation.questions), status=outcome)
    facts = {
        "status": outcome,
        "split": config["split"],
        "subset": len(evaluation.questions) < len(data.questions),
        "reader": evaluation.notes["model"],
        "judge": None,
        "token_counter": evaluation.count.name,
        "left_out": {},
        "ledger": {"test_scored": asdict(looks) if looks else None, "broken": []},
    }
    _, table = write_results(folder, data, keys, facts, no_judge="no judge is asked", notes=[str(looks or "")])
    lines = [*table.splitlines(), "", *verdict(evaluation, records)]
    if not evaluation.served:
        lines.append(_likelihood(evaluation))
    lines.append(f"Written to {folder.path}; look at it with: memometer view {folder.path}")
    folder.write_text("report.txt", "".join(f"{data.prefix}{line}\n" for line in lines))
    for line in lines:
        print(f"{data.prefix}{line}", flush=True)
    return outcome


def verdict(evaluation: Evaluation, records: Sequence[Record]) -> list[str]:
    """The adapter against its base and against the base with style rules, paired, with intervals."""
    questions = {question.id: question for question in evaluation.questions}
    by_arm: dict[str, dict[str, Record]] = {name: {} for name in (ADAPTER, BASE, STYLED)}
    for record in records:
        if is_answered(record) and record["answer"] is not None:
            by_arm[record["system"]][record["question_id"]] = record
    quality = Objective(token_price=0.0).quality
    measures: list[tuple[str, Collection[bool], Callable[[Question, Record], float]]] = [
        ("F1, answerable questions", (True,), lambda question, record: question.score(record["answer"])),
        ("abstentions, unanswerable questions", (False,), lambda question, record: question.score(record["answer"])),
        ("quality, all", (True, False), lambda question, record: quality(question, Reply.of_record(record))),
    ]
    lines = []
    for other, of_what in ((BASE, "what training did"), (STYLED, "what of it is more than style")):
        lines.append(f"adapter against {other} ({of_what}):")
        for name, answerable, score in measures:
            both = [id for id in by_arm[ADAPTER] if id in by_arm[other] and questions[id].answerable in answerable]
            mine, theirs = ([score(questions[id], by_arm[arm][id]) for id in both] for arm in (ADAPTER, other))
            found = paired(mine, theirs, [questions[id].conversation for id in both])
            lines.append(f"  {name}: {_average(theirs):.3f} -> {_average(mine):.3f}, {_told(found)}")
    return lines


def _told(found: Comparison) -> str:
    if found.difference is None:
        return "no question of these"
    interval = f" [{found.low:+.3f}, {found.high:+.3f}]" if found.low is not None and found.high is not None else ""
    sure = bool(found.low and found.low > 0) or bool(found.high and found.high < 0)
    return (
        f"{found.difference:+.3f}{interval}, {found.wins} better, {found.losses} worse, n = {found.n}, "
        f"{found.clusters} conversations" + ("" if sure else ": not distinguishable from chance")
    )


def _likelihood(evaluation: Evaluation) -> str:
    """How likely gold replies are to the adapter and to its base: equal figures mean that the adapter does nothing."""
    notes = evaluation.notes
    asked = [question for question in evaluation.questions if question.gold][:LOOKED_AT]
    prompts = reading_prompts(
        evaluation.conversations,
        asked,
        budgets=notes["budgets"],
        rounds=notes["rounds"],
        count=evaluation.count,
        memory=notes["memory"],
        examples=notes["examples"],
    )
    local = evaluation.local
    found = [local.divergence(local.prompt_ids(prompt.messages), gold_reply(prompt.case)) for prompt in prompts]
    if not found:
        return "No gold answer to take a log-probability of."
    kl, adapter, base = (fmean(column) for column in zip(*found, strict=True))
    told = "" if adapter != base else " The adapter changes nothing: was it saved before its first step?"
    return (
        f"Log-probability a token of {len(found)} gold replies: {base:.3f} (base) -> {adapter:.3f} (adapter), "
        f"KL {kl:.4f}.{told}"
    )


def _announcement(evaluation: Evaluation) -> list[str]:
    notes = evaluation.notes
    lines = [
        f"{notes['model']} with {evaluation.adapter} (trained on {', '.join(notes['trained_on'])}), without it, and "
        f"without it under style rules: {len(evaluation.questions)} questions of {_ids(evaluation.conversations)} at "
        f"{evaluation.budget:,} tokens of memory ({notes['memory']}), {max(1, notes['rounds'])} round(s)."
    ]
    lines += evaluation.cautions()
    return lines + ([evaluation.data.notice] if evaluation.data.kind else [])


def _ids(conversations: Sequence[Conversation]) -> str:
    return ", ".join(conversation.id for conversation in conversations[:12])


def _progress(total: int, mark: str) -> Callable[[Record], None]:
    done = 0

    def progress(_: Record) -> None:
        nonlocal done
        done += 1
        if done % 25 == 0 or done == total:
            eprint(f"{mark}{done} of {total} asked")

    return progress


def _notes(adapter: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(
            f"{adapter} holds no adapter of train.py (no training.json); train one, or name it with --adapter."
        ) from error
    return found


def _weights(adapter: Path) -> list[str]:
    from memometer.models.downloads import sha256

    return [sha256(path) for path in sorted(adapter.glob("*.safetensors"))]


def _average(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
