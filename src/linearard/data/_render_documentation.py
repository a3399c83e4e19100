"""Write the standard library's documentation to stdout, one JSON string a line.

A script, run by path in an interpreter of its own; it imports nothing of this project.
"""

import importlib
import json
import os
import pkgutil
import pydoc
import re
import sys
import warnings

# Importing these opens a window or a browser, prints, or needs a display; or they hold no
# documentation worth reading (tests, one near-identical page for each character encoding).
_SKIPPED = {
    "antigravity",
    "encodings",
    "idlelib",
    "lib2to3",
    "test",
    "this",
    "tkinter",
    "turtle",
    "turtledemo",
}
_SECTIONS = {"AUTHOR", "CREDITS", "DATA", "DATE", "FILE", "MODULE REFERENCE", "VERSION"}
_RULE = re.compile(r"^ \|  -{70}\n", re.MULTILINE)
_PLACE = re.compile(r" at 0x[0-9A-Fa-f]+| from '[^'\n]+\.py'(?=>)")  # in defaults of signatures
_LEAST_CHARACTERS = 2000


class _Documentation(type(pydoc.plaintext)):
    """Plain text without what differs between machines and what every class repeats."""

    def section(self, title, contents):
        return "" if title in _SECTIONS else super().section(title, contents)

    def docclass(self, *args, **kwargs):
        parts = _RULE.split(super().docclass(*args, **kwargs))
        own = [part for part in parts if " inherited from " not in part.partition("\n")[0]]
        return (" |  " + "-" * 70 + "\n").join(own)


def _is_public(name):
    first, *rest = name.split(".")
    hidden = any(part.startswith("_") or part in ("test", "tests") for part in (first, *rest))
    return first not in _SKIPPED and (not hidden or name == "__future__")


def _module_names():
    names = set(filter(_is_public, sys.stdlib_module_names))
    library = os.path.dirname(os.__file__)
    for name in sorted(names):
        folder = os.path.join(library, name)
        for module in pkgutil.walk_packages([folder], name + ".", onerror=lambda name: None):
            if _is_public(module.name):
                names.add(module.name)
    return sorted(names)


def _documents():
    renderer = _Documentation()
    for name in _module_names():
        try:
            yield renderer.document(importlib.import_module(name))
        except BaseException:  # modules of other systems raise anything, SystemExit included
            continue
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name in sorted(topics):
        yield topics[name]


def _main():
    # What an import prints must not mix with the documents.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ.clear()  # signatures show defaults, the environment among them
    warnings.simplefilter("ignore")
    for document in _documents():
        text = _PLACE.sub("", document)
        if len(text) >= _LEAST_CHARACTERS:
            out.write(json.dumps(text) + "\n")
    out.close()


_main()
