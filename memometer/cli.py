"""The `memometer` command: the table of its subcommands, exit codes and interrupts."""

from __future__ import annotations

import os  # few imports: Ctrl-C cannot be handled before they are done
import sys
from collections.abc import Sequence
from importlib import import_module

from memometer.errors import UserError

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Measure": {
        "eval": ("memometer.commands.evaluate", "compare memory systems on a benchmark (also: python evaluate.py)"),
        "compare": ("memometer.commands.compare", "compare systems pairwise, within one run or across runs"),
        "view": ("memometer.commands.view", "show runs in the browser, including runs in progress"),
        "rescore": ("memometer.commands.rescore", "grade a run again with another judge, prompt or label set"),
        "label": ("memometer.commands.label", "label answers by hand, to check the judge of a run"),
        "calibrate": ("memometer.commands.calibrate", "measure a judge's false-accept and false-reject rates"),
        "fit-abstention": ("memometer.commands.fit_abstention", "fit the abstention rule on a validation run"),
        "import-results": ("memometer.commands.import_results", "convert published result files to run folders"),
        "leaderboard": ("memometer.commands.leaderboard", "combine a run and imported results in one table"),
        "label-sets": ("memometer.commands.label_sets", "show known label errors and the score ceiling they imply"),
        "contamination": ("memometer.commands.contamination", "search files for held-out questions and answers"),
        "test-usage": ("memometer.commands.test_usage", "show how often the test split has been evaluated"),
        "data": ("memometer.commands.data", "find or download a benchmark's data and verify them"),
        "simulate": ("memometer.commands.simulate", "generate synthetic conversations with known evidence"),
    },
    "Improve": {
        "optimize": ("memometer.commands.optimize", "search for better prompts (also: python optimize.py)"),
        "train": ("memometer.commands.train", "train the reader's weights (also: python train.py)"),
        "doctor": ("memometer.commands.doctor", "check that this machine can train"),
    },
    "Remember": {
        "add": ("memometer.commands.memory:add", "store text"),
        "recall": ("memometer.commands.memory:recall", "show the turns that best match a question"),
        "ask": ("memometer.commands.memory:ask", "answer a question with a language model, from recalled turns"),
        "list": ("memometer.commands.memory:list_turns", "list the latest turns, or the memories"),
        "forget": ("memometer.commands.memory:forget", "archive or delete turns"),
        "export": ("memometer.commands.memory:export", "write a memory to a cartridge file"),
        "import": ("memometer.commands.memory:import_", "create a memory from a cartridge file"),
        "serve": ("memometer.commands.serve", "serve memories over REST and MCP"),
        "token": ("memometer.commands.token", "create, list or revoke access tokens of tenants"),
        "mcp": ("memometer.commands.mcp", "serve memories over MCP on standard input and output"),
        "store": ("memometer.commands.store", "migrate, consolidate, compact or check a store"),
        "cartridge": ("memometer.commands.cartridge", "inspect, verify, compare or merge cartridge files"),
    },
}
"""Group -> command -> (module, help text). The module has `main(argv) -> int`; `module:function` names another one."""

EXTRAS = {
    **dict.fromkeys(("fastapi", "prometheus_client", "uvicorn"), "service"),
    **dict.fromkeys(
        ("alembic", "dspy", "litellm", "mlflow", "scipy", "sqlalchemy", "xllamacpp", "yaml", "pydantic"), "eval"
    ),
    "mcp": "mcp",
}
"""Optional package -> the extra that installs it."""

ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # LiteLLM would download its price table on import
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Defaults of environment variables that other libraries read."""

INTERRUPTED = 130
STOPPED = 4


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
        The exit code of the subcommand, 2 for an unknown one, 4 if standard output was closed, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    prog = prog or " ".join(["memometer", *words[:1]])
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS:
            raise
        print(f"{prog}: {name} is not installed; run: pip install 'memometer[{EXTRAS[name]}]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` closed standard output; Python would fail again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED
    except KeyboardInterrupt:
        print(f"{prog}: interrupted.", file=sys.stderr)
        return INTERRUPTED


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

    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
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
        sys.exit(main([command, *words], prog=os.path.basename(sys.argv[0])))
    sys.argv = [f"memometer {words[0]}", *words[1:]] if words else ["memometer"]  # argparse takes its `prog` from here
    sys.exit(main(words))


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
