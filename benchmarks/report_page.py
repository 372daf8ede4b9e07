"""Measure the HTML report of a large run: ten simulated conversations, and six systems at 20,000 tokens.

    python benchmarks/report_page.py [--keep FOLDER]

The script writes the report of a run with generated answers. It prints the size of report.html, and the time to write
the reports as a multiple of the time to read the run. In a headless Chromium it measures the time to open the page, to
filter the questions after each typed letter, and to draw the list after a jump. It exits with code 1 if the page is
larger than 15 MB, or if a filter takes longer than 100 ms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from memometer.report import write
from memometer.report.runs_in_progress import follow
from tests.chromium import Page, browser, program
from tests.invented_run import invent, simulated

SYSTEMS = ("adaptive", "bm25", "session", "recent", "none", "oracle")
MAX_MB, MAX_FILTER_MS = 15.0, 100.0

TYPE = """(async () => {
    const field = document.getElementById('search'), list = document.getElementById('list'), took = [];
    for (let n = 0; n <= WORD.length; n++) {
        field.value = WORD.slice(0, n);
        const start = performance.now();
        field.dispatchEvent(new Event('input', {bubbles: true}));
        list.getBoundingClientRect();
        took.push(performance.now() - start);
    }
    return took;
})()"""
JUMP = """(async () => {
    const list = document.getElementById('list'), took = [];
    for (let n = 0; n < 20; n++) {
        const start = performance.now();
        list.scrollTop = list.scrollHeight * ((n * 7) % 20) / 20;
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        list.getBoundingClientRect();
        took.push(performance.now() - start);
    }
    return took;
})()"""


def timings(page: Page, file: Path) -> dict[str, float]:
    """Measure the page with the answers of all systems in the list; return milliseconds."""
    started = time.perf_counter()
    page.open(f"file://{file}#questions")
    opened = 1000 * (time.perf_counter() - started)
    page.run("(() => { const a = document.getElementById('a'); a.value = '';"
             "a.dispatchEvent(new Event('input', {bubbles: true})); })()")  # fmt: skip
    typed = [ms for word in ("conversation", "when did") for ms in page.run(TYPE.replace("WORD", repr(word)))]
    return {"open": opened, "filter": statistics.median(typed), "slowest filter": max(typed),
            "draw after a jump (two frames)": statistics.median(page.run(JUMP))}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="folder to keep the run and its report in")
    args = parser.parse_args()
    if program() is None:
        print("Chromium is not installed; run apt-get install -y chromium.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        place = args.keep or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        data = simulated(place / "data.json", conversations=10)
        run = invent(place / "run", data, systems=SYSTEMS, budgets=(20_000,))
        (followed,) = follow([run])
        started = time.perf_counter()
        read = followed.run()
        reading = time.perf_counter() - started
        write.write([read], run)
        writing = time.perf_counter() - started - reading
        megabytes = (run / "report.html").stat().st_size / 1e6
        print(f"SIMULATED  {len(data.questions):,} questions x {len(SYSTEMS)} systems: {len(read.records):,} answers")
        print(f"report.html {megabytes:.2f} MB; records.jsonl {(run / 'records.jsonl').stat().st_size / 1e6:.1f} MB")
        print(f"reading the run {reading:.1f} s, writing the reports {writing / reading:.1f} times that")
        with browser(Path(scratch) / "profile") as page:
            found = timings(page, run / "report.html")
    for name, ms in found.items():
        print(f"{name:<32}{ms:>8.1f} ms")
    return int(megabytes > MAX_MB or found["slowest filter"] > MAX_FILTER_MS)


if __name__ == "__main__":
    sys.exit(main())
