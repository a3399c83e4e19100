"""`linearard push FOLDER --to OWNER/NAME`: an export and its model card on the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EPILOG = """\
examples:
  linearard push exported/ --to me/SmolLM2-135M-64k --dry-run      what would be uploaded, and the card
  linearard push exported/ --to me/SmolLM2-135M-64k --private

The token is that of `hf auth login`, or HF_TOKEN; it is never printed.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "push",
        help="upload an export to the Hugging Face hub",
        description="Upload an export with its model card. Only what was read back and compared when it was "
        "exported, and is unchanged since.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="of an export")
    parser.add_argument(
        "--to", required=True, metavar="OWNER/NAME", help="repository; made if need be"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--branch", help="of the repository (default: main)")
    parser.add_argument("--dry-run", action="store_true", help="upload nothing; show what would be")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Check, show, upload."""
    from linearard.export import plan_push, push_export
    from linearard.pipeline import say

    plan = plan_push(args.folder, args.to)
    for note in plan.notes:
        say(f"note: {note}")
    total = sum(plan.files.values())
    if args.dry_run:
        print(f"{len(plan.files)} files, {total:,} bytes, for {plan.repository}:")
        for name, size in plan.files.items():
            print(f"{size:>16,}  {name}")
        print(f"\n{plan.card}:\n")
        print((plan.folder / plan.card).read_text(encoding="utf-8").rstrip())
        return
    say(f"uploading {len(plan.files)} files, {total:,} bytes, to {plan.repository}")
    say(f"uploaded: {push_export(plan, private=args.private, branch=args.branch)}")
