"""Limits of cgroups under the bundled policies: one run of guest_cgroups.py, then one test for each kind of limit.

The bounds are wide: they tell a limit that holds from one that does not, on a host that others use.
"""

from __future__ import annotations

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from kernel_bpf.policies.library import load_library
from schedagent.core.settings import load_settings
from tests.support.in_guest import told_inside
from verifier.microvm.kernels import default_kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(400)]

KEEPING = ("default", "fair_cgroups")


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict:
    """CPUs that cgroups used, by policy and kind of limit."""
    settings = load_settings()
    kernel = default_kernel(settings)
    target = prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
    folder, words = tmp_path_factory.mktemp("objects"), ["default"]
    for name in ("fair_cgroups", "fifo"):
        path = folder / f"{name}.o"
        path.write_bytes(compile_policy(load_library()[name].source, name, target).object_bytes)
        words.append(f"{name}={path}")
    return told_inside(settings.cache_dir, kernel, "guest_cgroups.py", *words, timeout_s=200)


@pytest.mark.parametrize("name", KEEPING)
def test_weights_hold_on_two_levels(figures, name):
    weights = figures[name]["weights"]
    assert weights["light"] < 0.12 * weights["heavy"], weights
    if name != "default":  # which is only near them across CPUs
        assert weights["heavy/two"] == pytest.approx(2 * weights["heavy/one"], rel=0.35), weights
    changed = figures[name]["weights changed to 500:1000"]
    assert changed["light"] == pytest.approx(changed["heavy"] / 2, rel=0.5), changed


def test_a_policy_that_ignores_weights_shows(figures):
    weights = figures["fifo"]["weights"]
    assert weights["light"] > 0.5 * weights["heavy"], weights


@pytest.mark.parametrize("name", KEEPING)
def test_quotas_hold_on_two_levels_and_when_they_change(figures, name):
    kept = figures[name]
    assert kept["limit"]["fifth"] == pytest.approx(0.2, rel=0.25)
    assert kept["limit changed to 50 %"]["fifth"] == pytest.approx(0.5, rel=0.25)
    levels = kept["limits on two levels"]
    assert levels["most/child"] == pytest.approx(0.3, rel=0.3)
    assert levels["most"] < 1.65


@pytest.mark.parametrize("name", KEEPING)
def test_an_idle_cgroup_gets_what_is_left(figures, name):
    assert figures[name]["idle"]["idle"] < 0.1 * figures[name]["idle"]["busy"]


def test_weights_hold_among_many_cgroups(figures):
    light, heavy = figures["fair_cgroups"]["many"]
    assert heavy == pytest.approx(2 * light, rel=0.3)
