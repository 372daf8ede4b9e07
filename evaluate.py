"""Compare memory systems on a benchmark: python evaluate.py --num-test 20 --budget-tokens 512"""

from memometer.cli import script

if __name__ == "__main__":
    script("eval")
