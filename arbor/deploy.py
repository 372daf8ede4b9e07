"""Rent a machine at RunPod that runs an Arbor server for train.py: python arbor/deploy.py --gpu-type A100 --dry-run"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from memometer import entry_point


def main() -> int:
    """Run the script and return its exit code."""
    from memometer.commands import deploy

    return deploy.main(files=os.path.dirname(os.path.abspath(__file__)))


if __name__ == "__main__":
    entry_point.start(main, prog="deploy.py")
