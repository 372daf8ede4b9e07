"""Train the reader's weights: python train.py --mode train --num-train 600 --num-val 100"""

import sys

from memometer.cli import run
from memometer.commands.train import main

if __name__ == "__main__":
    sys.exit(run(main))
