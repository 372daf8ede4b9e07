"""The formatter of a command's --help: prose fits the terminal, and example commands stay on lines of their own."""

from __future__ import annotations

import argparse
import re
import textwrap


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps paragraphs. An indented line is an example: a command, and after two spaces or more a comment.

    A command that does not fit is continued behind a backslash, and a comment follows on its own line.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = re.split(r"\n[ \t]*\n", textwrap.dedent(text).strip("\n"))
        filled = [self._filled(paragraph.splitlines(), width - len(indent)) for paragraph in paragraphs]
        return textwrap.indent("\n\n".join(filled), indent)

    @staticmethod
    def _filled(lines: list[str], width: int) -> str:
        if not any(line.startswith((" ", "\t")) for line in lines):
            return textwrap.fill(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)
        found: list[str] = []
        for line in lines:
            example = re.fullmatch(r"(\s*)(\S.*?)(?:\s{2,}(\S.*))?", line)
            if len(line) <= width or not example:
                found.append(line)
                continue
            indent, command, comment = example.groups()
            more = indent + "    "
            words = textwrap.wrap(
                command,
                width - 2,
                initial_indent=indent,
                subsequent_indent=more,
                break_long_words=False,
                break_on_hyphens=False,
            )
            found.append(" \\\n".join(words))
            if comment:
                found.append(textwrap.indent(textwrap.fill(comment, width - len(more)), more))
        return "\n".join(found)
