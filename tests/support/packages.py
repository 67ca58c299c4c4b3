"""Our packages: what each is for and which others it may import, as the docstring of its `__init__` says."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from tests.support.paths import ROOT

OURS = ("schedagent", "agents", "verifier", "repo_store", "kernel_bpf")
SOURCES = sorted(path.relative_to(ROOT).as_posix() for package in OURS for path in (ROOT / package).rglob("*.py"))


@dataclass(frozen=True)
class Package:
    """One package.

    Args:
        purpose: the first line of its docstring.
        may_import: dotted names of packages and modules of ours; its own are always allowed.
    """

    name: str
    purpose: str
    may_import: tuple[str, ...]


def module_of(path: str) -> str:
    """Return the dotted name of a file, given relative to the root."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def packages() -> dict[str, Package]:
    """Return the packages whose docstring has a line "May import: ...", by name."""
    known = {}
    for path in SOURCES:
        if not path.endswith("/__init__.py"):
            continue
        text = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
        if match := re.search(r"^May import: ([\w.,\s]+?)\.$", text, re.MULTILINE):
            names = () if match[1] == "nothing of ours" else tuple(re.split(r",\s+", match[1]))
            known[module_of(path)] = Package(module_of(path), text.partition("\n\n")[0].replace("\n", " "), names)
    return known
