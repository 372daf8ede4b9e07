"""The subcommands of `memometer`, one file each.

A command module has `parser() -> argparse.ArgumentParser` and `main(argv) -> int`; `memometer/cli.py` lists it. The
parser sets no `prog`. `main` raises `memometer.errors.UserError` for errors that the user can correct. It does not
catch BrokenPipeError, and catches KeyboardInterrupt only if it can save its work: `memometer/cli.py` handles both.
Imports inside `main` keep `--help` fast.

Exit codes: 0 done, 1 failed or nothing found, 2 usage, 3 invalid result, 4 stopped (can be resumed), 130 interrupted.
"""
