"""The lab that is the machine itself, with schedagentd and a sched_ext kernel: one run of guest_host_lab.py."""

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from schedagent.core.settings import load_settings
from tests.support.in_guest import ROOT, told_inside
from verifier.microvm.kernels import default_kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What guest_host_lab.py printed."""
    settings = load_settings()
    kernel = default_kernel(settings)
    target = prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
    path = tmp_path_factory.mktemp("objects") / "trouble.o"
    source = ROOT / "tests" / "fixtures" / "policies" / "trouble.bpf.c"
    path.write_bytes(compile_policy(source, "trouble", target).object_bytes)
    return told_inside(settings.cache_dir, kernel, "guest_host_lab.py", path, timeout_s=200)


def test_each_run_has_its_scheduler_and_the_default_is_back_after_it(seen):
    assert seen["default"]["printed"] == ["disabled"]
    assert seen["policy"]["printed"] == ["enabled", "trouble"]
    assert seen["after it"] == "disabled"
    for name in ("default", "policy"):
        assert seen[name]["failure"] == ""
        assert 0 < seen[name]["cpu_ns"] <= 1.2 * seen[name]["wall_ns"]


def test_root_sees_what_the_tasks_of_the_workload_do(seen):
    figures, records = seen["observed"]
    assert figures["printed"] == ["disabled"]
    assert records >= 2, "the shell and cat"


def test_the_default_scheduler_is_back_when_who_measures_is_killed(seen):
    """Kills of schedagentd, and of both, are in the matrix of its own faults."""
    assert seen["killed"]["took"] < 4, "an emulated CPU takes a second or two to free a policy"
    assert seen["killed"]["state"] == "disabled"
    assert seen["killed"]["status"] == -9
