"""The report page in a real browser, opened from disk: what it shows, its filters, its keys, its links."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memometer.report.results import Run
from memometer.report.runs_in_progress import follow
from memometer.report.write import write
from memometer.run.folder import read_manifest, read_records
from tests.chromium import Page, browser, program
from tests.invented_run import calibration, invent, simulated
from tests.test_viewer import serving

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium here: apt-get install -y chromium")

NASTY = '</script><img src=x onerror="document.title=1"> & "quotes" ]]>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs over the same 60 questions, the second of a worse day, and a page of both."""
    place = tmp_path_factory.mktemp("page")
    data = simulated(place / "data.json", conversations=2)
    runs = []
    for name, seed in (("one", 1), ("two", 2)):
        path = invent(place / name, data, systems=("adaptive", "bm25", "none", "oracle"), budgets=(512, 1024),
                      questions=60, seed=1)  # fmt: skip
        records = read_records(path)
        if seed == 2:
            for record in records[::3]:
                record["answer"] = NASTY
                for verdict in record["verdicts"]:
                    verdict["label"], verdict["raw"] = "wrong", NASTY
        results = json.loads((path / "results.json").read_text())
        runs.append(Run(name, read_manifest(path), records, results, data))
    write(runs, place)
    return place


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as page:
        yield page


def records(folder: Path, name: str = "one") -> list[dict[str, Any]]:
    return read_records(folder / name)


def shown(page: Page) -> tuple[int, int]:
    """(questions that the filters leave, questions that there are)."""
    left, total = page.run("document.getElementById('count').textContent").replace(",", "").split(" of ")
    return int(left), int(total)


def set_field(page: Page, name: str, value: str) -> None:
    page.run(
        f"(() => {{ const field = document.getElementById({name!r}); field.value = {value!r};"
        "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def tick(page: Page, value: str) -> None:
    page.run(f"document.querySelector('.chip input[value=\"{value}\"]').click()")


@pytest.fixture
def opened(page: Page, folder: Path) -> Iterator[Page]:
    """The list of questions, which has to stay silent whatever a test does."""
    page.errors.clear()
    page.requests.clear()
    page.open(f"file://{folder}/report.html#questions")
    yield page
    assert not page.errors
    assert [url for url in page.requests if not url.startswith(("file:", "about:", "data:"))] == []


def test_the_report_says_what_the_results_say(opened: Page, folder: Path) -> None:
    opened.run("document.getElementById('tab-report').click()")
    text = opened.run("document.getElementById('report').innerText")
    results = json.loads((folder / "one" / "results.json").read_text())
    figures = results["systems"]["adaptive"]["budgets"]["1024"]
    row = opened.run(
        "[...document.querySelectorAll('#report tbody tr')].find((row) => row.innerText.includes('one') &&"
        "row.innerText.includes('adaptive') && row.innerText.includes('1,024')).innerText"
    )
    low, high = figures["f1_interval"]
    assert f"{100 * figures['f1']:.1f}" in row
    assert f"{100 * low:.1f}–{100 * high:.1f}" in row
    for words in ("no metric here is a LOCOMO score", "Judge calibration", "passed", "Paired differences",
                  "Cost", "How the run was made", read_manifest(folder / "one")["identity"]["data"]):  # fmt: skip
        assert words in text
    assert opened.run("document.querySelectorAll('#report svg.plot circle.point').length") == 7
    opened.run("[...document.querySelectorAll('.switch button')].find((b) => b.innerText === 'F1').click()")
    assert "F1 by category" in opened.run("document.getElementById('report').innerText")
    assert "Differences between runs" in text
    assert opened.run("document.title !== '1'"), "what a model wrote is text"


def test_a_judge_without_a_certificate_has_no_column(page: Page, tmp_path: Path) -> None:
    data = simulated(tmp_path / "data.json", conversations=1)
    for name, calibrations, reason in (("none", [], "was not calibrated"),
                                       ("failed", [calibration(passed=False)], "it accepts 40 %")):  # fmt: skip
        path = invent(tmp_path / name, data, questions=20, calibrations=calibrations)
        (followed,) = follow([path])
        write([followed.run()], path)
        page.open(f"file://{path}/report.html")
        text = page.run("document.getElementById('report').innerText")
        assert "is withheld" in text
        assert reason in text
        assert page.run("[...document.querySelectorAll('thead th')].every((th) => !th.innerText.startsWith('J'))")


def test_filters(opened: Page, folder: Path) -> None:
    everything = records(folder)
    mine = [r for r in everything if (r["system"], r["budget_tokens"]) == ("adaptive", 512)]
    assert shown(opened) == (len(mine), len(mine)) == (60, 60)
    labels = [verdict["label"] for record in mine for verdict in record["verdicts"]]
    tick(opened, "wrong")
    judged_wrong = labels.count("wrong")
    assert shown(opened)[0] == judged_wrong > 0
    tick(opened, "wrong")
    tick(opened, "4")
    assert 0 < shown(opened)[0] < 60
    opened.run("document.querySelector('button[type=reset]').click()")
    opened.wait("document.getElementById('count').textContent.startsWith('60')")
    set_field(opened, "a", "0/bm25/1024")
    bm25 = [r for r in everything if (r["system"], r["budget_tokens"]) == ("bm25", 1024)]
    missed = [r for r in bm25 if r["error"]]
    set_field(opened, "error", "LMServerError")
    assert shown(opened) == (len(missed), 60)
    set_field(opened, "error", "")
    set_field(opened, "a", "")
    assert shown(opened) == (2 * len(everything), 2 * len(everything))
    set_field(opened, "evidence", "all")
    assert 0 < shown(opened)[0] < 2 * len(everything)


def test_search_finds_words_anywhere(opened: Page, folder: Path) -> None:
    ids = {record["question_id"] for record in records(folder)}
    chosen = sorted(ids)[17]
    set_field(opened, "search", chosen)
    opened.wait("document.querySelector('.row .id')")
    assert opened.run(f"[...document.querySelectorAll('.row .id')].some((row) => row.innerText === {chosen!r})")
    set_field(opened, "search", "no such words anywhere")
    assert shown(opened)[0] == 0
    assert "No question matches" in opened.run("document.getElementById('list').innerText")


def test_two_runs_side_by_side_and_what_flipped(opened: Page, folder: Path) -> None:
    assert opened.run("document.getElementById('flipped-label').hidden")
    set_field(opened, "a", "0/adaptive/512")
    set_field(opened, "b", "1/adaptive/512")
    opened.run("document.getElementById('flipped').click()")
    flipped = opened.run("[...document.querySelectorAll('.row .id')].map((row) => row.innerText)")
    mine = {r["question_id"]: r for r in records(folder) if (r["system"], r["budget_tokens"]) == ("adaptive", 512)}
    worse = {r["question_id"] for r in records(folder, "two")[::3]
             if (r["system"], r["budget_tokens"]) == ("adaptive", 512)}  # fmt: skip
    expected = {
        id for id in worse
        if mine[id]["verdicts"] and not mine[id]["error"] and mine[id]["verdicts"][0]["label"] == "correct"
    } | {id for id in worse if not mine[id]["verdicts"] and not mine[id]["error"]}  # fmt: skip
    assert shown(opened)[0] == len(expected) > 0
    assert set(flipped) <= expected
    opened.run("document.querySelector('.row').click()")
    assert opened.run("document.querySelectorAll('.answer').length") == 2
    assert NASTY in opened.run("document.getElementById('detail').textContent")


def test_a_link_opens_its_question_with_its_evidence(opened: Page, folder: Path) -> None:
    record = next(r for r in records(folder) if r["system"] == "adaptive" and r["verdicts"] and r["recall"]["turn_ids"])
    for hashed in (record["question_id"], record["question_id"].replace("#", "%23")):
        opened.open(f"file://{folder}/report.html#{hashed}")
        detail = opened.run("document.getElementById('detail').innerText")
        assert record["question_id"] in detail
        assert record["verdicts"][0]["raw"] in detail
        classes = opened.run("[...document.querySelectorAll('.evidence .turn')].map((turn) => turn.className)")
        data = simulated(folder / "again.json", conversations=2)
        evidence = next(q.evidence for q in data.questions if q.id == record["question_id"])
        expected = ["turn hit" if id in record["recall"]["turn_ids"] else "turn miss" for id in evidence]
        assert sorted(classes) == sorted(expected)
        count = opened.run("document.querySelector('.transcript summary').innerText")
        assert count == f"Recalled: {len(record['recall']['turn_ids'])} turns"
        assert opened.run("location.hash") == "#" + record["question_id"].replace("#", "%23")


def test_keys(opened: Page) -> None:
    selected = "document.querySelector('.row[aria-selected=true] .id')?.innerText"
    ids = opened.run("[...document.querySelectorAll('.row .id')].map((row) => row.innerText)")
    opened.press("j", "j", "ArrowDown", "k")
    assert opened.run(selected) == ids[1]
    assert opened.run("document.getElementById('detail').hidden")
    opened.press("Enter")
    assert not opened.run("document.getElementById('detail').hidden")
    opened.press("j")
    assert ids[2] in opened.run("document.getElementById('detail').innerText"), "the question opened moves along"
    opened.press("Escape")
    assert opened.run("document.getElementById('detail').hidden")
    opened.press("/")
    assert opened.run("document.activeElement.id") == "search"
    opened.press("j")
    assert opened.run("document.getElementById('search').value") == "j", "letters are typed into the search"
    opened.press("Escape", "?")
    assert opened.run("document.getElementById('help').open")
    opened.press("Escape")
    assert not opened.run("document.getElementById('help').open")


def test_a_run_that_goes_on_is_shown_as_it_grows(page: Page, folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "one", tmp_path / "growing")
    lines = (run / "records.jsonl").read_bytes().splitlines(keepends=True)
    mine = [line for line in lines if b'"system":"adaptive","budget_tokens":512' in line]
    (run / "records.jsonl").write_bytes(b"".join(mine[:10]))
    (run / "results.json").unlink()
    page.errors.clear()
    with serving(run) as url:
        page.open(f"{url}#questions")
        assert shown(page) == (10, 10)
        tick(page, "4")
        left = shown(page)[0]
        assert left < 10
        page.press("j", "Enter")
        asked = page.run("location.hash")
        with (run / "records.jsonl").open("ab") as file:
            file.write(b"".join(mine[10:40]))
        page.wait("document.getElementById('count').textContent.endsWith('of 40')")
        assert left < shown(page)[0] < 40, "the filter stays"
        assert page.run("location.hash") == asked, "and so does the question that is open"
        assert "live · 40 answers" in page.run("document.getElementById('live').innerText")
        page.run("document.getElementById('tab-report').click()")
        assert "unfinished" in page.run("document.querySelector('h1').innerText")
    assert not page.errors


def test_everything_has_a_name_for_those_who_cannot_see_it(opened: Page) -> None:
    opened.press("Enter")
    unnamed = opened.run(
        "[...document.querySelectorAll('input, select, button, [role=img], [role=listbox], [role=region]')].filter("
        "(e) => !(e.getAttribute('aria-label') || e.labels?.length || e.innerText.trim() || e.textContent.trim()))"
        ".map((e) => e.outerHTML)"
    )
    assert unnamed == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_against_its_ground(opened: Page, folder: Path, dark: bool) -> None:
    opened.open(f"file://{folder}/report.html", dark=dark)
    ratios = opened.run(
        """(() => {
        const light = (colour) => colour.map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const probe = document.createElement('i'); document.body.append(probe);
        const rgb = (name) => { probe.style.color = `var(--${name})`;
            return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number); };
        const pairs = [['ink', 'paper'], ['muted', 'paper'], ['muted', 'raised'], ['accent', 'paper'],
            ['good', 'good-soft'], ['bad', 'bad-soft'], ['warn', 'warn-soft'], ['ink', 'chosen']];
        return pairs.map(([a, b]) => [light(rgb(a)) + 0.05, light(rgb(b)) + 0.05])
            .map(([a, b]) => Math.max(a, b) / Math.min(a, b)); })()"""
    )
    assert min(ratios) >= 4.5, ratios


def test_a_full_run_of_six_systems_is_small_and_draws_few_rows(page: Page, tmp_path: Path) -> None:
    data = simulated(tmp_path / "data.json", conversations=2)
    path = invent(tmp_path / "run", data, systems=("adaptive", "bm25", "session", "recent", "none", "oracle"),
                  budgets=(20_000,), questions=300)  # fmt: skip
    results = json.loads((path / "results.json").read_text())
    write([Run("full", read_manifest(path), read_records(path), results, data)], tmp_path)
    size = (tmp_path / "report.html").stat().st_size
    assert size * 1986 / 300 < 15e6, "without its conversations, which grow slower than its answers"
    page.open(f"file://{tmp_path}/report.html#questions")
    set_field(page, "a", "")
    assert shown(page) == (1800, 1800)
    assert page.run("document.querySelectorAll('.row').length") < 60
