"""Make report.png and questions.png: screenshots of the report of a recall-only run over synthetic conversations.

    python docs/images/screenshots.py [--keep FOLDER]

Needs Chromium. Takes a minute.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chromium import browser

IMAGES = Path(__file__).resolve().parent
ROOT = IMAGES.parents[1]
SIMULATE = "-m memometer simulate --seed 1 --conversations 10 --out simulated.json"
EVALUATE = (
    "evaluate.py --data simulated.json --recall-only --split all --num-test 400 --no-mlflow --run-dir simulated "
    "--systems adaptive,bm25,recent --budgets 512,2048,8192"
)
MISSED = """(() => {
    const set = (name, value) => { const field = document.getElementById(name); field.value = value;
        field.dispatchEvent(new Event('input', {bubbles: true})); };
    const key = (system) => [...document.getElementById('a').options].find((o) => o.text === system).value;
    set('a', key('adaptive · 2,048')); set('b', key('bm25 · 2,048'));
    document.getElementById('flipped').click();
    document.querySelectorAll('.row')[1].click(); })()"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="make the run in this folder, or reuse the one in it"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = (args.keep or Path(scratch)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "simulated" / "report.html").exists():
            for command in (SIMULATE, EVALUATE):
                words = [str(ROOT / word) if word == "evaluate.py" else word for word in command.split()]
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                subprocess.run([sys.executable, *words], cwd=place, env=environment, check=True)
        address = f"file://{place}/simulated/report.html"
        with browser(Path(scratch) / "profile") as page:
            page.open(address, width=1280, height=1420)
            page.screenshot(IMAGES / "report.png")
            page.open(f"{address}#questions", width=1280, height=760)
            page.run(MISSED)
            page.screenshot(IMAGES / "questions.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
