"""A progress bar outlives who reads it."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = """
import sys, threading, time
from memometer.run import progress

with progress.bar(total=2) as bar:
    sys.stdin.read()  # until nobody reads standard error any more
    time.sleep(0.6)
    thread = threading.Thread(target=bar.update)
    thread.start()
    thread.join()
    bar.update()
print("done")
"""


def test_a_bar_that_nobody_reads_neither_hangs_nor_fails() -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stderr
    process.stderr.close()
    process.stderr = None
    out, _ = process.communicate("", timeout=60)
    assert (process.returncode, out) == (0, "done\n")
