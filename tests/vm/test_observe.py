"""Observation in the micro-VM: the recorder and the rules on a batch whose figures are known beforehand."""

from __future__ import annotations

import pytest

from agents.observation import observe
from schedagent.core.policies.identity import cmdline_identity
from schedagent.core.settings import load_settings
from schedagent.core.trials.workload import WorkloadClass, WorkloadCommand
from schedagent.run.opening import open_lab
from tests.support.paths import FIXTURES

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

LONGTAIL = FIXTURES / "longtail"


def test_a_long_tail_is_measured_and_recognised():
    workload = WorkloadCommand("./batch.sh 9 200 1400", str(LONGTAIL), prepare="make -s spin", timeout_s=120)
    sample, profile = observe(open_lab(load_settings()), workload)
    assert profile.kind is WorkloadClass.BATCH_LONG_TAIL, profile.evidence
    assert profile.predicted_ratio < 0.9
    assert profile.lost_events == 0
    expected = {row.identity: row for row in profile.histories}
    short, long = (expected[cmdline_identity(b"./spin\0" + ms + b"\0")] for ms in (b"200", b"1400"))
    assert short.count == 9
    assert short.cpu_ns_p50 == pytest.approx(200e6, rel=0.1)
    assert long.cpu_ns_max == pytest.approx(1400e6, rel=0.1)
    assert profile.wall_s == pytest.approx(sample.wall_ns / 1e9, rel=0.1)
    assert profile.cpu_s == pytest.approx(sample.cpu_ns / 1e9, rel=0.2)
    assert max(runnable for _, runnable in profile.parallelism) >= 8
    assert profile.psi_cpu_some_s > 0
