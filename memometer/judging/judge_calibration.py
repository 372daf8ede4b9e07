"""A judge's certificate: how often it accepts wrong answers and rejects right ones, measured before it grades.

The answers come from `memometer.judging.calibration_set`, of training and validation conversations. A
certificate is kept in the user's
cache for one model, prompt and data, stands on every report with its date, and decides whether J is shown at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from memometer.judging.calibration_set import RIGHT, SEED, WRONG, Probe
from memometer.judging.judge import Judge, Label, Verdict
from memometer.models.downloads import models_folder
from memometer.models.errors import GIVE_UP_AFTER, LM_ERROR
from memometer.run.environment import digest
from memometer.stats.intervals import clustered_mean, wilson

Certificate = dict[str, Any]
"""What was measured, as JSON: judge, prompt, prompt_hash, date (UTC), per_set, false_accept and false_reject ({rate,
low, high, n}), sets ({name: the same with ungraded, clustered and kinds}), ungraded, stability, parser, usage (what
its calls took)."""

PER_SET = 25
REPEATS = 3
STEADY = 20
"""So many of the answers are graded REPEATS times."""

MAX_FALSE_ACCEPT = 0.15
"""At the upper end of the interval, for what a judge accepts in error raises every score: a certificate has to be
earned, and a few lucky answers prove nothing. The lenient prompt behind most published scores accepts 11 % of specific
wrong answers and 63 % of vague ones. A judge that accepts 15 % says 57 where half of the answers are right."""
MAX_FALSE_REJECT = 0.15
"""As measured: what is rejected in error lowers the scores, and nobody gains from luck."""
MAX_GOLD_REJECTED = 0.02
"""As measured, too: to show less than 2 % would take hundreds of answers. The gold is the easiest answer there is."""
MAX_UNGRADED = 0.02

MAX_AGE = timedelta(days=30)
"""Of a certificate of a model that is served under a name, which may mean other weights tomorrow. A file of weights is
identified by its bytes, and its certificate does not age."""


class Unmeasured(ValueError):
    """The judge cannot be measured; the message is one sentence for the user."""


# ---------------------------------------------------------------- measuring


def measure(
    judge: Judge,
    sets: Mapping[str, Sequence[Probe]],
    *,
    repeats: int = REPEATS,
    num_threads: int = 4,
    stop: threading.Event | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Certificate:
    """Grade every probe, and STEADY of them `repeats` times.

    Every call reaches the model: the judge has no cache. Raises Unmeasured where more than MAX_UNGRADED of the calls
    failed, which says nothing about the judge, or once `stop` is set; and what a judge raises for a rejected key.
    """
    stop, hopeless = stop or threading.Event(), threading.Event()
    probes = [probe for drawn in sets.values() for probe in drawn]
    again = random.Random(SEED).sample(probes, min(STEADY, len(probes)))
    asked = [*probes, *(probe for probe in again for _ in range(repeats - 1))]
    failures: list[str] = []  # of the calls done, what each failed with, or ""
    verdicts: list[Verdict] = []
    started = time.perf_counter()

    def grade(probe: Probe) -> Label | None:
        if stop.is_set() or hopeless.is_set():
            return None
        verdict = judge(probe.question.text, probe.question.gold or "", probe.answer)
        verdicts.append(verdict)
        failures.append(verdict.reason if verdict.reason.startswith(LM_ERROR) else "")
        if len(failures) >= GIVE_UP_AFTER and all(failures):
            hopeless.set()
        progress()
        return verdict.label

    with ThreadPoolExecutor(num_threads) as pool:
        pending = [pool.submit(grade, probe) for probe in asked]
        try:
            labels = [future.result() for future in pending]
        except BaseException:  # a rejected key, or Ctrl-C; re-raised
            hopeless.set()  # or the pool would go on to ask all the others before it ends
            raise
    failed = [failure for failure in failures if failure]
    if len(failed) > MAX_UNGRADED * len(asked) or (failed and all(failures)):
        raise Unmeasured(f"{len(failed)} of {len(failures)} calls to the judge failed, the last with {failed[-1]}")
    graded = [label for label in labels if label is not None]
    if len(graded) < len(asked):
        raise Unmeasured("the measurement was stopped")
    return {
        "judge": judge.lm.model,
        "prompt": judge.prompt,
        "prompt_hash": judge.prompt_hash,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **_errors(probes, graded[: len(probes)]),
        "stability": _stability(probes, again, graded, repeats),
        "parser": self_test(judge.parse),
        "usage": {
            "calls": len(verdicts),
            "unreported": sum(verdict.unreported for verdict in verdicts),
            "prompt_tokens": sum(verdict.prompt_tokens for verdict in verdicts),
            "completion_tokens": sum(verdict.completion_tokens for verdict in verdicts),
            "seconds": round(time.perf_counter() - started, 4),
        },
    }


def _errors(probes: Sequence[Probe], labels: Sequence[Label]) -> Certificate:
    by_set: dict[str, list[tuple[Probe, Label]]] = defaultdict(list)
    for probe, label in zip(probes, labels, strict=True):
        by_set[probe.set].append((probe, label))
    sets = {name: _set(graded) for name, graded in by_set.items()}
    return {
        "false_accept": macro([sets[name] for name in WRONG if name in sets]),
        "false_reject": macro([sets[name] for name in RIGHT if name in sets]),
        "ungraded": sum(label == "ungraded" for label in labels) / len(labels) if labels else 0.0,
        "sets": sets,
    }


def _set(graded: Sequence[tuple[Probe, Label]]) -> Certificate:
    """The rate of wrong labels of one set among its graded answers, 0 to 1."""
    wrong = {"correct": "wrong", "wrong": "correct"}
    errors = [(p, float(label != _truth(p))) for p, label in graded if label in wrong]
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for probe, error in errors:
        kinds[probe.kind][0] += int(error)
        kinds[probe.kind][1] += 1
    found = clustered_mean([error for _, error in errors], [p.question.conversation for p, _ in errors])
    low, high = wilson(found.mean, found.n) if found.mean is not None else (None, None)
    return {
        "rate": found.mean,
        "low": low,
        "high": high,
        "n": found.n,
        "ungraded": len(graded) - len(errors),
        "clustered": None if found.low is None else [found.low, found.high],
        "kinds": dict(kinds),
    }


def _truth(probe: Probe) -> Label:
    return "correct" if probe.right else "wrong"


def macro(sets: Sequence[Mapping[str, Any]]) -> Certificate:
    """The mean of the sets' rates, each set counting the same whatever its size, with a 95 % interval.

    The sets are drawn apart, so the interval is put together from Wilson's for each, which hold at 0 errors too (the
    method of variance estimates recovery: Zou and Donner, Statistics in Medicine 27, 2008).
    """
    found = [entry for entry in sets if entry["rate"] is not None]
    if not found:
        return {"rate": None, "low": None, "high": None, "n": 0}
    k = len(found)
    rate = sum(entry["rate"] for entry in found) / k
    down = math.sqrt(sum((entry["rate"] - entry["low"]) ** 2 for entry in found)) / k
    up = math.sqrt(sum((entry["high"] - entry["rate"]) ** 2 for entry in found)) / k
    n = sum(entry["n"] for entry in found)
    return {"rate": rate, "low": max(0.0, rate - down), "high": min(1.0, rate + up), "n": n}


def _stability(probes: Sequence[Probe], again: Sequence[Probe], labels: Sequence[Label], repeats: int) -> Certificate:
    """How many of the answers graded again got another label at any repeat; no label counts as another one."""
    first = {(probe.set, probe.key): label for probe, label in zip(probes, labels, strict=False)}
    later = labels[len(probes) :]
    flipped = sum(
        any(label != first[probe.set, probe.key] for label in later[i * (repeats - 1) : (i + 1) * (repeats - 1)])
        for i, probe in enumerate(again)
    )
    n = len(again) if repeats > 1 else 0
    low, high = wilson(flipped / n, n) if n else (None, None)
    return {
        "repeats": repeats,
        "n": n,
        "flipped": flipped,
        "rate": flipped / n if n else None,
        "low": low,
        "high": high,
    }


BAD_REPLIES = (
    "INCORRECT", "CORRECT", "The answer is correct.", "yes and no", "yes or no", "", " ", "No, wait. Yes", "n",
    '{"label": "CORRECT"}', '{"verdict": "yes"}', "yes, but the date differs", "True", "1", "0.9", "not yes",
    "The generated answer touches on the same topic, so yes", "Reason: no date. Verdict: yes", "yes\n\nno", "unsure",
)  # fmt: skip
"""What judges have really replied, or may: none of it is a label. Published harnesses read some of it as one."""


def self_test(parse: Callable[[str], Label]) -> Certificate:
    """Whether a parser takes what is no label for one, or misses one: {cases, failed}."""
    cases: dict[str, Label] = dict.fromkeys(BAD_REPLIES, "ungraded")
    cases |= {"yes": "correct", "No.": "wrong", " **Yes** ": "correct"}
    return {"cases": len(cases), "failed": [reply for reply, label in cases.items() if parse(reply) != label]}


# ---------------------------------------------------------------- deciding


def judged(certificate: Certificate, *, max_false_accept: float = MAX_FALSE_ACCEPT) -> Certificate:
    """The certificate with `passed` and, in sentences, the `reasons` why not."""
    accept, reject, gold = certificate["false_accept"], certificate["false_reject"], certificate["sets"]["gold"]
    reasons = []
    if failed := certificate["parser"]["failed"]:
        reasons.append(f"its parser misreads {', '.join(map(repr, failed))}")
    if certificate["ungraded"] > MAX_UNGRADED:
        reasons.append(f"{percent(certificate['ungraded'])} of its replies are no label (limit {MAX_UNGRADED:.0%})")
    if accept["rate"] is None or reject["rate"] is None:
        return {**certificate, "passed": False, "reasons": reasons or ["it graded nothing"]}
    if accept["high"] > max_false_accept:
        reasons.append(f"it accepts {spread(accept)} of wrong answers (limit {max_false_accept:.0%} at the upper end)")
    if gold["rate"] is None or gold["rate"] > MAX_GOLD_REJECTED:
        reasons.append(f"it rejects {spread(gold)} of the gold answers themselves (limit {MAX_GOLD_REJECTED:.0%})")
    if reject["rate"] > MAX_FALSE_REJECT:
        reasons.append(f"it rejects {spread(reject)} of right answers (limit {MAX_FALSE_REJECT:.0%})")
    return {**certificate, "passed": not reasons, "reasons": reasons}


def stamp(certificate: Certificate) -> Certificate:
    """What a report keeps of a judged certificate."""
    return {name: value for name, value in certificate.items() if name != "identity"}


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def spread(figure: Mapping[str, Any]) -> str:
    """`6.2 % [3.1, 12.0]`"""
    if figure["rate"] is None:
        return "-"
    return f"{percent(figure['rate'])} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def table(certificate: Certificate) -> str:
    """A judged certificate for people."""
    from tabulate import tabulate

    entries = [(name, certificate["sets"].get(name)) for name in (*RIGHT, *WRONG)]
    body = [
        [name, "rejects" if name in RIGHT else "accepts", spread(entry), str(entry["n"]), str(entry["ungraded"]),
         ", ".join(f"{kind} {wrong}/{n}" for kind, (wrong, n) in sorted(entry["kinds"].items()) if wrong)]
        for name, entry in entries
        if entry
    ]  # fmt: skip
    for label, name in (("all right answers", "false_reject"), ("all wrong answers", "false_accept")):
        figure = certificate[name]
        body.append(
            [label, "rejects" if name == "false_reject" else "accepts", spread(figure), str(figure["n"]), "", ""]
        )
    headers = ["answers", "", "wrongly, 95 %", "n", "ungraded", "which"]
    grid = tabulate(body, headers, tablefmt="simple", disable_numparse=True, colalign=["left"] * 2 + ["right"] * 3)
    return f"{sentence(certificate)}\n\n{grid}\n\n{_notes(certificate)}"


def sentence(certificate: Certificate) -> str:
    """What a certificate says, in one sentence."""
    who = f"{certificate['judge']} ({certificate['prompt']})"
    if certificate["passed"]:
        return (
            f"{who} is certified ({certificate['date'][:10]}): it accepts {spread(certificate['false_accept'])} of "
            f"wrong answers and rejects {spread(certificate['false_reject'])} of right ones."
        )
    return f"{who} failed its certificate ({certificate['date'][:10]}): {'; '.join(certificate['reasons'])}."


def _notes(certificate: Certificate) -> str:
    parser, stability = certificate["parser"], certificate["stability"]
    lines = [
        "The last two rows are means over their sets, each set counting the same.",
        f"Parser: {parser['cases'] - len(parser['failed'])} of {parser['cases']} known replies read rightly.",
    ]
    if stability["n"]:
        lines.append(f"Graded {stability['repeats']} times: {stability['flipped']} of {stability['n']} labels flipped.")
    if "specific_wrong" not in certificate["sets"]:
        lines.append(
            "The set of specific wrong answers is left out: --wrong-answers FILE or LOCOMO_WRONG_ANSWERS names it."
        )
    return "\n".join(lines)


# ---------------------------------------------------------------- keeping


def identify(judge: Judge, *, revision: str, address: str | None, data: str, wrong: Path | None) -> dict[str, str]:
    """What must be the same for a certificate to hold: {name: value}.

    Args:
        revision: of the weights, empty for a model that is served under a name.
        address: the API base, for a server may call anything by that name.
        data: sha256 of the data set.
        wrong: the file of specific wrong answers, or None.
    """
    return {
        "judge": judge.lm.model,
        "prompt": judge.prompt,
        "prompt_hash": judge.prompt_hash,
        "revision": revision,
        "address": address or "",
        "data": data,
        "wrong_answers": hashlib.sha256(wrong.read_bytes()).hexdigest() if wrong else "",
        "probes": hashlib.sha256(Path(__file__).with_name("calibration_set.py").read_bytes()).hexdigest()[:16],
    }


def _path(identity: Mapping[str, str]) -> Path:
    slug = re.sub(r"[^\w.-]+", "_", f"{identity['judge']}-{identity['prompt']}")[-80:]
    return models_folder() / "certificates" / f"{slug}-{digest({**identity, 'wrong_answers': ''})}.json"


def kept(identity: Mapping[str, str], *, per_set: int = 0, now: datetime | None = None) -> Certificate | None:
    """The certificate of that identity from the cache: drawn with `per_set` at least, and not too old; else None.

    One that was measured on specific wrong answers, too, will do for who has none."""
    try:
        found = json.loads(_path(identity).read_bytes())
        age = (now or datetime.now(UTC)) - datetime.fromisoformat(found["date"])
        same = (
            identity if identity["wrong_answers"] else {**identity, "wrong_answers": found["identity"]["wrong_answers"]}
        )
        if found["identity"] != same or found["per_set"] < per_set or (age > MAX_AGE and not identity["revision"]):
            return None
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError):  # none there, or a damaged one: measure again
        return None


def keep(certificate: Certificate, identity: Mapping[str, str], *, per_set: int) -> Certificate:
    """Put a certificate into the cache, in the place of an earlier one; returns it with its identity."""
    whole = {**certificate, "per_set": per_set, "identity": dict(identity)}
    path = _path(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(whole, indent=1) + "\n")
    part.replace(path)
    return whole
