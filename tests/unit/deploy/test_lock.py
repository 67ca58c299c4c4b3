"""requirements.lock: everything pinned by hash, nothing that says where to get it, and nothing missing.

pyproject.toml declares what our code imports, no more and no less.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT

INSTALLED = ("schedagent", "agents", "verifier", "repo_store", "kernel_bpf")
MODULES = {"pyelftools": "elftools", "langgraph-checkpoint-sqlite": "langgraph.checkpoint.sqlite"}
"""Those that are not imported by the name of their distribution."""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TEXT = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENTRIES = re.findall(r"(?m)^([a-z0-9][a-z0-9._-]*)==\S+.*((?:\\\n\s+--hash=sha256:[0-9a-f]{64}\s*)+)", TEXT)


def test_every_line_is_a_pin_or_a_hash() -> None:
    pattern = r"[a-z0-9][a-z0-9._-]*==\S+( ;.*)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?"
    strange = [line for line in TEXT.splitlines() if not re.fullmatch(pattern, line)]
    assert strange == []
    assert len(ENTRIES) == len(re.findall(r"(?m)^[a-z0-9]", TEXT))


def test_all_direct_dependencies_are_locked() -> None:
    wanted = declared("dependencies") | declared("dev")
    assert wanted - {name for name, _ in ENTRIES} == set()


def declared(group: str) -> set[str]:
    """Return the distributions of a group of pyproject.toml."""
    entries = PROJECT["dependencies"] if group == "dependencies" else PROJECT["optional-dependencies"][group]
    return {re.match(r"[A-Za-z0-9._-]+", entry).group().lower() for entry in entries}


def modules(names: set[str]) -> set[str]:
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imported(package: str) -> set[str]:
    """Return the modules of others that a package imports, inside functions, too."""
    files = [*(ROOT / package).rglob("*.py")]
    assert files, f"no source of {package}"
    names = {name for path in files for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
    known = {*sys.stdlib_module_names, *INSTALLED, "deploy", "_typeshed"}  # which only type checkers see
    return {name for name in names if name.partition(".")[0] not in known}


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def belongs(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


@pytest.mark.parametrize("package", [*INSTALLED, "deploy"])
def test_what_is_imported_is_declared(package) -> None:
    chosen = declared("dependencies") | (declared("dev") if package == "deploy" else set())
    missing = {name for name in imported(package) if not any(belongs(name, module) for module in modules(chosen))}
    assert missing == set()


def test_what_is_declared_is_imported() -> None:
    names = {name for package in INSTALLED for name in imported(package)}
    unused = {module for module in modules(declared("dependencies")) if not any(belongs(n, module) for n in names)}
    assert unused == set()


def test_nothing_huge_slipped_in() -> None:
    assert {"torch", "tensorflow", "triton"} & {name for name, _ in ENTRIES} == set()
