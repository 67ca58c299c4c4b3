"""The bundled policies on a real kernel: they know the tasks they were told about (test_proving.py proves them)."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from kernel_bpf.policies.library import load_library, policy_from_file
from schedagent.core.policies.identity import cmdline_identity
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.settings import load_settings
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.run.opening import open_lab
from tests.support.paths import FIXTURES
from verifier.lab.vm import LabPolicy

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

SHORT, LONG = (cmdline_identity(b"./spin\0" + ms + b"\0") for ms in (b"100", b"700"))


@pytest.fixture(scope="module")
def lab():
    return open_lab(load_settings())


@pytest.fixture(scope="module")
def target(lab):
    return prepare_target(lab.kernel.vmlinuz, lab.kernel.release, load_settings().cache_dir)


def lab_policy(policy, target, changes=None, **inputs):
    candidate = CandidatePolicy(policy.name, policy.configured(changes or {}), **inputs)
    return LabPolicy(candidate, compile_policy(policy.source, policy.name, target))


def test_the_disguise_moves_no_task(lab, target):
    policy = policy_from_file(FIXTURES / "policies" / "aa_disguise.bpf.c")
    workload = WorkloadCommand("cat /sys/kernel/sched_ext/root/ops /sys/kernel/sched_ext/switch_all", "/")
    with lab.session(workload) as session:
        sample = session.run_candidate(lab_policy(policy, target))
    assert sample.output_tail.split() == ["aa_disguise", "0"]


@pytest.mark.slow
def test_longest_first_knows_the_long_task_by_its_command_line(lab, target):
    """The short tasks only differ by their argument, so the ratio shows that both hashes of it agree."""
    policy = lab_policy(load_library()["longest_first"], target, history=((SHORT, 100_000_000), (LONG, 700_000_000)))
    workload = WorkloadCommand("./batch.sh 9 100 700", str(FIXTURES / "longtail"), prepare="make -s spin")
    ratios = []
    with lab.session(workload) as session:
        session.run_default()
        for _ in range(4):
            ratios.append(session.run_candidate(policy).wall_ns / session.run_default().wall_ns)
    assert sorted(ratios)[1] < 0.9, ratios


def test_layered_gives_a_class_its_share(lab, target):
    """Two spinners on one CPU, told apart by an argument; the one that starts with /tmp/ must not count."""
    spin = "import os,sys,time\nend=float(os.environ['END'])\n"
    spin += "while time.monotonic()<end-5: pass\n"  # both have started by then, on a busy host too
    spin += "begun=time.process_time()\nwhile time.monotonic()<end: pass\n"
    spin += "os.write(1,f'{sys.argv[1]} {time.process_time()-begun};'.encode())"
    lines = [b"\0".join([sys.executable.encode(), b"-c", spin.encode(), word, b""]) for word in (b"many", b"few")]
    many, few = map(cmdline_identity, lines)
    words = [
        ["taskset", "-c", "0", sys.executable, "-c", spin, *rest] for rest in (("many", "/tmp/x1"), ("few", "/tmp/x2"))
    ]
    command = "export END=$(awk '{print $1+10}' /proc/uptime); "
    command += " & ".join(map(shlex.join, words)) + " & wait"
    policy = lab_policy(
        load_library()["layered"], target, {"share_1": 400, "share_3": 100}, classes=((many, 1), (few, 3))
    )
    with lab.session(WorkloadCommand(command, "/")) as session:
        output = session.run_candidate(policy).output_tail
    used = {word: float(seconds) for word, seconds in re.findall(r"(many|few) ([\d.]+)", output)}
    assert used["many"] / used["few"] == pytest.approx(4, rel=0.3), output
