"""The `memometer` command: one table of subcommands, each imported only when it is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # LiteLLM would fetch its price table at import

MEMORY = "memometer.serve.commands"
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Measure": {
        "eval": ("memometer.commands.evaluate", "compare memory systems on a benchmark (the script evaluate.py)"),
        "compare": ("memometer.report.compare", "paired comparison of systems, in one run or several"),
        "view": ("memometer.report.viewer", "look at runs in the browser, also while they go on"),
        "rescore": ("memometer.harness.rescore", "grade a run again with another judge, prompt or label set"),
        "calibrate": ("memometer.judging.calibrate", "measure a judge's false-accept and false-reject rates"),
        "fit-abstention": ("memometer.stats.abstention", "fit the rule for abstaining, on a validation run"),
        "import-results": ("memometer.harness.import_results", "make run folders of published result files"),
        "leaderboard": ("memometer.report.leaderboard", "one table of a run and imported results"),
        "label-sets": ("memometer.judging.label_sets", "known label errors and the score ceiling they imply"),
        "contamination": ("memometer.harness.contamination", "search files for held-out questions and answers"),
        "test-usage": ("memometer.run.test_set_usage", "how often the test split has been evaluated"),
        "data": ("locomo.dataset", "find or download LOCOMO and verify it"),
        "simulate": ("locomo.synthetic.simulate", "write synthetic conversations with known evidence"),
    },
    "Improve": {
        "optimize": ("memometer.commands.optimize", "search for better prompts (the script optimize.py)"),
        "train": ("memometer.commands.train", "train the reader's weights (the script train.py)"),
    },
    "Remember": {
        "add": (MEMORY, "remember a text"),
        "recall": (MEMORY, "show what fits a question"),
        "ask": (MEMORY, "let a language model answer from what fits"),
        "list": (MEMORY, "show the latest turns, or the memories"),
        "forget": (MEMORY, "archive or delete turns"),
        "export": (MEMORY, "write a memory to a cartridge file"),
        "import": (MEMORY, "make a memory from a cartridge file"),
        "serve": (MEMORY, "serve memories over REST and MCP"),
        "token": (MEMORY, "create or revoke a tenant's access token"),
        "mcp": ("memometer.serve.mcp_server", "serve memories over MCP on standard input and output"),
        "store": ("memometer.store.commands", "migrate, consolidate, compact or check a store"),
        "cartridge": ("memometer.cartridge.commands", "inspect, verify, compare or merge cartridge files"),
    },
}


def usage() -> str:
    """The text of `memometer --help`."""
    lines = ["usage: memometer COMMAND [OPTIONS]", ""]
    for title, commands in COMMANDS.items():
        lines += [f"{title}:", *(f"  {name:<16}{help}" for name, (_, help) in commands.items()), ""]
    return "\n".join([*lines, "`memometer COMMAND --help` describes one command."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Args:
        argv: the words after `memometer`; None takes them from the process.

    Returns:
        The subcommand's exit code; 2 for an unknown command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    name, *rest = words
    known = {name: module for commands in COMMANDS.values() for name, (module, _) in commands.items()}
    if name not in known:
        print(f"memometer: unknown command {name!r}; `memometer --help` lists the commands.", file=sys.stderr)
        return 2
    module = import_module(known[name])
    code: int = module.main(words if known[name] == MEMORY else rest)
    return code


def run(command: Callable[[], int]) -> int:
    """Run a command of this process; a reader that closes our output early, as `| head` does, is not an error.

    Args:
        command: called without arguments.

    Returns:
        Its exit code; 4 (stopped) when standard output was closed.
    """
    try:
        return command()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 4


def script() -> None:
    """The entry point of the installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    script()
