"""A training as it was asked for: its data, prompts and values settled before anything is loaded, then carried out by
a back end, or resumed by it.

    grpo_checkpoints/
        manifest.json         what was asked and resolved; train.jsonl, validation.jsonl: the prompts
        steps.jsonl           what was measured at each step
        checkpoint-25/ …      the back end's own; best/: the adapter that validation chose
        results.json, README.md (the model card)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from memometer import benchmarks
from memometer.benchmarks import reward
from memometer.benchmarks.protocol import Conversation, DataError, Dataset
from memometer.harness import contamination
from memometer.harness.plan import Refused
from memometer.retrieval.ranker import Ranker
from memometer.run.environment import digest, provenance, recalling_code
from memometer.run.folder import RunFolder, RunFolderError, read_manifest
from memometer.run.progress import eprint
from memometer.token_counters import counter_for
from memometer.train import hyperparameters
from memometer.train import prompt_dataset as exporter
from memometer.train.prompt_dataset import ReadingPrompt

Config = dict[str, Any]
Outcome = str
"""valid, failed, invalid or stopped, as train.py's exit codes have them."""

BACKENDS = {"trl": "memometer.train.trl_backend", "arbor": "memometer.train.arbor_training"}
"""Modules with `check(job) -> None`, which raises Refused before anything is written, and
`train(job, folder) -> Outcome`, which goes on from the newest checkpoint of the folder where there is one."""

SIMULATED_CONVERSATIONS = 10


@dataclass(frozen=True)
class Job:
    """What a back end is given. `values` are the resolved hyper-parameters
    (memometer/train/hyperparameters.py), `train` and
    `validation` the prompts, `before` the notes of the adapter or merged model that it starts from."""

    config: Config
    values: hyperparameters.Values
    data: Dataset
    train: tuple[ReadingPrompt, ...]
    validation: tuple[ReadingPrompt, ...]
    notices: tuple[str, ...] = ()
    before: tuple[Config, ...] = ()

    @property
    def stand_in(self) -> str:
        """What all that was ever learned from stands in for; empty where LOCOMO is among it."""
        return self.data.kind if all(notes["stand_in"] for notes in self.before) else ""

    @property
    def output(self) -> Path:
        return Path(self.config["output_dir"])

    @property
    def steps(self) -> int:
        return int(self.config["num_train_steps"])

    @property
    def eval_steps(self) -> int:
        return int(self.config["eval_steps"] or max(1, self.steps // 10))

    def say(self, line: str) -> None:
        print(f"{self.data.prefix}{line}", flush=True)


def prepare(config: Config) -> Job:
    """Everything that can be settled without the model. Raises Refused."""
    try:
        values = hyperparameters.resolve(
            config["recipe"], mode=config["mode"], backend=config["backend"], chosen=config
        )
    except hyperparameters.RecipeError as error:
        raise Refused(str(error)) from error
    if config["adapter"]:
        values |= _shape_of(Path(config["adapter"]))
    data = data_of(config)
    parts = {name: data.part(name) for name in ("train", "validation")}
    count = counter_for()
    notices = []
    prompts: dict[str, tuple[ReadingPrompt, ...]] = {}
    for name, n in (("train", config["num_train"]), ("validation", config["num_val"])):
        conversations = parts[name]
        if config["rename"] and name == "train":
            from memometer.train.anonymize_speakers import renamed

            conversations = tuple(
                renamed(c, benchmarks.load(data.benchmark), seed=config["seed"]) for c in conversations
            )
        questions, unlabelled = exporter.chosen(
            conversations, n, absent_share=config["absent_share"], seed=config["seed"]
        )
        try:
            prompts[name] = tuple(
                exporter.reading_prompts(
                    conversations,
                    questions,
                    budgets=config["budgets"],
                    rounds=config["rounds"],
                    count=count,
                    memory=config["memory"],
                    rankers=_unseen(data, parts["train"]) if name == "train" and config["memory"] == "adaptive" else {},
                    examples=config["examples"],
                    benchmark=data.benchmark,
                )
            )
        except ValueError as error:
            raise Refused(f"{error}.") from error
        if not questions:
            raise Refused(f"there is no {name} question with evidence; give data with more conversations.")
        if len(questions) < n:
            notices.append(f"There are {len(questions)} {name} questions, not {n}.")
        if unlabelled:
            notices.append(f"{unlabelled} {name} questions have no usable evidence label, and are left out.")
    if not data.kind and (found := exporter.leaks_in(prompts["train"], contamination.HeldOut.of(data))):
        raise Refused(f"the training prompts hold {len(found)} held-out texts: {contamination.summary(found)[0]}.")
    return Job(config, values, data, prompts["train"], prompts["validation"], tuple(notices), _before(config))


def _shape_of(adapter: Path) -> hyperparameters.Values:
    """The values that an adapter brings with it. Raises Refused."""
    try:
        found = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        targets = found["target_modules"]
        return {
            "lora_rank": found["r"],
            "lora_alpha": found["lora_alpha"],
            "lora_dropout": found["lora_dropout"],
            "lora_targets": targets if isinstance(targets, str) else ",".join(sorted(targets)),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"--adapter {adapter} holds no LoRA adapter (adapter_config.json); give the folder of one."
        ) from error


def _before(config: Config) -> tuple[Config, ...]:
    folders = [Path(config[name]) for name in ("adapter", "model") if config[name]]
    return tuple(
        json.loads(file.read_text(encoding="utf-8"))
        for folder in folders
        if (file := folder / "training.json").is_file()
    )


def data_of(config: Mapping[str, Any]) -> Dataset:
    """LOCOMO, a file, or conversations made here, for an adapter that may be given away. Raises Refused."""
    benchmark = benchmarks.load(config.get("benchmark"))
    if config["data"] == "simulated":
        if benchmark.synthesize is None:
            raise Refused(f"--data simulated: {benchmark.title} has no synthetic conversations; name a file.")
        return benchmark.synthesize(config["seed"], SIMULATED_CONVERSATIONS)
    try:
        return benchmark.load(config["data"])
    except DataError as error:
        raise Refused(str(error)) from error


def _unseen(data: Dataset, train: Sequence[Conversation]) -> dict[str, Ranker]:
    """For each training conversation weights fitted on the others, so that what it shows is what an unknown one would
    show. Those that come with the project have seen it."""
    from memometer.train.held_out_rankers import unseen_rankers

    return {} if data.kind else unseen_rankers(data, train)


# ---------------------------------------------------------------- what train.py calls


def carry_out(config: Config) -> Outcome:
    """Train in a new folder."""
    job = prepare(config)
    backend = _backend(config)
    backend.check(job)
    for line in announcement(job):
        eprint(f"{job.data.prefix}{line}")
    identity = identity_of(job)
    manifest = {
        "config": _plain(config),
        "values": job.values,
        "identity": identity,
        "stand_in": job.data.kind,
        "licence": licence(job.stand_in, job.data),
        **provenance(),
    }
    try:
        folder = RunFolder.create(job.output, manifest)
    except (RunFolderError, OSError) as error:
        raise Refused(str(error).replace("--run-dir", "--output-dir")) from error
    with folder:
        exporter.write(job.train, folder.path / "train.jsonl")
        exporter.write(job.validation, folder.path / "validation.jsonl")
        return str(backend.train(job, folder))


def resume(path: Path, *, arbor_url: str | None = None, cost_limit: float | None = None) -> Outcome:
    """Go on with the training of a folder from its newest checkpoint, on another Arbor server if one is named, or with
    more to spend. Refused where anything else has changed since."""
    try:
        manifest = read_manifest(path)
        config = {**manifest["config"], **({"arbor_url": arbor_url} if arbor_url else {})}
        config["cost_limit"] = cost_limit or config["cost_limit"]
        job = prepare({**config, **{name: Path(config[name]) for name in PATHS if config.get(name)}})
        was = manifest["identity"]
    except RunFolderError as error:
        raise Refused(str(error)) from error
    except KeyError as error:
        raise Refused(f"{path} holds no training of this version (it has no {error}); start anew.") from error
    now = identity_of(job)
    if changed := [name for name in {**was, **now} if now.get(name) != was.get(name)]:
        raise Refused(
            f"{path} was begun with another {', '.join(changed)} than there is now; restore what changed, or train "
            "into another --output-dir."
        )
    backend = _backend(config)
    backend.check(job)
    try:
        folder = RunFolder.reopen(path)
    except (RunFolderError, OSError) as error:
        raise Refused(str(error)) from error
    with folder:
        return str(backend.train(job, folder))


def plan(config: Config) -> Outcome:
    """Say what would be trained, and on what."""
    job = prepare(config)
    for line in announcement(job):
        job.say(line)
    return "valid"


def export(config: Config) -> Outcome:
    """Write the prompts and a recipe for an engine of others."""
    from memometer.train.exporters import write

    job = prepare(config)
    for line in write(job, config["export"]):
        job.say(line)
    return "valid"


# ---------------------------------------------------------------- its parts

PATHS = ("adapter", "output_dir", "out", "arbor_config", "run_dir")
FREE = ("dry_run", "no_mlflow", "arbor_url", "push_to_hub", "output_dir", "cost_limit")
"""Flags that change nothing of what is trained."""
BESIDE = ("adapters", "doctor", "engines", "evaluation", "figures", "local_engine", "mlflow_log")
"""Modules that change nothing of it either."""


def identity_of(job: Job) -> dict[str, str]:
    """What must be the same for a training to go on where it was."""
    files = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem not in BESIDE]
    files += [Path(reward.__file__), *benchmarks.load(job.data.benchmark).scoring_files]
    code = [recalling_code(), *(path.read_text() for path in files)]
    shaping = {name: value for name, value in _plain(job.config).items() if name not in FREE}
    return {
        "configuration": digest([shaping, job.values]),
        "data": job.data.sha256,
        "prompts": digest([prompt.as_json() for prompt in (*job.train, *job.validation)]),
        "code": digest(code),
    }


def announcement(job: Job) -> list[str]:
    """What is learned from what, by whom."""
    config, values = job.config, job.values
    counts = Counter(prompt.case.category for prompt in job.train)
    kinds = ", ".join(f"{counts[c]} {name}" for c, name in job.data.categories.items() if counts[c])
    complete = sum(prompt.case.complete for prompt in job.train) / len(job.train)
    budgets = ", ".join(f"{budget:,}" for budget in config["budgets"])
    lines = [
        f"{config['mode']} with {config['backend']}, recipe {config['recipe']}: {config['model']}, LoRA rank "
        f"{values['lora_rank']}, {job.steps:,} steps at {values['learning_rate']:g}.",
        f"{len(job.train):,} prompts ({kinds}) at {budgets} tokens of memory ({config['memory']}), all evidence shown "
        f"in {complete:.0%}; {len(job.validation):,} prompts of other conversations choose the checkpoint.",
    ]
    if config["mode"] == "train":
        lines.append(
            f"{hyperparameters.prompts_per_step(values)} prompts of {values['num_generations']} completions a step; "
            + ", ".join(f"{name} {value}" for name, value in values.items())
            + "."
        )
    lines += job.notices
    return lines + ([job.data.notice] if job.data.kind else [])


def licence(stand_in: str, data: Dataset) -> str:
    """Under what terms what is learned from data may be used."""
    if stand_in:
        return "Made with conversations of this project's own words (MIT)."
    benchmark = benchmarks.load(data.benchmark)
    return f"Made with {benchmark.title}. {benchmark.licence}"


def _backend(config: Mapping[str, Any]) -> Any:
    return import_module(BACKENDS[config["backend"]])


def _plain(config: Mapping[str, Any]) -> Config:
    """As JSON can hold it."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in config.items()}
