"""An experiment with policies really in charge: one run of guest_experiment.py."""

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from kernel_bpf.policies.library import load_library
from schedagent.core.settings import load_settings
from tests.support.in_guest import told_inside
from verifier.microvm.kernels import default_kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What guest_experiment.py printed."""
    settings = load_settings()
    kernel = default_kernel(settings)
    target = prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
    folder = tmp_path_factory.mktemp("objects")
    content = compile_policy(load_library()["fifo"].source, "fifo", target).object_bytes
    (folder / "fifo.o").write_bytes(content)
    return told_inside(settings.cache_dir, kernel, "guest_experiment.py", folder, timeout_s=560)


def test_a_policy_that_helps_the_service_is_better(seen):
    """`fifo`, which knows no weights, for nice work beside six hogs: everybody has the same then."""
    helps = seen["helps"]
    assert helps["outcome"] == "better", helps
    assert helps["ratio"] > 1.5
    assert helps["pulses"] == helps["pairs"], "one pulse for each pair"
    assert helps["state"] == "disabled"


def test_a_policy_that_harms_the_service_is_ended_within_one_pulse(seen):
    """`fifo` with slices of 100 ms."""
    harms = seen["harms"]
    assert harms["outcome"] == "worse", harms
    assert "ended, for it did harm" in harms["reason"]
    assert harms["pulses"] == 1
    assert harms["state"] == "disabled"


def test_what_runs_is_classified(seen):
    kind, *evidence = seen["profile"]
    assert kind == "latency-sensitive", evidence
