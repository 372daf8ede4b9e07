"""Search for better prompts: python optimize.py --num-examples 30 --max-demos 3"""

import sys

from memometer.cli import run
from memometer.commands.optimize import main

if __name__ == "__main__":
    sys.exit(run(main))
