"""`python -m memometer`: the same as the command `memometer`."""

from memometer.cli import script

script()
