"""Benches of what carries over to hardware: work of which it is known beforehand.

Run by hand on a quiet machine: make bench. Each prints its pairs: CPU time, switches, and the three ratios.
"""

from __future__ import annotations

import math
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from agents.observation import build_profile
from agents.planner.inputs import fill
from kernel_bpf.policies.library import load_library
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.settings import load_settings
from schedagent.core.trials.hardware_gain import HardwareRatio, expected
from schedagent.core.trials.trial import Sample
from schedagent.core.trials.usage import MachineCosts
from schedagent.core.trials.workload import WorkloadCommand, WorkloadProfile
from schedagent.run.opening import open_lab, open_verifier
from tests.support.paths import FIXTURES
from verifier.lab.vm import LabPolicy, TrialSession, VmLab

PAIRS = 8
EIGHT_AT_ONCE = "for task in 1 2 3 4 5 6 7 8; do ./crunch 100 {kib} & done; wait"

pytestmark = [pytest.mark.bench, pytest.mark.vm, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def lab() -> VmLab:
    lab = open_lab(load_settings())
    if lab.kvm:
        pytest.skip("under KVM the raw figures are those of hardware")
    return lab


@pytest.fixture(scope="module")
def costs(lab: VmLab) -> MachineCosts:
    costs = lab.costs()
    assert costs is not None, "the machine is too busy"
    print(f"\n{costs}")
    return costs


def built(name: str, folder: Path) -> str:
    """Build a fixture in a folder of its own, and return that."""
    shutil.copytree(FIXTURES / name, folder / name)
    subprocess.run(["make", "-s", "-C", str(folder / name)], check=True)
    return str(folder / name)


@pytest.mark.parametrize("kib", [4, 256])
def test_only_the_slice_differs(lab: VmLab, costs: MachineCosts, tmp_path: Path, kib: int) -> None:
    """Eight equal tasks of a fixed amount of work on two CPUs: the slice matters only by what a switch costs.

    On hardware 1000 switches a second of some microseconds are a few thousandths. Acceptance: 1 within 3 %.
    """
    workload = WorkloadCommand(EIGHT_AT_ONCE.format(kib=kib), built("crunch", tmp_path))
    found = compared(lab, costs, workload, fifo(20_000), fifo(1000))
    assert found.ratio == pytest.approx(1, abs=0.03)


def test_a_gain_in_the_use_of_the_cpus_carries_over_whole(lab: VmLab, costs: MachineCosts, tmp_path: Path) -> None:
    """Tasks of a fixed CPU time, one much longer than the rest, begun first: acceptance: as measured, within 2 %."""
    workload = WorkloadCommand("./batch.sh 9 200 1500", built("longtail", tmp_path))
    found = compared(lab, costs, workload, None, longest_first(build_profile(lab.observe(workload)[1])))
    assert found.raw < 0.9
    assert found.ratio == pytest.approx(found.raw, rel=0.02)


def fifo(slice_us: int) -> LabPolicy:
    info = load_library()["fifo"]
    return LabPolicy(CandidatePolicy(info.name, info.configured({"slice_us": slice_us})), compiled(info))


def longest_first(profile: WorkloadProfile) -> LabPolicy:
    info = load_library()["longest_first"]
    return LabPolicy(fill(info, info.configured({}), profile), compiled(info))


def compiled(info: PolicyInfo) -> PolicyArtifact:
    return open_verifier(load_settings()).compile(info)


def compared(
    lab: VmLab, costs: MachineCosts, workload: WorkloadCommand, default: LabPolicy | None, candidate: LabPolicy
) -> HardwareRatio:
    """Run both arms PAIRS times in one session, in random order; return the geometric means of the ratios."""
    ratios = []
    with lab.session(workload) as session:
        session.run_default()
        for _ in range(PAIRS):
            samples: dict[bool, Sample] = {}
            for is_default in random.sample([True, False], 2):
                samples[is_default] = run(session, default if is_default else candidate, candidate)
            found = expected(samples[True], samples[False], costs, lab.cpus)
            assert found is not None
            ratios.append(found)
            print(f"{told(samples[True])} | {told(samples[False])} | expected {found.ratio:.3f}, "
                  f"utilisation {found.utilisation:.3f}, raw {found.raw:.3f}", flush=True)  # fmt: skip
    found = HardwareRatio(
        *(geometric_mean([getattr(ratio, name) for ratio in ratios]) for name in ("ratio", "utilisation", "raw"))
    )
    print(f"mean: {found}")
    return found


def run(session: TrialSession, arm: LabPolicy | None, beside: LabPolicy) -> Sample:
    sample = session.run_candidate(arm) if arm else session.run_default(beside)
    assert not sample.failure, sample
    return sample


def told(sample: Sample) -> str:
    usage = sample.usage
    assert usage is not None
    return (
        f"{sample.wall_ns / 1e9:.2f} s, CPU {sample.cpu_ns / 1e9:.2f} s, "
        f"switches {usage.voluntary_switches}+{usage.involuntary_switches}"
    )


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
