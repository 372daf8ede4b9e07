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
from memometer.train import merge_lora, metrics
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
    results = {
        "mode": options.mode,
        "model": options.model,
        "steps": len(steps),
        "best": notes["validation"],
        "before": next((line for line in validations if line["step"] == 0), None),
        "alarm": metrics.reward_hacking_alarm(steps),
        "finite": all(abs(step.get("loss", 0.0)) < float("inf") for step in steps),
    }
    folder.write_json("results.json", results)
    write_program(plan, notes)
    plan.print(f"Best at step {notes['validation']['step']:,}: {best}")
    if results["before"]:
        plan.print(metrics.format_line(results["before"], "validation of the base model, step"))
    plan.print(metrics.format_line(notes["validation"], "validation of the best adapter, step"))
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


def write_program(plan: TrainingPlan, notes: Mapping[str, Any]) -> None:
    """Write the prompt that the adapter was trained with to `--out`, for evaluate.py --program."""
    out = Path(plan.options.out)
    predictor = plan.reader().read
    program_file.save(predictor, out, {**notes, "rounds": plan.options.rounds, "optimised": True})
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
