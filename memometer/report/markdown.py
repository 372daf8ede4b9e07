"""A summary as Markdown, for people and pull requests, and its main table as LaTeX, for papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memometer.benchmarks.protocol import category_label
from memometer.report.summary import shown_budget
from memometer.run import cost

Results = dict[str, Any]


def markdown(name: str, summary: Results, results: Mapping[str, Any]) -> str:
    """report.md of one run; `name` is its folder's."""
    parts = [f"# {_md(name)}"]
    parts += [f"> {_md(text)}" for text in summary["warnings"]]
    parts += [
        _section("Answerable questions, with 95 % intervals clustered by conversation", main_table(summary)),
        "\n".join(f"- {_md(text)}" for text in summary["withheld"]),
    ]
    for measure in summary["measures"]:
        parts.append(_section(f"{measure['label']} by category", category_table(summary, measure)))
    if summary["by_key"]:
        parts.append(
            _section("J on questions whose gold is clean, and on those in error", key_table(summary["by_key"]))
        )
    if compared := _of_headline(summary):
        title = f"Paired differences in {summary['measures'][0]['label']}, a minus b on the same questions"
        parts.append(_section(title, comparison_table(compared)))
    for measure in summary["measures"]:
        if points := summary["frontier"].get(measure["key"]):
            title = f"{measure['label']} over total tokens a question (* no point scores as much with fewer)"
            parts.append(_section(title, frontier_table(points)))
        if systems := summary["areas"].get(measure["key"]):
            parts.append(_section(f"{measure['label']}: area under the budget curve", area_table(systems)))
    parts += [certificate_text(certificate) for certificate in summary["certificates"]]
    if "accounting" in results and results["accounting"]["total"]["calls"] is not None:
        body = [list(cost.HEADERS), *cost.rows(results["accounting"])]
        parts.append(_section("What it cost, all attempts counted (+ at least, ? not known)", body))
    parts.append(_section("How it was made", [["what", "value"], *summary["made"]]))
    parts.append("The same with every question: report.html. The first table for a paper: report.tex.")
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(name: str, summary: Results) -> str:
    r"""report.tex: the main table of one run, for `\input`; needs booktabs."""
    header, *body = main_table(summary, short=True)
    lines = [
        *(f"% {' '.join(text.split())}" for text in (name, *summary["warnings"], *summary["withheld"])),
        *(f"% {measure['short']}: {measure['under']}" for measure in summary["measures"] if measure["under"]),
        r"\begin{tabular}{ll" + "r" * (len(header) - 2) + "}",
        r"\toprule",
        " & ".join(_tex(cell) for cell in header) + r" \\",
        r"\midrule",
    ]
    lines += [" & ".join(_tex_cell(cell) for cell in row) + r" \\" for row in body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def main_table(summary: Results, *, short: bool = False) -> list[list[str]]:
    """Headers, then a row a system and budget. A paper's column has room for the `short` name of a measure."""
    shown = [measure for measure in summary["measures"] if any(measure["key"] in r["scores"] for r in summary["rows"])]
    read = any(row["calls"] for row in summary["rows"])
    paid = ["tokens a question", "calls", "seconds", "dollars"] if read else []
    headers = [
        "system",
        "budget",
        "n",
        "ungraded",
        *(m["short" if short else "label"] for m in shown),
        "context tokens",
        *paid,
    ]
    body = []
    for row in summary["rows"]:
        cells = [row["system"], row["shown_budget"], f"{row['questions']:,}", f"{row['ungraded']:,}"]
        cells += [rate(row["scores"].get(measure["key"])) for measure in shown]
        cells.append(number(row["context_tokens"]))
        if read:
            cells += [number(row["tokens"]) + ("+" if row["unreported"] else ""), number(row["calls"], 1)]
            cells += [number(row["seconds"], 2), row["stages"].get("answer", {}).get("dollars", "-")]
        body.append(cells)
    return [headers, *body]


def category_table(summary: Results, measure: Results) -> list[list[str]]:
    key = measure["key"]
    names = summary["categories"]
    present = [c for c in names if any(key in r["categories"].get(c, {}) for r in summary["rows"])]
    headers = ["system", "budget", *(category_label(c, names) for c in present)]
    return [
        headers,
        *(
            [r["system"], r["shown_budget"], *(rate(r["categories"].get(str(c), {}).get(key), n=True) for c in present)]
            for r in summary["rows"]
        ),
    ]


def key_table(by_key: Results) -> list[list[str]]:
    def shown(part: Results) -> list[str]:
        low, high = part["interval"] or (None, None)
        return [rate({"value": part["accuracy"], "low": low, "high": high}), f"{part['n']:,}"]

    body = [[name, *shown(found["clean"]), *shown(found["flagged"])] for name, found in by_key.items()]
    return [["system", "clean", "n", "flagged", "n"], *body]


def _of_headline(summary: Results) -> list[Results]:
    """The comparisons by the most telling measure; report.html has the others."""
    headline = summary["measures"][0]["key"]
    return [c for c in summary["comparisons"] if (c.get("grading") or c["measure"]) == headline]


def comparison_table(comparisons: Sequence[Results]) -> list[list[str]]:
    headers = ["a", "b", "difference", "p (Holm)", "p (sign flips)", "p (McNemar)", "won, lost, tied",
               "detectable", "n"]  # fmt: skip
    return [
        headers,
        *(
            [
                *(f"{c[side]['system']} {shown_budget(int(c[side]['budget']))}" for side in "ab"),
                rate({"value": c["difference"], "low": c["low"], "high": c["high"]}, signed=True),
                *(p_value(c.get(name)) for name in ("p_holm", "p_permutation", "p_mcnemar")),
                f"{c['wins']}, {c['losses']}, {c['ties']}",
                "-" if c.get("detectable") is None else f"{100 * c['detectable']:.1f}",
                f"{c['n']:,} in {c['clusters']}",
            ]
            for c in comparisons
        ),
    ]


def frontier_table(points: Sequence[Results]) -> list[list[str]]:
    return [
        ["", "system", "budget", "total tokens", "of these ingest", "score", "n"],
        *(
            [
                "*" if p["best"] else "",
                p["system"],
                shown_budget(p["budget"]),
                number(p["tokens"]) + ("+" if p["unreported"] else ""),
                number(p["ingest_tokens"]),
                rate({**p, "value": p["score"]}),
                f"{p['n']:,}",
            ]
            for p in sorted(points, key=lambda p: p["tokens"])
        ),
    ]


def area_table(systems: Results) -> list[list[str]]:
    return [
        ["system", "budgets", "area (mean score over log tokens)", "n"],
        *(
            [name, "{:,} to {:,}".format(*area["budgets"]), rate({**area, "value": area["area"]}), f"{area['n']:,}"]
            for name, area in systems.items()
        ),
    ]


def certificate_text(certificate: Results) -> str:
    """A certificate as a list."""
    verdict = "passed" if certificate["passed"] else "FAILED"
    lines = [
        f"## Judge's certificate: {_md(certificate['judge'])} ({certificate['prompt']}), {verdict}",
        "",
        f"- prompt hash {certificate['prompt_hash']}, {certificate['date']}",
        *(f"- {_md(reason)}" for reason in certificate.get("reasons", ())),
    ]
    for name in ("false_accept", "false_reject"):
        if found := certificate.get(name):
            shown = rate({**found, "value": found["rate"]})
            lines.append(f"- {name.replace('_', ' ')}: {shown} % (n = {found['n']:,})")
    sets = [
        [name, rate({**found, "value": found["rate"]}), f"{found['n']:,}", f"{found.get('ungraded', 0):,}"]
        for name, found in certificate.get("sets", {}).items()
    ]
    if sets:
        lines += ["", grid([["set", "wrong verdicts", "n", "ungraded"], *sets])]
    return "\n".join(lines)


def rate(found: Results | None, *, n: bool = False, signed: bool = False) -> str:
    """`63.2 [60.1, 66.3]`, of fractions as percent; `-` for none."""
    if not found or found.get("value") is None:
        return "-"
    sign = "+" if signed else ""
    shown = f"{100 * found['value']:{sign}.1f}"
    if found.get("low") is not None:
        shown += f" [{100 * found['low']:{sign}.1f}, {100 * found['high']:{sign}.1f}]"
    return shown + (f" n={found['n']:,}" if n else "")


def p_value(p: float | None) -> str:
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _section(title: str, rows: Sequence[Sequence[str]]) -> str:
    return f"## {_md(title)}\n\n{grid(rows)}"


def grid(rows: Sequence[Sequence[str]]) -> str:
    header, *body = [[_md(str(cell)) for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _md(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in ("\\", "`", "*", "_", "<", ">", "|", "#", "]("):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def _tex(text: str) -> str:
    return "".join(TEX.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _tex_cell(text: str) -> str:
    """An interval in small type behind its value."""
    value, bracket, interval = text.partition(" [")
    return _tex(value) + (rf" {{\scriptsize [{_tex(interval)}}}" if bracket else "")
