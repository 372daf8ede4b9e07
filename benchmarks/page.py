"""Does the report page keep up with a full run? Ten simulated conversations, six systems at 20,000 tokens.

    python benchmarks/page.py [--keep FOLDER]

prints the size of report.html, what writing it took beside writing the records themselves, and, in a headless Chromium,
the median time to open it, to filter it by each letter of a search, and to draw the list after a jump. Answers are
invented. Exits 1 where the page is above 15 MB or a filter above 100 ms.
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
from memometer.report.follow import follow
from tests.chromium import Page, browser, program
from tests.invented_run import invent, simulated

SYSTEMS = ("adaptive", "bm25", "session", "recent", "none", "oracle")
MOST_MB, MOST_MS = 15.0, 100.0

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
    """Median milliseconds, with every system's answers in the list."""
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
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the run and its page there")
    args = parser.parse_args()
    if program() is None:
        print("no Chromium here: apt-get install -y chromium", file=sys.stderr)
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
    return int(megabytes > MOST_MB or found["slowest filter"] > MOST_MS)


if __name__ == "__main__":
    sys.exit(main())
