"""What the package installs may be used under terms like its own: every dependency, theirs included."""

import re
import subprocess
import sys
from importlib import metadata

import dependencies
from dependencies import installed, licence

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


def test_what_an_audit_reads():
    """A name and a version that an index knows in every line, without the package itself."""
    command = [sys.executable, dependencies.__file__]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.!]*", line) for line in lines), lines
    assert f"torch=={metadata.version('torch').partition('+')[0]}" in lines
    assert not any(line.startswith("linearard=") for line in lines)
