"""Supervised LoRA training at Together's fine-tuning service, with its own client and without a GPU here.

The training prompts and their target replies are uploaded as conversations. The job's id is in the training folder
before anything waits for it, so a resumed training follows the same job. The uploaded files are deleted at the end, and
nothing is published or deployed. The adapter is downloaded to best/.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from memometer.errors import UserError
from memometer.models.errors import describe
from memometer.run.folder import RunFolder
from memometer.run.interrupts import stopping
from memometer.train import checkpoints, distillation
from memometer.train.plan import Outcome, TrainingPlan
from memometer.train.prompt_dataset import ReadingPrompt
from memometer.train.results import write_program
from memometer.train.target_replies import target_replies

POLL_SECONDS = 15.0
JOB = "together.json"
"""File of the training folder with the ids of the job and of the uploaded files."""
ENDED = {"completed": "valid", "error": "failed", "user_error": "failed", "cancelled": "failed"}
"""Status of a finished job -> outcome of the training."""


def client() -> Any:
    """Return Together's client. Raises UserError without the package or a key."""
    try:
        from together import Together
    except ImportError as error:
        raise UserError("--backend together needs Together's client; install with: pip install 'together>=3,<4'") from (
            error
        )
    if not os.environ.get("TOGETHER_API_KEY"):
        raise UserError("--backend together needs a key: set TOGETHER_API_KEY.")
    return Together()


def check(plan: TrainingPlan) -> None:
    """Raise UserError for a configuration that Together does not support. Uploads nothing."""
    options = plan.options
    if options.model.startswith(("embedded:", ".", "/")):
        raise UserError(f"Together does not train {options.model}; use a model of its fine-tuning list with --model.")
    if options.adapter or options.quantize or options.merge:
        raise UserError("--adapter, --quantize and --merge are not for --backend together; leave them out.")
    if options.num_test:
        raise UserError("--backend together does not evaluate; leave out --num-test, and use --mode evaluate.")
    if options.teacher:
        distillation.load_teacher(plan)
    client()


def conversation(prompt: ReadingPrompt, reply: str) -> dict[str, Any]:
    """Return a line of the training file: the prompt's messages and the reply to learn."""
    return {"messages": [*prompt.messages, {"role": "assistant", "content": reply}]}


def train(plan: TrainingPlan, folder: RunFolder) -> Outcome:
    """Start the job, or follow the one of a stopped training, until it ends; then download the adapter."""
    from together import TogetherError

    service = client()
    with stopping() as stop:
        try:
            job = _job(plan, folder, service)
            status = _follow(plan, service, job["id"], stop)
        except TogetherError as error:
            plan.eprint(f"Together did not answer as expected ({describe(error)}).")
            plan.eprint(f"Continue with: python train.py --resume {folder.path}")
            return "stopped"
        if status == "stopped":
            plan.eprint(
                f"Stopped here; the job {job['id']} goes on at Together. Continue with: python train.py --resume "
                f"{folder.path}. Cancel it with: together fine-tuning cancel {job['id']}"
            )
            return "stopped"
        _delete_files(plan, service, job["files"])
        if ENDED[status] != "valid":
            plan.eprint(f"The job {job['id']} ended with status {status}; see its events above.")
            return "failed"
        _download(plan, folder.path, service, job["id"])
    notes = json.loads((folder.path / "best" / "training.json").read_text(encoding="utf-8"))
    write_program(plan, notes)
    plan.print(f"The adapter is in {folder.path / 'best'}. Nothing is deployed or public at Together.")
    return "valid"


def epochs(plan: TrainingPlan, examples: int) -> int:
    """Return the number of passes that is nearest to --num-train-steps."""
    values = plan.hyperparameters
    return max(1, math.ceil(plan.steps * values.batch_size * values.gradient_accumulation / examples))


def _job(plan: TrainingPlan, folder: RunFolder, service: Any) -> dict[str, Any]:
    """Return the job of this training, which is started at most once."""
    path = folder.path / JOB
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "id" not in found:  # stopped while the job was being started
            jobs = [job.id for job in service.fine_tuning.list().data or () if job.training_file in found["files"]]
            if not jobs:
                raise UserError(
                    f"the job of {path} did not start; delete the file {found['files'][0]} at Together and start again "
                    "with another --output-dir."
                )
            found["id"] = jobs[0]
            folder.write_json(JOB, found)
        plan.eprint(f"Following the job {found['id']}.")
        return found
    values, targets = plan.hyperparameters, target_replies(plan, folder)
    lines = [conversation(prompt, targets[prompt.id]) for prompt in plan.train if prompt.id in targets]
    data = folder.path / "together.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")
    uploaded = service.files.upload(file=data, purpose="fine-tune", check=False)
    passes = epochs(plan, len(lines))
    price = service.fine_tuning.estimate_price(
        training_file=uploaded.id, model=plan.options.model, n_epochs=passes, training_method={
            "method": "sft", "train_on_inputs": False,
        },
        training_type={"type": "Lora", "lora_r": values.lora_rank, "lora_alpha": values.lora_alpha},
    )  # fmt: skip
    total = getattr(price, "estimated_total_price", None)
    shown = "unknown" if total is None else f"${total:,.2f}"
    plan.eprint(f"{len(lines):,} examples, {passes} passes: Together's estimate of the price is {shown}.")
    limit = plan.options.cost_limit
    refused = getattr(price, "allowed_to_proceed", None) is False
    if refused or (limit is not None and (total is None or total > limit)):
        _delete_files(plan, service, [uploaded.id])
        reason = "the account's credits do not suffice" if refused else f"--cost-limit is ${limit:,.2f}"
        raise UserError(f"the job was not started, because {reason} (estimate {shown}).")
    folder.write_json(JOB, {"files": [uploaded.id]})
    job = service.fine_tuning.create(
        training_file=uploaded.id,
        model=plan.options.model,
        n_epochs=passes,
        packing=False,
        batch_size="max",
        learning_rate=values.learning_rate,
        max_grad_norm=values.max_grad_norm,
        lora=True,
        lora_r=values.lora_rank,
        lora_alpha=values.lora_alpha,
        lora_dropout=values.lora_dropout,
        random_seed=plan.options.seed,
        train_on_inputs=False,
        suffix="memometer",
    )
    record = {"id": job.id, "files": [uploaded.id]}
    folder.write_json(JOB, record)
    plan.eprint(f"Started the job {job.id}.")
    return record


def _follow(plan: TrainingPlan, service: Any, job: str, stop: Any) -> str:
    """Print the job's events until it ends. Returns its last status, or `stopped`."""
    shown: set[tuple[str, str]] = set()
    while not stop.is_set():
        for event in service.fine_tuning.list_events(job).data or ():
            key = (str(event.created_at), str(event.message))
            if key not in shown:
                shown.add(key)
                plan.eprint(f"{event.created_at}  {event.message}")
        status = str(service.fine_tuning.retrieve(job).status)
        if status in ENDED:
            return status
        stop.wait(POLL_SECONDS)
    return "stopped"


def _delete_files(plan: TrainingPlan, service: Any, files: list[str]) -> None:
    for id in files:
        try:
            service.files.delete(id)
        except Exception as error:  # noqa: BLE001 - the job has ended; a file that stays is named
            plan.eprint(f"The uploaded file {id} could not be deleted ({describe(error)}); delete it at Together.")


def _download(plan: TrainingPlan, folder: Path, service: Any, job: str) -> None:
    """Download the adapter of a completed job to best/, with its notes and model card."""

    def save(part: Path) -> None:
        part.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            archive = Path(work) / "adapter"
            service.fine_tuning.content(ft_id=job, checkpoint="adapter").write_to_file(archive)
            _unpack(archive, Path(work) / "files")
            settings = next((Path(work) / "files").rglob("adapter_config.json"), None)
            if settings is None:
                raise UserError(
                    f"the download of {job} has no adapter_config.json; download it with Together's client."
                )
            for file in settings.parent.iterdir():
                if file.is_file():
                    shutil.copy(file, part / file.name)

    checkpoints.save_best(plan, folder, {"step": plan.steps, "reward": None}, save)


def _unpack(archive: Path, target: Path) -> None:
    """Unpack a tar file, also one that is compressed with Zstandard."""
    if archive.read_bytes()[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        plain = archive.with_suffix(".tar")
        with archive.open("rb") as packed, plain.open("wb") as file:
            zstandard.ZstdDecompressor().copy_stream(packed, file)
        archive = plain
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
