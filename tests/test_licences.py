"""What the package installs may be used under terms like its own: every dependency, theirs included."""

import re
from importlib import metadata

from packaging.requirements import Requirement

_FREE = re.compile(
    r"\b(apache|mit|bsd|0bsd|isc|mpl|psf|python software foundation|zlib|cc0"
    r"|bsl-1\.0|cnri-python|hpnd|unlicense)",
    re.IGNORECASE,
)
_NOT = re.compile(
    r"\b(a?gpl|gnu|lgpl|sspl|proprietary|non-?commercial|cc-by-nc|busl|commons clause)", re.I
)
#: CUDA's own libraries, which PyTorch brings along for NVIDIA's GPUs under NVIDIA's terms.
_OF_NVIDIA = ("nvidia-", "cuda-")


def installed() -> dict[str, metadata.Distribution]:
    """The package's dependencies and theirs, without extras, as far as they are installed here."""
    found: dict[str, metadata.Distribution] = {}
    waiting = ["linearard"]
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


def test_every_dependency_is_free():
    found = installed()
    assert {"torch", "transformers", "peft", "datasets", "numpy", "tqdm"} < found.keys()
    wrong = {
        name: licence(distribution) or "none given"
        for name, distribution in found.items()
        if not name.startswith(_OF_NVIDIA)
        and (not _FREE.search(licence(distribution)) or _NOT.search(licence(distribution)))
    }
    assert not wrong


def test_the_words_tell_them_apart():
    for free in ("Apache 2.0 License", "MPL-2.0 AND MIT", "License :: OSI Approved :: BSD License"):
        assert _FREE.search(free) and not _NOT.search(free)
    for other in (
        "GPL-3.0-only",
        "GNU Lesser General Public License",
        "CC-BY-NC-4.0",
        "Proprietary",
    ):
        assert _NOT.search(other)
    assert not _FREE.search("none given")
