"""The tiny programs by whose arguments a policy may know its tasks."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from pathlib import Path

import pytest

from schedagent.core.policies.identity import cmdline_identity
from verifier.proving import strangers

here = pytest.mark.skipif(not strangers.program(), reason=f"no program for {platform.machine()}")


@here
def test_the_program_works_and_sleeps_until_it_is_killed(tmp_path):
    path = tmp_path / "stranger"
    path.write_bytes(strangers.program())
    path.chmod(0o755)
    process = subprocess.Popen([path])
    try:
        status = Path(f"/proc/{process.pid}/status")
        deadline = time.monotonic() + 20
        while switches(status) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            os.sched_yield()
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


def switches(status: Path) -> int:
    """How often a process went to sleep by itself."""
    line = next(line for line in status.read_text().splitlines() if line.startswith("voluntary_ctxt_switches"))
    return int(line.split()[1])


def test_each_class_has_a_command_line_of_its_own_that_begins_like_the_random_ones():
    lines = ["".join(f"{word}\0" for word in strangers.words(number)).encode() for number in range(strangers.CLASSES)]
    assert strangers.identities() == {cmdline_identity(line): number for number, line in enumerate(lines)}
    assert len(strangers.identities()) == strangers.CLASSES == len(strangers.EXPECTED_NS)
    assert all(b"\0/tmp/" in line for line in lines)


def test_names_are_as_long_as_a_command_name_can_be():
    assert sorted(map(len, strangers.NAMES)) == list(range(1, 16))
