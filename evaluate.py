"""Compare memory systems on a benchmark: python evaluate.py --num-test 20 --budget-tokens 1024"""

import sys

from memometer.cli import run
from memometer.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(run(main))
