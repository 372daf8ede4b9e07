"""Search for better prompts: python optimize.py --num-examples 30 --max-demos 3"""

from memometer.cli import script

if __name__ == "__main__":
    script("optimize")
