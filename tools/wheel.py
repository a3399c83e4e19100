"""Check what a wheel holds: all of the package's files that git knows, the licence, and nothing else.

python -m tools.wheel dist/linearard-0.1.0-py3-none-any.whl
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Written by the build.
_METADATA = {
    "METADATA",
    "RECORD",
    "WHEEL",
    "entry_points.txt",
    "top_level.txt",
    "licenses/LICENSE",
}
#: Read by people who look at the code, not by the code.
_LEFT_OUT = (".md",)


def differences(wheel: Path) -> list[str]:
    """What the wheel lacks, and what it should not have."""
    listed = subprocess.run(
        ["git", "ls-files", "src/linearard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wanted = {
        name.removeprefix("src/")
        for name in listed.stdout.splitlines()
        if not name.endswith(_LEFT_OUT)
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    found = names - about
    inner = {name.partition("/")[2] for name in about}
    return (
        [f"missing: {name}" for name in sorted(wanted - found)]
        + [f"not of the package: {name}" for name in sorted(found - wanted)]
        + [f"missing metadata: {name}" for name in sorted(_METADATA - inner)]
        + [f"unknown metadata: {name}" for name in sorted(inner - _METADATA)]
    )


if __name__ == "__main__":
    wrong = [line for path in sys.argv[1:] for line in differences(Path(path))]
    print("\n".join(wrong) or "the wheel holds the package and nothing else")
    sys.exit(1 if wrong else 0)
