"""The command line: `linearard restore | plan | train | evaluate | report | export | push | sweep`.

Every subcommand lives in its own file with `add_parser(subparsers)`; this one dispatches and turns user
errors into one message and exit code 2.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import time
import warnings
from typing import Any

from linearard import interruption
from linearard.cli import evaluate, export, plan, push, report, restore, sweep, train
from linearard.errors import RecipeError, UserError
from linearard.processes import is_main_process, process_index

_DESCRIPTION = """\
Stretch a language model's context with RoPE scaling, and get its short-text ability back.

  linearard restore MODEL --window 131072     any model: stretched, restored, measured, exported
  linearard plan llama2-7b-32k                memory and time of a recipe, before it is run
  linearard train smollm2-135m-64k            a recipe, by its name or from your own YAML file
  linearard evaluate runs/smollm2-135m-64k    original, stretched and restored model side by side
  linearard report runs/a runs/b              any number of evaluations on one page
  linearard export runs/smollm2-135m-64k exported/   for transformers, vLLM, SGLang, llama.cpp
  linearard push exported/ --to me/my-model   to the Hugging Face hub, with its model card
  linearard sweep arms.yaml                   many variants of a recipe, with a table of results
"""
#: Parts of a recipe that can be replaced whole; all other overrides have a dot in their name.
_WHOLE = (
    "rope",
    "data",
    "adapter",
    "stages",
    "evaluation",
    "output_dir",
    "seed",
    "deterministic",
    "report_to",
    "target_window",
)
#: These have options of their own under such names.
_OWN_OPTIONS = {"restore": ("data", "adapter", "seed")}
#: How long a process that is not the first waits before it prints an error. A launcher ends it sooner
#: where the first process met the same error and printed it.
_PATIENCE_SECONDS = 15.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Version(argparse.Action):
    """Look the version up when it is asked for; reading the installed metadata takes time."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import linearard

        print(f"linearard {linearard.__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="linearard",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (restore, plan, train, evaluate, report, export, push, sweep):
        subparser = command.add_parser(subparsers)
        subparser.add_argument("--quiet", action="store_true", help="no progress bars")
        subparser.add_argument(
            "--debug", action="store_true", help="show tracebacks of user errors"
        )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 where runs of a sweep failed, 2 for anything the user can mend, 3 where a
        restored model is not better than before or not as good as asked, or 128 and the number of a
        signal that ended it.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # Other libraries' deprecations are ours to handle, not the user's to read.
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Where it is installed peft imports it, and on some CPUs it names a package that it would like.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Read when torch is imported, which is later. Threads that wait busily for cores which another
    # program uses make a step on the CPU many times slower; threads that sleep cost a few per cent.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with interruption.listening():
            rest, overrides = _split(argv)
            args = build_parser().parse_args(rest)
            args.overrides = overrides
            if args.quiet or not is_main_process() or not sys.stderr.isatty():
                _silence_libraries()
            return args.run(args) or 0
    except UserError as error:
        if "--debug" in argv:
            raise
        _complain(f"error: {error}")
        return 2
    except OSError as error:
        if error.errno not in _FULL or "--debug" in argv:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _complain(
            f"error: expected room on the disk, got {error.strerror}{where}. Free some, and start again."
        )
        return 2
    except KeyboardInterrupt as error:
        resumable = argv[:1] in (["restore"], ["train"], ["sweep"])
        _complain((str(error) or "interrupted") + ("; go on with --resume" if resumable else ""))
        return 128 + getattr(error, "number", signal.SIGINT)


def _split(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--section.field VALUE` and `--section.field=VALUE` out, wherever they stand."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    remaining = list(argv)
    own = _OWN_OPTIONS.get(argv[0] if argv else "", ())
    whole = [name for name in _WHOLE if name not in own]
    while remaining:
        word = remaining.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or ("." not in name and name not in whole):
            rest.append(word)
            continue
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise RecipeError(
                    expected=f"a value after --{name}",
                    got=f"{remaining[0]}" if remaining else "the end of the command line",
                    fix=f"Write --{name} VALUE; null is the value of a field left empty.",
                )
            value = remaining.pop(0)
        overrides[name] = value
    return rest, overrides


def _complain(message: str) -> None:
    _close_bars()
    if not is_main_process():
        time.sleep(_PATIENCE_SECONDS)
        message = f"(process {process_index()}) {message}"
    print(f"linearard: {message}", file=sys.stderr)


def _close_bars() -> None:
    """End the lines of progress bars that something has left open, so that a message has its own."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def _silence_libraries() -> None:
    """No bars of other libraries: they would fill a log, and each is of seconds."""
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # `datasets` is imported when needed
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # and those of huggingface_hub


if __name__ == "__main__":
    sys.exit(main())
