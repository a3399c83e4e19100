"""Ship the H200's rates with the planner: those that `python -m benchmarks planner` calibrated.

python -m benchmarks planner_rates          results/h200/planner.json -> src/linearard/planning/h200.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from linearard.planning import Rates

MEASURED = Path(__file__).parent / "results" / "h200" / "planner.json"
SHIPPED = Path(__file__).parents[1] / "src" / "linearard" / "planning" / "h200.json"


def rates() -> Rates:
    """The calibrated rates in the result file, which they name as their source."""
    found = json.loads(MEASURED.read_text())["calibration"]["rates"]
    source = f"benchmarks/results/h200/{MEASURED.name}"
    return dataclasses.replace(Rates.from_dict(found), source=source)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks planner_rates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    SHIPPED.write_text(json.dumps(rates().to_dict(), indent=1) + "\n")
    print(f"wrote {SHIPPED}")
