"""The verifier service as it is run for others, in a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.real_runs import PROGRAM
from tests.support.verifier_service_process import wait_for
from verifier.microvm import machine


@contextmanager
def verifier_service(path: Path, state: Path) -> Iterator[None]:
    """Serve at a path for a while, with the keys of a state folder."""
    environment = {**os.environ, "SCHEDAGENT_STATE": str(state), "PYTHONPATH": str(ROOT)}
    argv = [*PROGRAM, "verifier", "serve", "--socket", str(path)]
    with subprocess.Popen(argv, env=environment, cwd=ROOT) as service:
        try:
            wait_for(path.exists, 60)
            yield
        finally:
            service.terminate()


@contextmanager
def with_port(arguments: list[str]) -> Iterator[None]:
    """Give every machine that is started meanwhile further devices."""
    plain = machine.qemu_argv
    machine.qemu_argv = lambda *words: [*plain(*words), *arguments]
    try:
        yield
    finally:
        machine.qemu_argv = plain
