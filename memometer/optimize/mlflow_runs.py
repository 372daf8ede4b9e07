"""A search in MLflow's mydb.sqlite: one run, and under it one for each prompt that it tried, with its score and text.

MLflow takes seconds to import, so nothing imports this module before a search is over.
"""

from __future__ import annotations

from typing import Any

from memometer.optimize.significance import SearchResult
from memometer.report.mlflow_runs import run_of, told
from memometer.run.folder import RunFolder


def log_search(folder: RunFolder, results: dict[str, Any], found: SearchResult) -> str:
    """Returns a sentence on where it went. A failure of MLflow is such a sentence too: all of it is in the folder."""
    return told(folder, "search", lambda: _log(folder, results, found))


def _log(folder: RunFolder, results: dict[str, Any], found: SearchResult) -> str:
    import mlflow

    with run_of(folder) as (active, new):
        if new:
            for number, candidate in enumerate(found.candidates.tried.values()):
                with mlflow.start_run(run_name=f"candidate {number}", nested=True):
                    lift, n = found.candidates.lift(candidate)
                    mlflow.log_params({"prompt": candidate.digest, "examples": len(candidate.demos)})
                    score = candidate.mean(list(candidate.scores))  # none where every call failed, which is no zero
                    scored = {} if score is None else {"objective": score}
                    mlflow.log_metrics({**scored, "lift": lift, "n": n})
                    mlflow.log_dict(candidate.as_json(), "prompt.json")
        manifest = folder.manifest
        mlflow.set_tags({"kind": "optimize", "gained": str(results["gained"]), "git": str(manifest["git"])})
        parameters = {**manifest["config"], **{f"identity/{k}": v for k, v in manifest["identity"].items()}}
        mlflow.log_params({name: str(value)[:500] for name, value in parameters.items()})
        for name in ("gain", "f1"):
            compared = results[name]
            values = {f"{name}/{key}": compared[key] for key in ("before", "after", "difference", "n")}
            if compared["interval"]:
                values |= dict(
                    zip((f"{name}/difference_low", f"{name}/difference_high"), compared["interval"], strict=True)
                )
            mlflow.log_metrics({key: value for key, value in values.items() if value is not None})
        for path in sorted(folder.path.iterdir()):
            if path.suffix in (".json", ".txt"):
                mlflow.log_artifact(str(path))
        return str(active.info.run_id)
