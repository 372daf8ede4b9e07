"""The `memometer` command: the table of its subcommands, exit codes and interrupts."""

from __future__ import annotations

import os  # few imports: Ctrl-C cannot be handled before they are done
import sys

from memometer import entry_point

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Measure": {
        "eval": ("memometer.commands.evaluate", "compare memory systems on a benchmark (also: evaluate.py)"),
        "check": ("memometer.commands.check", "check a model server before a run: window, usage, speed"),
        "compare": ("memometer.commands.compare", "compare systems pairwise, within one run or across runs"),
        "view": ("memometer.commands.view", "show runs in the browser, including runs in progress"),
        "verify": ("memometer.commands.verify", "check that a run was not changed by hand"),
        "rescore": ("memometer.commands.rescore", "grade a run again with another judge, prompt or label set"),
        "label": ("memometer.commands.label", "label answers by hand, to check the judge of a run"),
        "calibrate": ("memometer.commands.calibrate", "measure a judge's false-accept and false-reject rates"),
        "fit-abstention": ("memometer.commands.fit_abstention", "fit the abstention rule on a validation run"),
        "import-results": ("memometer.commands.import_results", "convert published result files to run folders"),
        "leaderboard": ("memometer.commands.leaderboard", "combine a run and imported results in one table"),
        "claims": ("memometer.commands.claims", "check written claims: supported, not supported or underpowered"),
        "methods": ("memometer.commands.methods", "print a methods paragraph of a run for a paper"),
        "label-sets": ("memometer.commands.label_sets", "show known label errors and the score ceiling they imply"),
        "contamination": ("memometer.commands.contamination", "search files for held-out questions and answers"),
        "test-usage": ("memometer.commands.test_usage", "show how often the test split has been evaluated"),
        "data": ("memometer.commands.data", "find or download a benchmark's data and verify them"),
        "new-system": ("memometer.commands.new_system", "write a memory system of your own with its contract test"),
        "simulate": ("memometer.commands.simulate", "generate synthetic conversations with known evidence"),
    },
    "Improve": {
        "optimize": ("memometer.commands.optimize", "search for better prompts (also: optimize.py)"),
        "train": ("memometer.commands.train", "train the reader's weights (also: train.py)"),
        "export-model": ("memometer.commands.export_model", "write a trained adapter as GGUF, merged or for Ollama"),
        "doctor": ("memometer.commands.doctor", "check that this machine can train"),
    },
    "Remember": {
        "add": ("memometer.commands.memory:add", "store text"),
        "recall": ("memometer.commands.memory:recall", "show the turns that best match a question"),
        "ask": ("memometer.commands.memory:ask", "answer a question with a language model, from recalled turns"),
        "list": ("memometer.commands.memory:list_turns", "list the latest turns, or the memories"),
        "forget": ("memometer.commands.memory:forget", "archive or delete turns"),
        "restore": ("memometer.commands.memory:restore", "restore archived turns"),
        "codebook": ("memometer.commands.codebook", "show the vector codebook of a memory"),
        "export": ("memometer.commands.memory:export", "write a memory to a cartridge file"),
        "import": ("memometer.commands.memory:import_", "create a memory from a cartridge file"),
        "serve": ("memometer.commands.serve", "serve memories over REST and MCP"),
        "token": ("memometer.commands.token", "create, list or revoke access tokens of tenants"),
        "mcp": ("memometer.commands.mcp", "serve memories over MCP on standard input and output"),
        "store": ("memometer.commands.store", "migrate, back up, restore, check or salvage a store"),
        "cartridge": ("memometer.commands.cartridge", "inspect, verify, compare or merge cartridge files"),
    },
}
"""Group -> command -> (module, help text). The module has `main(argv) -> int`; `module:function` names another one."""


def usage() -> str:
    """Return the text of `memometer --help`."""
    lines = ["usage: memometer COMMAND [OPTIONS]", "       memometer --version", ""]
    for group, commands in COMMANDS.items():
        lines += [f"{group}:", *(f"  {name:<16}{help}" for name, (_, help) in commands.items()), ""]
    return "\n".join([*lines, "`memometer COMMAND --help` describes a command."])


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: the command line after `memometer`; None reads it from the process.
        prog: the program name in error messages; None for `memometer COMMAND`.

    Returns:
        The exit code of the subcommand, 2 for an unknown one, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return entry_point.run(lambda: _run(words), prog=prog or _prog(words))


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"memometer {_version()}")
        return 0
    name, *rest = words
    modules = {name: module for commands in COMMANDS.values() for name, (module, _) in commands.items()}
    if name not in modules:
        print(_unknown(name, list(modules)), file=sys.stderr)
        return 2
    import logging
    from importlib import import_module

    logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)  # replies end at max_tokens on purpose
    module, _, function = modules[name].partition(":")
    code: int = getattr(import_module(module), function or "main")(rest)
    return code


def script(command: str = "") -> None:
    """Run the process's command line and exit.

    Args:
        command: the subcommand that a script stands for, as evaluate.py does for `eval`; empty if the command line
            names it.
    """
    words = sys.argv[1:]
    if command:
        prog = os.path.basename(sys.argv[0])
        entry_point.start(lambda: _run([command, *words]), prog=prog)
    sys.argv = [_prog(words), *words[1:]]  # argparse takes its `prog` from here
    entry_point.start(lambda: _run(words), prog=_prog(words))


def _prog(words: Sequence[str]) -> str:
    return " ".join(["memometer", *words[:1]])


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("memometer")
    except PackageNotFoundError:
        return "(not installed)"


def _unknown(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    near = " or ".join(get_close_matches(name, known))
    advice = f"Did you mean {near}?" if near else "`memometer --help` lists the commands."
    return f"memometer: unknown command {name!r}. {advice}"


if __name__ == "__main__":
    script()
