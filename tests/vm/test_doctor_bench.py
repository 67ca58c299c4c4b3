"""The doctor's restore bench on a real snapshot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from schedagent.core.settings import load_settings
from schedagent.run.opening import open_lab
from schedagent.setup.doctor import emulation_bench, restore_bench

pytestmark = pytest.mark.vm


def test_restores_are_timed_one_by_one() -> None:
    finding = restore_bench(open_lab(load_settings()), restores=3)
    sealed, hostfs, count = finding.detail.split("; ")
    assert count == "3 restores each"
    for detail, name in ((sealed, "sealed"), (hostfs, "with the host's files")):
        match = re.fullmatch(name + r": median ([0-9.]+) s, p90 ([0-9.]+) s, ([0-9.]+) to ([0-9.]+) s", detail)
        assert match is not None, finding.detail
        median, p90, least, most = map(float, match.groups())
        assert 0 < least <= median <= p90 <= most < 20


def test_qemu_leaves_nothing_behind() -> None:
    restore_bench(open_lab(load_settings()), restores=1)
    children = Path("/proc/thread-self/children").read_text().split()
    names = [Path(f"/proc/{child}/comm").read_text().strip() for child in children]
    assert not [name for name in names if name.startswith("qemu")]


def test_the_lab_is_compared_with_this_machine() -> None:
    lab = open_lab(load_settings())
    finding, costs = emulation_bench(lab), lab.costs()
    if lab.kvm:
        assert (finding.status, costs) == ("ok", None)
        return
    assert finding.status == "info", finding
    assert costs is not None
    assert 2 < costs.kappa < 200
    assert 2 < costs.lab_switch_ns / costs.host_switch_ns < 2000
    assert 100 < costs.host_switch_ns < 1e6
