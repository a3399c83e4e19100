"""`linearard sweep FILE`: many arms over one model, and a table of what each gave."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

_EPILOG = """\
examples:
  linearard sweep arms.yaml
  linearard sweep arms.yaml --workers 3 --resume
  linearard sweep arms.yaml --model.name /models/SmolLM2-135M --evaluation.task_limit 100
  linearard sweep arms.yaml --table

docs/how-to/sweeps.md describes the file. Fields of the recipe given here hold for every arm that does not
set them itself; `linearard train --help` lists them. The exit code is 1 if a run failed.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "sweep",
        help="train and compare many variants of a recipe",
        description="Train and evaluate every arm of a sweep file with every seed, over one loaded model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="YAML file of the sweep")
    parser.add_argument("--output-dir", help="where to write (default: the file's output_dir)")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--resume", action="store_true", help="skip the runs that are finished")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="run everything anew; with --resume, only the arms that have changed",
    )
    parser.add_argument(
        "--table", action="store_true", help="write the results of what is there; run nothing"
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Check, train, evaluate, tabulate."""
    from linearard.pipeline import say
    from linearard.sweep import failures, load_sweep, run_sweep, table, write_results

    named = (
        {"output_dir": json.dumps(args.output_dir, ensure_ascii=False)} if args.output_dir else {}
    )
    sweep = load_sweep(args.file, args.overrides | named)
    for note in sweep.notes:
        say(note)
    if args.table:
        results = write_results(sweep)
    else:
        results = run_sweep(
            sweep,
            workers=args.workers,
            resume=args.resume,
            overwrite=args.overwrite,
            progress=not args.quiet,
            report=(lambda line: None) if args.quiet else say,
        )
    print(table(results, width=shutil.get_terminal_size((160, 24)).columns))
    for line in failures(results):
        say(line)
    say(f"results: {sweep.folder / 'sweep.html'}")
    return 1 if results.failures else 0
