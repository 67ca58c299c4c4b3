"""Benches of the verifier: how long the gates take on a policy that nobody verified before.

Run by hand on a quiet machine: make bench. On two cores without KVM all gates take at most 25 s for a policy
that a model wrote, of which more has to be shown, 20 s for a bundled one, and the static gates 1.5 s; 2 s for a source
of 3,000 lines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path

import pytest

from kernel_bpf.policies.library import load_library, policy_from_file
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.policies.proposal import Origin
from schedagent.core.settings import load_settings
from schedagent.core.verification import GateStatus
from schedagent.run.opening import open_lab, open_local_verifier
from tests.support.large_source import large_source
from verifier.lab.vm import LabPolicy
from verifier.microvm.topology import SHAPED
from verifier.pipeline import Verifier
from verifier.proving.prove import Depth

pytestmark = pytest.mark.bench


def timed(verifier: Verifier, name: str, origin: Origin = Origin.BUNDLED) -> tuple[float, list[str]]:
    """Return the seconds that a bundled policy took, as if it came from there, and the gates that did not pass."""
    info = dataclasses.replace(load_library()[name], origin=origin)
    candidate = CandidatePolicy(name, info.configured({}))
    began = time.monotonic()
    report = verifier.verify(candidate, info).report
    return time.monotonic() - began, [gate.detail for gate in report.gates if gate.status.value == "failed"]


@pytest.mark.parametrize(
    ("gates", "limit_s"),
    [("static gates", 1.5), ("all gates", 20.0), ("all gates, derived", 25.0), ("all gates and kernels", math.inf)],
)
def test_the_gates_are_quick(gates: str, limit_s: float, capsys: pytest.CaptureFixture[str]) -> None:
    """Each compile is a fresh one: the cache of objects is empty, that of kernels and precompiled headers is not.

    Each further kernel adds a machine of its own, so there is no limit for all of them.
    """
    settings = load_settings()
    verifier = dataclasses.replace(
        open_local_verifier(settings, all_kernels="kernels" in gates, sign=False), static_only=gates == "static gates"
    )
    timed(verifier, "fifo")  # builds what is built once: precompiled headers, snapshots
    took = {}
    for name in load_library():
        for entry in (settings.cache_dir / "objects").glob("*"):
            entry.unlink()
        took[name], failed = timed(verifier, name, Origin.GENERATE if "derived" in gates else Origin.BUNDLED)
        with capsys.disabled():
            print(f"{gates:21} {name:14} {took[name]:5.2f} s {failed or ''}", flush=True)
        assert not failed
    assert max(took.values()) < limit_s


LARGE_LIMIT_S = 2.0
"""What the static gates may take for a source of 3,000 lines."""


def test_the_static_gates_are_quick_on_a_large_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the rounds the best counts; each has a source that nobody compiled before."""
    verifier = dataclasses.replace(open_local_verifier(load_settings(), sign=False), static_only=True)
    took = []
    for number in range(4):
        path = tmp_path / "large.bpf.c"
        path.write_text(f"{large_source()}\n/* {number}, {time.time_ns()} */\n")
        info = dataclasses.replace(policy_from_file(path), origin=Origin.GENERATE)
        began = time.monotonic()
        report = verifier.verify(CandidatePolicy("large", info.configured({})), info).report
        took.append(time.monotonic() - began)
        gates = ", ".join(f"{gate.gate} {gate.seconds:.2f} s" for gate in report.gates if gate.seconds)
        with capsys.disabled():
            print(f"{path.read_text().count(chr(10)):,} lines {took[-1]:5.2f} s: {gates}", flush=True)
        assert report.gates[2].status in (GateStatus.PASSED, GateStatus.FAILED), report.gates
    assert min(took) < LARGE_LIMIT_S


SHAPE_LIMIT_S = 20.0
"""What a guest of 8 CPUs may take besides, on two CPUs without KVM."""


@pytest.mark.parametrize("name", load_library())
def test_another_shape_takes_little_more(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """From the restored snapshot on: it is made once for all policies."""
    verifier = open_local_verifier(load_settings(), sign=False)
    info, ground = load_library()[name], verifier.benches[0].ground
    policy = LabPolicy(CandidatePolicy(name, info.configured({})), verifier.compile(info))
    with open_lab(load_settings()).open(hostfs=False, topology=SHAPED):
        pass
    began = time.monotonic()
    with contextlib.closing(ground.cell(policy)) as cell:
        answer = cell.prove_on(SHAPED, Depth.STANDARD)
    took_s = time.monotonic() - began
    with capsys.disabled():
        print(f"{SHAPED} {name:14} {took_s:5.2f} s {answer.seconds}", flush=True)
    assert all(result["ok"] for result in answer.results), answer
    assert took_s < SHAPE_LIMIT_S
