"""`memometer view`: show runs in the browser, including runs in progress, or export their reports."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from memometer.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    options.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    options.add_argument("--port", type=int, default=7575, help="port; 0 for any free one (default 7575)")
    options.add_argument("--no-browser", action="store_true", help="do not open a browser")
    options.add_argument("--export", type=Path, metavar="FOLDER", help="write report.html, .md and .tex there and exit")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the report page at http://127.0.0.1:PORT/ until Ctrl-C, or export the reports.

    Returns:
        0.

    Raises:
        UserError: A run cannot be read, the port is not available, or the reports cannot be written.
    """
    args = parser().parse_args(argv)
    from memometer.report import write
    from memometer.report.runs_in_progress import follow
    from memometer.report.viewer import server

    try:
        if args.export:
            runs = [followed.run() for followed in follow(args.runs)]
            written = write.write(runs, args.export)
            print(f"{runs[0].data.prefix}Written: {', '.join(map(str, written))}")
            return 0
        served = server(args.runs, args.port)
    except (OSError, OverflowError) as error:
        problem = f"cannot write to {args.export}" if args.export else f"cannot listen on port {args.port}"
        raise UserError(f"{problem} ({error}); choose another one.") from error
    url = f"http://127.0.0.1:{served.server_port}/"
    print(f"{', '.join(map(str, args.runs))} at {url} (Ctrl-C to stop)", flush=True)
    if not args.no_browser:
        import webbrowser

        webbrowser.open(url)
    try:
        served.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        served.server_close()
    return 0
