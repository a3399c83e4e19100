"""The command line: `linearard demo | train | evaluate | export`.

Every subcommand lives in its own file with `add_parser(subparsers)`; this one dispatches and turns user
errors into one message and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings

from linearard.cli import demo, evaluate, export, train
from linearard.errors import UserError

_DESCRIPTION = """\
Stretch a language model's context with RoPE scaling, and get its short-text ability back.

  linearard demo                              a real model on this CPU, start to report, in minutes
  linearard train recipes/smollm2-135m-64k.yaml
  linearard evaluate runs/smollm2-135m-64k
  linearard export runs/smollm2-135m-64k exported/
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="linearard",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (demo, train, evaluate, export):
        subparser = command.add_parser(subparsers)
        subparser.add_argument(
            "--debug", action="store_true", help="show tracebacks of user errors"
        )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (0, or 2 for anything the user can mend)."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not getattr(args, "takes_overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # Other libraries' deprecations are ours to handle, not the user's to read.
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        args.overrides = _overrides(rest)
        args.run(args)
    except UserError as error:
        if args.debug:
            raise
        print(f"linearard: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("linearard: interrupted; go on with --resume", file=sys.stderr)
        return 130
    return 0


def _overrides(rest: list[str]) -> dict[str, str]:
    """`--section.field value` and `--section.field=value` pairs that argparse left over."""
    from linearard.errors import RecipeError

    pairs: dict[str, str] = {}
    remaining = list(rest)
    while remaining:
        name, equals, value = remaining.pop(0).partition("=")
        if not name.startswith("--") or not (equals or remaining):
            raise RecipeError(
                expected="recipe fields as --section.field VALUE",
                got=repr(name + equals + value),
                fix="See `linearard train --help` for every field.",
            )
        pairs[name.removeprefix("--")] = value if equals else remaining.pop(0)
    return pairs


if __name__ == "__main__":
    sys.exit(main())
