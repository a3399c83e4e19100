"""What the package installs: every dependency, theirs included, with versions and licences.

By hand: python tests/dependencies.py                   a line NAME==VERSION each, which `make audit` reads
         python tests/dependencies.py --record FILE     their versions and licences as JSON
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

PACKAGE = "linearard"


def installed() -> dict[str, metadata.Distribution]:
    """The package's dependencies and theirs, without extras, as far as they are installed here."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [PACKAGE]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for other systems
            continue
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def licence(distribution: metadata.Distribution) -> str:
    """What a package says of its licence: an expression, its classifiers, or its first words."""
    about = distribution.metadata
    classifiers = [c for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    words = (about.get("License") or "").strip().splitlines()[:1]
    return about.get("License-Expression") or "; ".join(classifiers) or "".join(words)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, help="JSON to write")
    record = parser.parse_args().record
    found = {name: found for name, found in sorted(installed().items()) if name != PACKAGE}
    if record is None:
        for name, distribution in found.items():
            # An index does not know a build such as +cpu or +cu130.
            print(f"{name}=={distribution.version.partition('+')[0]}")
        return
    content = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "packages": {
            name: {"version": distribution.version, "licence": licence(distribution)}
            for name, distribution in found.items()
        },
    }
    record.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    _main()
