"""The end of a training: results, the prompt for evaluate.py, the merged model, upload, and evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from memometer.models.errors import describe
from memometer.reader import program_file
from memometer.run.folder import RunFolder
from memometer.stats.intervals import Comparison
from memometer.train import merge_lora, metrics
from memometer.train.checkpoints import gain_over_start, program_notes
from memometer.train.plan import Outcome, TrainingPlan


def finish(plan: TrainingPlan, folder: RunFolder) -> Outcome:
    """Write the results and the prompt, then merge, upload, log and evaluate as requested.

    Returns:
        The outcome: failed if there is no best adapter, otherwise valid or the outcome of the evaluation.
    """
    options, best = plan.options, folder.path / "best"
    if not (best / "adapter_config.json").exists():
        plan.eprint(f"No adapter was saved as the best one; the checkpoints are in {folder.path}.")
        return "failed"
    steps = metrics.read_lines(folder.path / metrics.STEPS)
    validations = metrics.read_lines(folder.path / metrics.VALIDATIONS)
    notes = json.loads((best / "training.json").read_text(encoding="utf-8"))
    before = next((line for line in validations if line["step"] == 0), None)
    gain = gain_over_start(folder.path / metrics.VALIDATIONS, plan.validation, notes["validation"]["step"])
    results = {
        "mode": options.mode,
        "model": options.model,
        "steps": len(steps),
        "best": notes["validation"],
        "before": before,
        "gain": None if gain is None else {"difference": gain.difference, "low": gain.low, "high": gain.high},
        "alarm": metrics.reward_hacking_alarm(steps),
        "finite": all(abs(step.get("loss", 0.0)) < float("inf") for step in steps),
    }
    folder.write_json("results.json", results)
    write_program(plan, notes)
    plan.print(f"Best at step {notes['validation']['step']:,}: {best}")
    if before:
        name = "starting adapter" if options.adapter else "base model"
        plan.print(metrics.format_line(before, f"validation of the {name}, step"))
    plan.print(metrics.format_line(notes["validation"], "validation of the best adapter, step"))
    if gain is not None:
        plan.print(describe_gain(gain))
    if results["alarm"]:
        plan.print(results["alarm"])
    if options.merge:
        plan.print(f"Merged model: {merge_lora.merge(best, folder.path / 'merged')}")
    if options.push_to_hub:
        plan.print(push(best, options.push_to_hub))
    if not options.no_mlflow:
        from memometer.report.mlflow import log_training

        plan.print(log_training(folder, results, {"train": steps, "validation": validations}))
    if not options.num_test:
        return "valid"
    from memometer.train.adapter_evaluation import evaluate

    return evaluate(replace(options, mode="evaluate", adapter=str(best), run_dir=None))


def describe_gain(gain: Comparison) -> str:
    """Return a sentence on the validation reward of the best adapter against step 0."""
    difference = gain.difference or 0.0
    interval = f" [{gain.low:+.3f}, {gain.high:+.3f}]" if gain.low is not None and gain.high is not None else ""
    if difference <= 0:
        return f"No checkpoint is better than step 0 ({difference:+.3f}{interval}): this training did not help."
    significant = bool(gain.low and gain.low > 0)
    note = "" if significant else ", not significant"
    return f"Validation reward against step 0: {difference:+.3f}{interval}, n = {gain.n}{note}. It was selected there."


def write_program(plan: TrainingPlan, notes: Mapping[str, Any]) -> None:
    """Write the prompt that the adapter was trained with to `--out`, for evaluate.py --program."""
    out = Path(plan.options.out)
    predictor = plan.reader().read
    program_file.save(predictor, out, program_notes(plan, notes))
    plan.print(f"Prompt written to {out}.")


def push(adapter: Path, name: str) -> str:
    """Upload an adapter with its model card to a private repository; return a sentence on the result."""
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=str(adapter), commit_message="Adapter")
    except Exception as error:  # noqa: BLE001 - the adapter is on disk; a failed upload must not lose the result
        return f"The upload failed ({describe(error)}); log in with `hf auth login`, then `hf upload {name} {adapter}`."
    return f"Uploaded to {name} (private)."
