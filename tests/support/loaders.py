"""Schedulers with a loader of their own, built from tests/fixtures/loaders: a good one, and all that can go wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

from schedagent.core.policies.program import SchedulerProgram, digest_of
from tests.support.paths import FIXTURES

SOURCE = FIXTURES / "loaders" / "loader.c"


def build_loader(folder: Path, name: str = "scx_ours") -> Path:
    """Compile the loader into a folder; its arguments are an object, what it does, and perhaps a file."""
    path = folder / name
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-o", str(path), str(SOURCE), "-lbpf"], check=True)
    return path


def program(loader: Path, *arguments: object) -> SchedulerProgram:
    """Return a program with its arguments as a run knows it."""
    return SchedulerProgram(str(loader), tuple(map(str, arguments)), digest_of(loader))
