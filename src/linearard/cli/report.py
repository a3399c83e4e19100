"""`linearard report RUN ...`: evaluations as one page, any number of them side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EPILOG = """\
examples:
  linearard report runs/a runs/b runs/c --output compared.html
  linearard report runs/sweep/*/seed-0 --output arms.html
  linearard report results/a/evaluation.json --output a.html     one: its own report, drawn again
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "report",
        help="compare runs on one HTML page",
        description="Draw evaluations that are on disk: one in full, or any number of runs side by side. "
        "Nothing is measured.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, or its evaluation.json"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("compared.html"), help="default: compared.html"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Read, draw, write."""
    from linearard.pipeline import report_runs, say

    say(f"report: {report_runs(args.runs, args.output, overwrite=args.overwrite)}")
