"""`memometer check`: make a first call to a model and show what a run must know about its server.

    memometer check --model openai/NAME --api-base http://127.0.0.1:8000/v1
    memometer check --model openai/gpt-4o-mini

The call costs about 200 tokens. Evaluations and searches make it themselves before they begin.

Exit codes: 0 the model answered, 1 it did not, 2 usage.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from memometer.commands.argument_types import count, positive, seconds
from memometer.commands.help_formatter import HelpFormatter
from memometer.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The options of the command, which have the names of those of `memometer eval`."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    options.add_argument("--model", required=True, metavar="NAME", help="a DSPy model string")
    options.add_argument("--api-base", metavar="URL,…", help="an OpenAI-compatible server; several share the calls")
    options.add_argument("--tokenizer", metavar="NAME", help="o200k_base, cl100k_base, a tokenizer.json, or ORG/NAME")
    options.add_argument("--context-window", type=positive, metavar="N", help="tokens, if the window is unknown")
    options.add_argument(
        "--max-answer-tokens", type=positive, metavar="N", help="default 64, more if the model writes thoughts first"
    )
    options.add_argument("--retries", type=count, default=0, metavar="N", help="retries after a failure (default 0)")
    options.add_argument(
        "--timeout-seconds", type=seconds, default=120.0, metavar="S", help="read timeout of the call (default 120)"
    )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Check a model and print a table.

    Returns:
        0 if the model answered, 1 if it did not.

    Raises:
        UserError: the model or an option is not valid.
    """
    args = parser().parse_args(argv)
    from memometer.harness.model_check import check_reader, room_for_thoughts
    from memometer.models import resolve_models
    from memometer.models.downloads import WeightsUnavailable
    from memometer.run.progress import eprint

    try:
        model = resolve_models.load(
            args.model,
            api_base=args.api_base,
            tokenizer=args.tokenizer,
            context_tokens=args.context_window,
            max_tokens=args.max_answer_tokens or resolve_models.MAX_ANSWER_TOKENS,
            timeout_seconds=args.timeout_seconds,
            retries=args.retries,
            log=eprint,
        )
    except (ValueError, WeightsUnavailable) as error:
        raise UserError(str(error)) from error
    found = check_reader(model, room=0 if args.max_answer_tokens else room_for_thoughts(model.context_tokens))
    for name, text in found.rows():
        print(f"{name:<10} {text}")
    return 1 if found.failure else 0
