"""What every report of a run says, in whatever form: the rows, the plots' points, the certificates, the warnings.

Made from results.json and the manifest alone. A judge's accuracy is in it only where its certificate passed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from memometer.benchmarks.protocol import category_label
from memometer.budget import UNBOUNDED
from memometer.run import cost, test_set_usage
from memometer.systems import BASELINES

Results = dict[str, Any]


def summary(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> Results:
    """A plain value that JSON can write.

    `measures`: [{key, label, short, under, judged}] that may be shown, the most telling first. `rows`: one a system
    and budget, answerable questions: `system`, `budget` (tokens), `shown_budget`, `control`, `questions`, `ungraded`,
    `failed`, `scores` and, by category, `categories` as `scores_of` has them, `gap` ({measure key: share of the way
    from none to oracle}), `context_tokens`, `tokens`, `ingest_tokens`, `calls`, `seconds` (means a question),
    `unreported`, and `stages` as
    accounting has them, each with its `dollars` for people. `comparisons`, `certificates`: as results.json has them,
    without the measures that may not be shown. `frontier`, `areas`: by measure key. `by_key`: as results.json's
    `clean_and_flagged`. `total`: what all of it cost.
    `withheld`, `warnings`: sentences. `made`: [name, value] of how it was made.
    """
    measures = _measures(results)
    known = {measure["key"] for measure in measures}
    found = results.get("accounting", {})
    return {
        "categories": dict(results["categories"]),
        "measures": measures,
        "rows": list(_rows(results, measures)),
        "comparisons": [c for c in results.get("comparisons", ()) if (c.get("grading") or c["measure"]) in known],
        "certificates": list(results.get("certificates", ())),
        "frontier": {key: points for key, points in found.get("frontier", {}).items() if key in known},
        "areas": {key: systems for key, systems in found.get("areas", {}).items() if key in known},
        "by_key": results.get("clean_and_flagged", {}),
        "total": {**found["total"], "dollars": cost.dollars(found["total"])} if found else None,
        "withheld": _withheld(results),
        "warnings": _warnings(manifest, results),
        "made": _made(manifest, results),
    }


def _measures(results: Mapping[str, Any]) -> list[Results]:
    entries = [entry for _, _, entry in _entries(results)]
    names = [name for name in _gradings(entries) if not why_withheld(name, results)]
    found: list[Results] = [
        {"key": name, "label": f"J, {name}", "short": f"J{at or ''}", "under": name, "judged": True}
        for at, name in enumerate(names, start=len(names) > 1)
    ]
    if any(entry.get("f1") is not None for entry in entries):
        found.append({"key": "f1", "label": "F1", "short": "F1", "under": "", "judged": False})
    if not found or any(entry.get("evidence_recall") is not None for entry in entries):
        label = "Evidence recall"
        found.append({"key": "evidence_recall", "label": label, "short": label, "under": "", "judged": False})
    return found


def _gradings(entries: Iterable[Results]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.get("gradings", {})))


def why_withheld(grading: str, results: Mapping[str, Any]) -> str:
    """Why a judge's accuracy is not shown, in one sentence; empty where it may be."""
    why = results.get("withheld", {}).get(grading)
    return f"J of {grading} is withheld: {why}" if why else ""


def _withheld(results: Mapping[str, Any]) -> list[str]:
    names = _gradings(entry for _, _, entry in _entries(results))
    return [reason for name in names if (reason := why_withheld(name, results))]


def _entries(results: Mapping[str, Any]) -> list[tuple[str, str, Results]]:
    return [
        (name, budget, entry)
        for name, system in results.get("systems", {}).items()
        for budget, entry in system["budgets"].items()
    ]


def _rows(results: Mapping[str, Any], measures: list[Results]) -> Iterable[Results]:
    found = results.get("accounting", {})
    points = {
        (point["system"], point["budget"]): point
        for of_measure in found.get("frontier", {}).values()
        for point in of_measure
    }
    for name, budget, entry in _entries(results):
        point = points.get((name, int(budget)), {})
        paid = found.get("systems", {}).get(name, {"ingest": None, "budgets": {}})
        stages = {"ingest": paid["ingest"], **paid["budgets"].get(budget, {})}
        yield {
            "system": name,
            "budget": int(budget),
            "shown_budget": shown_budget(int(budget)),
            "control": name in BASELINES,
            "questions": entry["questions"],
            "ungraded": entry["ungraded"],
            "failed": entry.get("failed", 0),
            "gap": _gap(entry, measures),
            "scores": scores_of(entry, measures),
            "categories": {c: scores_of(_of_category(entry, c), measures) for c in entry["by_category"]},
            "context_tokens": entry.get("mean_tokens"),
            "tokens": point.get("tokens"),
            "ingest_tokens": point.get("ingest_tokens"),
            "unreported": point.get("unreported", 0),
            "calls": entry.get("mean_calls"),
            "seconds": entry.get("mean_seconds"),
            "stages": {
                stage: {**figures, "dollars": cost.dollars(figures)} for stage, figures in stages.items() if figures
            },
        }


def scores_of(entry: Results, measures: Iterable[Results]) -> Results:
    """{measure key: score} of one entry of results.json, of the measures that it has.

    A score is {value, low, high, n, ungraded, worst, best}, fractions and numbers of questions, null where not known;
    a judge's has `corrected` too, a score or null.
    """
    return {
        measure["key"]: found
        for measure in measures
        if (found := _graded(entry, measure["key"]) if measure["judged"] else _measured(entry, measure["key"]))
    }


def _graded(entry: Results, name: str) -> Results | None:
    found = entry.get("gradings", {}).get(name, {})
    score = _score(found, "score", "interval", found.get("n"))
    if score:
        own = name == next(iter(entry["gradings"])) and "corrected" not in found
        corrected = _score(entry, "judge_corrected", "judge_corrected_interval", None) if own else None
        score["corrected"] = corrected or _score(found, "corrected", "corrected_interval", None)
    return score


def _measured(entry: Results, name: str) -> Results | None:
    prefix = "" if name == "evidence_recall" else f"{name}_"
    found = {part: entry[f"{name}_{part}"] for part in ("ungraded", "worst", "best") if f"{name}_{part}" in entry}
    return _score({"ungraded": entry["ungraded"], **entry, **found}, name, f"{name}_interval", entry.get(f"{prefix}n"))


def _score(found: Results, value: str, interval: str, n: int | None) -> Results | None:
    if found.get(value) is None:
        return None
    low, high = found.get(interval) or (None, None)
    bounds = {name: found.get(name) for name in ("ungraded", "worst", "best")}
    return {"value": found[value], "low": low, "high": high, "n": n, **bounds}


MEASURES = ("judge", "f1", "evidence_recall", "all_evidence")
MEANS = ("mean_tokens", "mean_total_tokens", "mean_calls", "mean_seconds")


def flat(entry: Results, withheld: Collection[str]) -> dict[str, float | None]:
    """One entry of results.json as plain numbers by name, for tables and trackers: each measure (a fraction) with
    `_low` and `_high` (95 %, clustered by conversation), `_n` and `_ungraded`; J under every grading beside the run's
    own as `judge/GRADING`, but for those `withheld`; the means of tokens, calls and seconds. What there is none of is
    left out."""
    found = {name: _measured(entry, name) for name in MEASURES}
    others = [name for name in list(entry.get("gradings", {}))[1:] if name not in withheld]
    found |= {f"judge/{name}": _graded(entry, name) for name in others}
    numbers: dict[str, float | None] = {}
    for name, score in found.items():
        if score:
            numbers[name] = score["value"]
            parts = {part: score[part] for part in ("low", "high", "n", "ungraded")}
            numbers |= {f"{name}_{part}": value for part, value in parts.items() if value is not None}
    return numbers | {name: entry[name] for name in MEANS if entry.get(name) is not None}


def _gap(entry: Results, measures: Iterable[Results]) -> Results:
    """Results.json knows it for F1 and for the run's own grading."""
    closed = entry.get("gap_closed", {})
    own = next(iter(entry.get("gradings", {})), None)
    found = {m["key"]: closed.get("judge" if m["key"] == own else m["key"]) for m in measures}
    return {
        key: {**share, "value": share["share"]} for key, share in found.items() if share and share["share"] is not None
    }


def _of_category(entry: Results, category: str) -> Results:
    """One category's figures, with those under each grading, which results.json keeps by grading."""
    gradings = {
        name: found.get("by_category", {}).get(category, {}) for name, found in entry.get("gradings", {}).items()
    }
    return {**entry["by_category"][category], "gradings": gradings}


def shown_budget(budget: int) -> str:
    """A budget in tokens, `all` where it has no bound, `-` for who is shown nothing."""
    return f"{budget:,}" if 0 < budget < UNBOUNDED else "all" if budget else "-"


STATUS = {
    "invalid": "INVALID: these figures are not to be used.",
    "stopped": "The run was stopped: figures are of the questions answered so far.",
    "unfinished": "The run has not ended: figures are of the questions answered so far.",
    "failed": "The run failed: figures are of the questions answered before.",
}


def _warnings(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before any number."""
    told = []
    if notice := results.get("notice"):
        told.append(notice)
    if results["ungraded_share"] > (limit := manifest["config"]["fail_on_error"]):
        told.append(f"{results['ungraded_share']:.1%} of the answers are ungraded, more than the {limit:.1%} allowed.")
    if broken := (results.get("ledger") or {}).get("broken"):
        told.append(test_set_usage.verdict(broken))
    if sentence := STATUS.get(results["status"]):
        told.append(sentence)
    if published := results.get("published"):
        told.append(
            f"Others' answers and verdicts, imported from {published['file']} ({published['licence']}); nobody "
            "certified their judge."
        )
        told += [str(merge["said"]) for merge in published["merges"] if merge["flagged"]]
    if family := results.get("judge_family"):
        told.append(f"The judge is of the reader's own family ({family}) and may favour its answers.")
    cut = sum(entry["all_questions"].get("truncated") or 0 for _, _, entry in _entries(results))
    if cut:
        told.append(f"{cut:,} replies were cut at {manifest['config']['max_answer_tokens']} tokens.")
    if unmetered := manifest.get("unmetered"):
        told.append(f"The encoder of {', '.join(unmetered)} is a provider's: its calls are in no figure here.")
    if str(manifest.get("git") or "").endswith("+"):
        told.append(f"The code differs from its commit ({manifest['git']}).")
    return [*told, *results.get("cautions", ())]


def _looks(results: Mapping[str, Any]) -> str:
    scored = (results.get("ledger") or {}).get("test_scored")
    return f"{scored['configuration']} times under this configuration, {scored['all']} in all" if scored else ""


def _made(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> list[list[str]]:
    config, identity = manifest["config"], manifest["identity"]
    packages = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items() if version)
    sources = {str(price["source"]) for price in manifest.get("prices", {}).values() if price}
    judged = _gradings(entry for _, _, entry in _entries(results))
    made = {
        "begun": manifest["created_at"],
        "status": results["status"],
        "data": f"{results.get('stand_in') or 'LOCOMO'}, sha256 {identity['data']}",
        "split": f"{config['split']}, seed {config['seed']}"
        + (f", a sample of {config['num_test']}" if config["num_test"] else ""),
        "categories": ", ".join(
            category_label(str(c), results["categories"]) for c in config["categories"] or results["categories"]
        ),
        "reader": results["reader"] or "nobody: recall only",
        "judge": results["judge"] or "nobody",
        "gradings": "; ".join(judged),
        "token counter": results["token_counter"],
        "test questions scored before": _looks(results),
        "prices": "; ".join(sorted(sources)),
        "left out": "; ".join(f"{name}: {reason}" for name, reason in results["left_out"].items()),
        "commit": manifest["git"] or "unknown",
        "Python": manifest["python"],
        "packages": packages,
        **{f"identity: {name}": value for name, value in identity.items() if name != "data"},
    }
    return [[name, str(value)] for name, value in made.items() if value]
