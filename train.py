"""Train the reader's weights: python train.py --mode train --num-train 600 --num-val 100"""

from memometer.cli import script

if __name__ == "__main__":
    script("train")
