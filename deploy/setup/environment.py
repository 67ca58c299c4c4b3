# SPDX-License-Identifier: GPL-2.0-only
"""The virtual environment of an installed schedagent, made of the one that set-up has filled and the tests ran in.

Nothing is downloaded: every library that our code needs at run time is copied, file by file as its RECORD lists it,
with our own packages beside them. Compiled libraries fit one minor version of Python, so the interpreter of the target
has to be of the version that runs this.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from schedagent.core.errors import SetupError
from schedagent.core.process import proc

ROOT = Path(__file__).resolve().parents[2]
OURS = ("schedagent", "agents", "verifier", "repo_store", "kernel_bpf")
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
TARGET_PYTHON = Path(f"/usr/bin/python{MINOR}")
"""The interpreter of Debian's package, by the name that keeps its meaning when python3 becomes a newer one."""

_SCRIPT = """#!{python} -I
import sys

from {module} import {function}

sys.exit({function}())
"""


def check_python(python: Path) -> None:
    """See that an interpreter of this machine can use what is copied.

    Raises:
        SetupError: it is not there, or of another minor version than the one that runs this.
    """
    done = proc.run([python, "-Ic", "import sys; print('%d.%d' % sys.version_info[:2])"], timeout_s=20)
    version = done.stdout.decode().strip()
    if version != MINOR:
        raise SetupError(
            f"{python} is Python {version or 'of no known version'}, set-up's libraries are for {MINOR}",
            f"PYTHON=/path/of/python{MINOR}, or remove set-up's virtual environment and run make setup with {python}",
        )


def build(folder: Path, final: Path, python: Path, *, bytecode: bool) -> None:
    """Fill an empty folder with the environment; scripts and byte code name the path where it will be.

    Args:
        folder: where to write.
        final: path of this folder on the machine that runs it.
        python: path of the interpreter on that machine.
        bytecode: compile all modules, because nobody may write there later.
    """
    packages = folder / "lib" / f"python{MINOR}" / "site-packages"
    programs = folder / "bin"
    for each in (packages, programs):
        each.mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(
        f"home = {python.parent}\ninclude-system-site-packages = false\nversion = {MINOR}\nexecutable = {python}\n"
    )
    interpreter = programs / f"python{MINOR}"
    interpreter.symlink_to(python)
    (programs / "python3").symlink_to(interpreter.name)
    for library in run_time_libraries(_project()["dependencies"]):
        _copy_library(library, packages)
    for name in OURS:
        shutil.copytree(ROOT / name, packages / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name, entry in _project()["scripts"].items():
        module, _, function = entry.partition(":")
        script = programs / name
        script.write_text(_SCRIPT.format(python=final / "bin" / interpreter.name, module=module, function=function))
    stamp = Path(sys.prefix) / "packages.stamp"
    if stamp.is_file():
        shutil.copy2(stamp, folder)  # for doctor: these are the locked versions
    if bytecode:
        compile_all(folder, final)
    _set_modes(folder)


def run_time_libraries(wanted: list[str]) -> list[metadata.Distribution]:
    """Return the installed distributions that these requirements lead to, by name.

    Raises:
        SetupError: one of them is not installed here.
    """
    libraries: dict[str, metadata.Distribution] = {}
    seen = set()
    todo = [Requirement(line) for line in wanted]
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            libraries[key[0]] = distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            raise SetupError(f"{requirement.name} is not in this virtual environment", "run: make setup") from None
        todo += [
            needed
            for needed in map(Requirement, distribution.requires or ())
            if needed.marker is None
            or any(needed.marker.evaluate({"extra": extra}) for extra in requirement.extras or {""})
        ]
    return [libraries[name] for name in sorted(libraries)]


def compile_all(folder: Path, final: Path) -> None:
    """Compile every module; the byte code names the final path, and is valid by the content it was made of.

    Modules that Python itself refuses (templates, tests of syntax errors) stay as they are.
    """
    compileall.compile_dir(
        folder / "lib",
        maxlevels=20,
        quiet=2,
        workers=0,
        stripdir=str(folder),
        prependdir=str(final),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _copy_library(library: metadata.Distribution, packages: Path) -> None:
    """Copy its files but for programs, which lie beside site-packages, and byte code, which names paths from here."""
    for file in library.files or ():
        if ".." in file.parts or file.suffix == ".pyc":
            continue
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(library.locate_file(file)), target)


def _set_modes(folder: Path) -> None:
    """Everybody may read, and run what is in bin; nobody but the owner may write, whatever the modes and umask here."""
    for base, _, files in os.walk(folder):
        Path(base).chmod(0o755)
        for name in files:
            path = Path(base, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.parent == folder / "bin" else 0o644)
