"""Schedulers with a loader of their own in the real guest: what goes wrong is a clear line, and nothing is left."""

from __future__ import annotations

import os

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from kernel_bpf.policies.library import load_library
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.settings import load_settings
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.run.opening import open_lab
from tests.support.loaders import build_loader, program
from tests.support.paths import FIXTURES
from verifier.lab.vm import LabProgram

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

LOSE = 3
KCONFIG = '#include "queues.bpf.h"\nextern int CONFIG_HZ __kconfig;\n'
WORK = (
    "cat /sys/kernel/sched_ext/state /sys/kernel/sched_ext/root/ops 2>/dev/null; timeout 1 sh -c 'while :; do :; done'"
)
UNDER_DEFAULT = "disabled\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The loader, the objects that it loads, and a file that nobody in the guest is to see."""
    folder = tmp_path_factory.mktemp("loaders")
    folder.chmod(0o755)
    kernel = open_lab(load_settings()).kernel
    target = prepare_target(kernel.vmlinuz, kernel.release, load_settings().cache_dir)
    loses = folder / "trouble.bpf.c"
    loses.write_text((FIXTURES / "policies" / loses.name).read_text().replace("u32 fault = 0;", f"u32 fault = {LOSE};"))
    fifo = load_library()["fifo"].source
    asks = folder / "asks.bpf.c"  # a value of the kernel's configuration, which libbpf looks up
    asks.write_text(KCONFIG + fifo.read_text().replace("return create", "return CONFIG_HZ < 1 ? -22 : create"))
    for name, source in (("fifo", fifo), ("loses", loses), ("asks", asks)):
        (folder / f"{name}.bpf.o").write_bytes(compile_policy(source, name, target).object_bytes)
    build_loader(folder)
    (folder / "script").write_text("#!/nowhere/at/all\n")
    (folder / "script").chmod(0o755)
    (folder / "plain").write_bytes((folder / "scx_ours").read_bytes())
    (folder / "secret").write_text("a signing key\n")
    return folder


@pytest.fixture(scope="module")
def session(folder):
    lab = open_lab(load_settings())
    lab._hidden = [*lab._hidden, str(folder / "secret")]
    with lab.session(WorkloadCommand(f"{WORK}; true", "/", timeout_s=60.0)) as session:
        yield session


@pytest.fixture
def run(session, folder):
    """Run the workload under the loader in a mode, then under the default: what is left behind would show there."""

    def run(mode, *more, loader="scx_ours", policy="fifo", limit_s=60.0):
        started = program(folder / loader, folder / f"{policy}.bpf.o", mode, *more)
        sample = session.run_candidate(LabProgram(CandidatePolicy.of_program(started), limit_s))
        after = session.run_default()
        assert (after.failure, after.output_tail) == ("", UNDER_DEFAULT)
        assert sample.usage.left_behind == after.usage.left_behind == ()
        return sample

    return run


def test_a_good_one_is_in_charge_while_the_workload_runs(run):
    sample = run("good")
    assert (sample.failure, sample.policy_exit) == ("", "")
    assert sample.output_tail == "enabled\nfifo\n"
    assert sample.usage.failure is None
    assert 0 < sample.usage.loader_cpu_ns < sample.cpu_ns
    assert "scx_ours" not in {row.comm for row in sample.usage.commands}


def test_one_may_ask_for_the_kernels_configuration(run):
    assert run("good", policy="asks").failure == ""


@pytest.mark.parametrize(
    ("mode", "failure"),
    [
        (
            "dies",
            "its program ended with exit status 3 before its policy was in charge; "
            r'it printed last: "no such CPU: \x1b[31m7"',
        ),
        (
            "never",
            "its program put no policy in charge: after 4 s sched_ext is 'disabled'; "
            'it printed last: "waiting for better days"',
        ),
        ("deaf", "10 s after SIGINT its program was still running; it printed nothing"),
        ("forks", "10 s after SIGINT 3 processes that its program had started kept its policy; it printed nothing"),
    ],
)
def test_what_goes_wrong_with_one_is_a_clear_line(run, mode, failure):
    sample = run(mode, limit_s=4.0 if mode == "never" else 60.0)
    assert sample.failure == failure


def test_a_policy_that_its_loader_pinned_does_not_outlive_it(run):
    assert run("pins").failure == ""


def test_one_that_goes_into_the_background_cannot_be_watched(run):
    assert run("daemon").failure.startswith("its program ended with exit status 0 ")


def test_100_mb_of_output_are_neither_kept_nor_in_the_way(run):
    sample = run("loud")
    assert sample.failure == ""
    assert sample.usage.output_bytes < 1000


def test_one_whose_policy_the_kernel_ejects_fails_with_the_kernels_reason(run):
    sample = run("good", policy="loses")
    assert sample.policy_exit.startswith("stall: ")
    assert sample.failure.startswith("the kernel ejected the policy: stall: ")


@pytest.mark.parametrize("loader", ["script", "plain"])
def test_what_cannot_be_executed_is_no_scheduler(run, loader):
    reason = {"script": "No such file or directory", "plain": "Permission denied"}[loader]
    assert run("good", loader=loader).failure == (
        "its program ended with exit status 126 before its policy was in charge; "
        f'it printed last: "it cannot be started: {reason}"'
    )


def test_one_sees_no_more_of_the_host_than_the_workload_does(run, folder):
    failure = run("looks", folder / "secret").failure
    assert "hidden: No such file or directory" in failure
    assert "chroot: Operation not permitted" in failure
    assert "cgroup: Read-only file system" in failure
    assert "init: Permission denied" in failure
    assert os.access(folder / "secret", os.R_OK)
