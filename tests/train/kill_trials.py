"""Kill every kind of work at random moments, do it again, and compare with work that nobody disturbed.

Each attempt is a process forked from this one, which has imported everything: most of a killed command's
time would be imports. Two processes are two forks that find each other as under torchrun.

By hand: python tests/train/kill_trials.py --kills 200 --out benchmarks/results/cpu/kills.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Read when torch is imported; threads that wait busily take the time of those that work.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import small_run
import tiny

_POLL_SECONDS, _NOTICED_SECONDS = 0.0005, 60
_WORSE = 3  # the exit code of `restore` where its verdict is bad
_EVALUATION = {
    "perplexity_windows": [48, 96],
    "perplexity_tokens": 400,
    "agreement_window": 48,
    "agreement_tokens": 400,
    "passkey_lengths": [],
}
_OWN_TEXT = {
    "books": {"window": 24, "sequences": 8},
    "own": {
        "window": 24,
        "sequences": 8,
        "objective": {"relations": {}, "logit_weight": 1},
        "data": {"train": "self"},
    },
}


@dataclass(frozen=True)
class Work:
    """A command, and what it leaves.

    Attributes:
        arguments: of the command line, for a folder.
        result: what must be the same, by name.
        prepare: makes what the command needs, in a folder, with a base model.
        processes: how many work together.
        one_of_them: whether one is killed, and the others have to end by themselves, within a minute.
    """

    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, Any]]
    prepare: Callable[[Path, Path], Any]
    processes: int = 1
    one_of_them: bool = False


@dataclass
class Trials:
    """What happened to one kind of work.

    Attributes:
        killed: attempts that were killed while they worked.
        late: attempts that had ended before.
        during: what was seen last before each kill.
        identical: whether the result was that of undisturbed work.
    """

    killed: int = 0
    late: int = 0
    during: list[str] = field(default_factory=list)
    identical: bool | None = None


def _recipe(place: Path, base: Path, **changes: Any) -> None:
    small_run.write_text(place / "train", documents=20, words=900)
    recipe = small_run.small_recipe(place, base, **changes)
    small_run.write_recipe(recipe, place / "recipe.yaml")


def _direct(place: Path, base: Path) -> None:
    _recipe(place, base, adapter={"kind": "direct"})


def _shares(place: Path, base: Path) -> None:
    _recipe(place, base, model__sharded=True)


def _own_text(place: Path, base: Path) -> None:
    stages = {"only": {"learning_rate": 1e-2, "save_steps": 2, "parts": _OWN_TEXT}}
    _recipe(place, base, stages=stages)


def _finished(place: Path, base: Path) -> None:
    _recipe(place, base)
    Attempt(lambda: _train(place), 1).finish()


def _sweep(place: Path, base: Path) -> None:
    recipe = small_run.small_recipe(place, base, evaluation=_EVALUATION)
    recipe["stages"].pop("cpt")
    arms = {"linear": {}, "yarn": {"rope": {"rope_type": "yarn", "factor": 4}}}
    values = {"base": recipe, "output_dir": str(place / "out"), "arms": arms, "seeds": [0, 1]}
    small_run.write_recipe(values | {"keep_checkpoints": True}, place / "sweep.yaml")


def _restorable(place: Path, base: Path) -> None:
    """Text alone: `restore` decides the rest."""
    small_run.write_text(place / "text", documents=8, words=2000)


def _restore(place: Path) -> list[str]:
    flags = ["--window", "256", "--data", str(place / "text"), "--tokens", "4k", "--quiet"]
    flags += ["--output", str(place / "run"), "--data.cache_dir", str(place / "cache"), "--resume"]
    return ["restore", str(place.parent / "base"), *flags]


def _train(place: Path) -> list[str]:
    return ["train", str(place / "recipe.yaml"), "--quiet", "--resume"]


def _evaluate(place: Path) -> list[str]:
    flags = ["--evaluation", json.dumps(_EVALUATION), "--output-dir", str(place / "out")]
    return ["evaluate", str(place / "run"), "--quiet", "--overwrite", *flags]


def _export(place: Path) -> list[str]:
    return ["export", str(place / "run"), str(place / "out"), "--quiet", "--overwrite"]


def _run_sweep(place: Path) -> list[str]:
    return ["sweep", str(place / "sweep.yaml"), "--quiet", "--resume"]


def _weights(place: Path) -> dict[str, Any]:
    found = small_run.final_bytes(place / "run")
    texts = {path.name: path.read_bytes() for path in place.glob("cache/self-*.jsonl")}
    return found | texts


def _views(place: Path) -> dict[str, Any]:
    return {"views": json.loads((place / "out" / "evaluation.json").read_text())["views"]}


def _exported(folder: Path) -> dict[str, Any]:
    """All files; the model card names the folder that it lies in, so it and its hash are left out."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    card = found.pop("README.md", None)
    listed = json.loads(found.pop("linearard_export.json"))
    listed["files"].pop("README.md", None)
    return found | {"listed": listed, "has a card": card is not None}


def _restored(place: Path) -> dict[str, Any]:
    """Decisions, weights, rows and export; the seconds of the verdict aside."""
    run = place / "run"
    verdict = json.loads((run / "verdict.json").read_text())
    del verdict["seconds"]
    decided = [path.read_bytes() for path in sorted(run.glob("stage*/held_out.json"))]
    evaluation = json.loads((run / "evaluation.json").read_text())
    return {
        **small_run.final_bytes(run),
        **{f"exported {name}": found for name, found in _exported(run / "exported").items()},
        "decided": decided,
        "verdict": verdict,
        "views": evaluation["views"],
    }


def _swept(place: Path) -> dict[str, Any]:
    out = place / "out"
    runs = [path.parent for path in sorted(out.glob("*/*/evaluation.json"))]
    names = {str(run.relative_to(out)): run for run in runs}
    views = {n: json.loads((r / "evaluation.json").read_text())["views"] for n, r in names.items()}
    weights = {f"{n} weights": small_run.final_bytes(run) for n, run in names.items()}
    return views | weights


WORKS = {
    "training, LoRA": Work(_train, _weights, _recipe),
    "training, direct": Work(_train, _weights, _direct),
    "training, LoRA, two processes": Work(_train, _weights, _recipe, 2),
    "training, direct, two processes": Work(_train, _weights, _direct, 2),
    "training, LoRA, one of two processes": Work(_train, _weights, _recipe, 2, True),
    "training, LoRA, shares, one of two processes": Work(_train, _weights, _shares, 2, True),
    "own text": Work(_train, _weights, _own_text),
    "own text, two processes": Work(_train, _weights, _own_text, 2),
    "evaluation": Work(_evaluate, _views, _finished),
    "export": Work(_export, lambda place: _exported(place / "out"), _finished),
    "restore": Work(_restore, _restored, _restorable),
    "sweep": Work(_run_sweep, _swept, _sweep),
}


class Attempt:
    """A command in processes of its own.

    Args:
        arguments: gives the command line, in the new process.
        processes: how many.
    """

    def __init__(self, arguments: Callable[[], list[str]], processes: int) -> None:
        port = _free_port()
        self.children = [_fork(arguments, rank, processes, port) for rank in range(processes)]
        self.codes: dict[int, int] = {}

    def poll(self) -> bool:
        """Whether all have ended."""
        for child in self.children:
            if child not in self.codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    self.codes[child] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.children)

    def kill(self) -> None:
        """SIGKILL to all."""
        for child in self.children:
            if child not in self.codes:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

    def kill_one(self, source: random.Random) -> None:
        """SIGKILL to one; the others have to notice."""
        victim = source.choice([child for child in self.children if child not in self.codes])
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + _NOTICED_SECONDS
        while not self.poll():
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the others were still there after {_NOTICED_SECONDS} s")
            time.sleep(0.05)

    def finish(self) -> None:
        """Wait for all; each must have succeeded."""
        while not self.poll():
            time.sleep(0.01)
        self.check()

    def check(self) -> None:
        """Raise if one has failed by itself."""
        failed = [code for code in self.codes.values() if code not in (0, _WORSE)]
        if failed:
            raise AssertionError(f"the command failed by itself with {failed}")


def _fork(arguments: Callable[[], list[str]], rank: int, processes: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        if processes > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
            names |= {"LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()})
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        for number, name in ((1, os.devnull), (2, os.environ.get("KILL_TRIALS_LOG", os.devnull))):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        from linearard.cli.main import main

        words = arguments()
        if words[0] in ("export", "restore"):
            _read_back_by_a_fork()
        code = main(words)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _read_back_by_a_fork() -> None:
    """Have exports read by a process forked now, before anything is computed: a new one imports for long.

    It ends with this one, whose end of the line closes however it ends.
    """
    from linearard.export import reader, reading

    (requests, asks), (answers, replies) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.dup2(requests, 0)
        os.dup2(replies, 1)
        for line in (requests, asks, answers, replies):
            os.close(line)
        sys.stdin = open(0)  # noqa: SIM115
        reader.main()
    os.close(requests)
    os.close(replies)
    process = SimpleNamespace(
        stdin=os.fdopen(asks, "w"),
        stdout=os.fdopen(answers),
        wait=lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]),
    )
    reading.subprocess = SimpleNamespace(
        Popen=lambda *command, **options: process, PIPE=None, DEVNULL=None
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def kill_once(
    work: Work, place: Path, source: random.Random, seconds: float, trials: Trials
) -> None:
    """Start the work and kill it after so many new files and a moment, or after a part of its time."""
    before, new = set(place.rglob("*")), []
    by_files = source.random() < 0.6
    files, delay = source.randint(1, 25), source.uniform(0, 0.02)
    until = time.monotonic() + source.uniform(0, 1) * seconds
    running = Attempt(lambda: work.arguments(place), work.processes)
    while not running.poll() and (len(new) < files if by_files else time.monotonic() < until):
        time.sleep(_POLL_SECONDS)
        new += [path for path in _found(place) if path not in before]
        before.update(new)
    if by_files:
        time.sleep(delay)
    if running.poll():
        running.check()
        trials.late += 1
    else:
        if work.one_of_them:
            running.kill_one(source)
        else:
            running.kill()
        trials.killed += 1
        trials.during.append(str(new[-1].relative_to(place)) if new else "start")


def _found(folder: Path) -> list[Path]:
    """What lies below a folder that another process is changing."""
    try:
        return sorted(folder.rglob("*"))
    except FileNotFoundError:
        return []


def try_work(name: str, kills: int, seed: int, folder: Path) -> Trials:
    """Kill one kind of work so often, let it end, and compare."""
    work, trials, source = WORKS[name], Trials(), random.Random(f"{name} {seed}")
    base = folder / "base"
    results = []
    seconds = 0.0
    for disturbed in (False, True):
        place = folder / ("killed" if disturbed else "undisturbed")
        place.mkdir()
        work.prepare(place, base)
        while disturbed and trials.killed < kills and trials.late < 3 * kills:
            if trials.late:  # what is done is done: begin again
                _forget(place, name)
            kill_once(work, place, source, seconds, trials)
        started = time.monotonic()
        Attempt(lambda place=place: work.arguments(place), work.processes).finish()
        seconds = time.monotonic() - started
        results.append(work.result(place))
    trials.identical = results[0] == results[1]
    return trials


def _forget(place: Path, name: str) -> None:
    """Remove the result of work that had ended, so that the next attempt has something to do."""
    if name in ("evaluation", "export"):
        return  # they are done anew each time
    for folder in ("run", "out", "cache"):
        shutil.rmtree(place / folder, ignore_errors=True)


def _prepared() -> None:
    """Import what the commands import, once."""
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import torch.distributed.fsdp
    import torch.distributed.tensor  # noqa: F401

    import linearard.cli.main
    import linearard.export
    import linearard.pipeline
    import linearard.restore
    import linearard.sweep
    import linearard.train.trainer  # noqa: F401


def run_trials(kills: int, seed: int, names: list[str]) -> Iterator[tuple[str, Trials]]:
    """The kinds of work, one after another, each with its share of the kills."""
    for number, name in enumerate(names):
        share = kills // len(names) + (number < kills % len(names))
        if not share:
            continue
        with tempfile.TemporaryDirectory() as folder:
            making = os.fork()
            if (
                not making
            ):  # PyTorch computes in children alone: a process that has computed cannot fork
                tiny.save_tiny_base(Path(folder) / "base")
                os._exit(0)
            os.waitpid(making, 0)
            yield name, try_work(name, share, seed, Path(folder))


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=int, default=36, help="kills before all begins anew")
    parser.add_argument("--out", type=Path, help="JSON to write, after each kind of work")
    parser.add_argument("--only", nargs="*", default=list(WORKS), choices=WORKS)
    args = parser.parse_args()
    _prepared()
    found: dict[str, Any] = {}
    left, seed = args.kills, args.seed
    while left > 0:
        for name, trials in run_trials(min(left, args.round), seed, args.only):
            one = found.setdefault(name, {"killed": 0, "identical": True, "last_seen": {}})
            one["killed"] += trials.killed
            one["identical"] &= trials.identical
            for seen in trials.during:
                kind = Path(seen).name
                one["last_seen"][kind] = one["last_seen"].get(kind, 0) + 1
            same = "identical" if trials.identical else "DIFFERENT"
            print(f"{name}: {trials.killed} kills, {same}", flush=True)
            if args.out:
                total = sum(one["killed"] for one in found.values())
                content = {"seed": args.seed, "kills": total, "work": found}
                args.out.write_text(json.dumps(content, indent=1) + "\n")
        left, seed = left - args.round, seed + 1
    return int(not all(one["identical"] for one in found.values()))


if __name__ == "__main__":
    sys.exit(_main())
