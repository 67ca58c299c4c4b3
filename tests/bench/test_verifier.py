"""Benches of the verifier: how long the gates take on a policy that nobody verified before.

Run by hand on a quiet machine: make bench. Acceptance on two cores without KVM: all gates of a policy in a fresh VM
under 20 s, the static ones alone under 1.5 s.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from kernel_bpf.library import load_library
from schedagent.core.policy import CandidatePolicy
from schedagent.core.settings import load_settings
from schedagent.wiring import open_local_verifier
from verifier.pipeline import Verifier

pytestmark = pytest.mark.bench


def timed(verifier: Verifier, name: str) -> tuple[float, list[str]]:
    """Return the seconds that a bundled policy took, and the gates that did not pass."""
    info = load_library()[name]
    candidate = CandidatePolicy(name, info.configured({}))
    began = time.monotonic()
    report = verifier.verify(candidate, info).report
    return time.monotonic() - began, [gate.detail for gate in report.gates if gate.status.value == "failed"]


@pytest.mark.parametrize(("static", "limit_s"), [(True, 1.5), (False, 20.0)])
def test_all_gates_are_quick(static: bool, limit_s: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each compile is a fresh one: the cache of objects is empty, that of kernels and precompiled headers is not."""
    settings = load_settings()
    verifier = dataclasses.replace(
        open_local_verifier(settings, all_kernels=not static, sign=False), static_only=static
    )
    timed(verifier, "fifo")  # builds what is built once: precompiled headers, snapshots
    took = {}
    for name in load_library():
        for entry in (settings.cache_dir / "objects").glob("*"):
            entry.unlink()
        took[name], failed = timed(verifier, name)
        with capsys.disabled():
            print(
                f"{'static gates' if static else 'all gates':12} {name:14} {took[name]:5.2f} s {failed or ''}",
                flush=True,
            )
        assert not failed
    assert max(took.values()) < limit_s
