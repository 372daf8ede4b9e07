"""The subcommands of `memometer`, one file each.

A command module has `parser() -> argparse.ArgumentParser` and `main(argv) -> int`; `memometer/cli.py` lists it. The
parser sets no `prog`. `main` raises `memometer.errors.UserError` for errors that the user can correct. It catches
KeyboardInterrupt only if it can save its work: `memometer/entry_point.py` handles it, and closed output.
Imports inside `main` keep `--help` fast.

Exit codes: 0 done, 1 failed or nothing found, 2 usage, 3 invalid result, 4 stopped (can be resumed), 130 interrupted.
"""
