"""What the kernel of a shaped guest sees, and what the proving ground shows there that a flat guest does not."""

from __future__ import annotations

import json
import sys

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from schedagent.core.errors import HostBusy, KernelRejected
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.rules import RULES
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_lab
from tests.corpus import load_corpus
from tests.support.no_verdict import no_verdict
from verifier.ejection import rule_of_exit
from verifier.lab.vm import LabPolicy
from verifier.microvm import jobs
from verifier.microvm.topology import SHAPED, Topology
from verifier.proving.prove import SHAPED_PHASES, Depth

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

CORPUS = load_corpus()
SHOWN = ("kicks_the_first_two", "two_bits_of_the_cpu")
"""Of the policies that only a shape shows: an unfair and an unsafe one. `make test-verifier` takes them all."""

BY_DOMAIN = ("node_queues",)

SYSFS = """
import json
from pathlib import Path
system = Path("/sys/devices/system")
def every(pattern):
    return sorted({path.read_text().strip() for path in system.glob(pattern)})
def total_kib(node):
    return int((node / "meminfo").read_text().split("MemTotal:")[1].split()[0])
print(json.dumps({
    "nodes": every("node/node*/cpulist"),
    "llcs": every("cpu/cpu*/cache/index3/shared_cpu_list"),
    "second_level": every("cpu/cpu*/cache/index2/shared_cpu_list"),
    "siblings": every("cpu/cpu*/topology/thread_siblings_list"),
    "distances": every("node/node*/distance"),
    "memory_kib": [total_kib(node) for node in sorted(system.glob("node/node[0-9]*"))],
}))
"""


@pytest.fixture(scope="module")
def lab():
    return open_lab(load_settings())


def test_the_guest_kernel_sees_nodes_caches_and_threads(lab):
    with lab.open(hostfs=True, topology=SHAPED) as machine:
        job = jobs.RunWorkload(
            command=f"'{sys.executable}' -ISc '{SYSFS}'",
            directory="/",
            prepare="",
            environment={"PATH": "/usr/bin:/bin"},
            timeout_s=60,
            uid=0,
            gid=0,
            groups=[0],
        )
        answer = machine.call(job, 120)
    assert answer["exit_status"] == 0, answer["output"]
    seen = json.loads(answer["output"].splitlines()[-1])
    memory_kib = seen.pop("memory_kib")
    pairs = ["0-1", "2-3", "4-5", "6-7"]
    assert seen == {
        "nodes": ["0-3", "4-7"],
        "llcs": pairs,
        "second_level": pairs,
        "siblings": pairs,
        "distances": ["10 20", "20 10"],
    }
    assert min(memory_kib) > 0.8 * max(memory_kib)


@pytest.fixture(scope="module")
def cell_of(lab):
    """Return the machine of a policy of the corpus."""
    target = prepare_target(lab.kernel.vmlinuz, lab.kernel.release, load_settings().cache_dir)

    def cell(entry):
        artifact = compile_policy(entry.info.source, entry.name, target)
        return lab.cell(LabPolicy(CandidatePolicy(entry.name, entry.info.configured({})), artifact))

    return cell


def named(entry):
    return entry.name


def rules_broken_on(cell, topology):
    """The rules that a policy may be held to break by what it does on this shape."""
    try:
        answer = cell.prove_on(topology, Depth.STANDARD)
    except KernelRejected as error:
        return {rule_of_exit(str(error))}
    except HostBusy as error:
        no_verdict(error.message)
    failed = {result["name"] for result in answer.results if not result["ok"]}
    assert {result["topology"] for result in answer.results} == {str(topology)}
    return {number for number, rule in RULES.items() if failed & set(rule.checks)}


@pytest.mark.parametrize("entry", [entry for entry in CORPUS if entry.name in SHOWN], ids=named)
def test_what_only_another_shape_shows(entry, cell_of):
    with cell_of(entry) as cell:
        assert entry.rule in rules_broken_on(cell, Topology.parse(entry.topology))


@pytest.mark.parametrize("entry", [entry for entry in CORPUS if entry.name in SHOWN], ids=named)
def test_two_flat_cpus_do_not_show_it(entry, cell_of):
    with cell_of(entry) as cell:
        answer = cell.prove(Depth.QUICK, ["work conservation", "mix"])
    assert not answer.exit_text
    assert all(result["ok"] for result in answer.results if result["name"] == entry.oracle), answer.results


@pytest.mark.parametrize("entry", [entry for entry in CORPUS if entry.name in BY_DOMAIN], ids=named)
def test_what_goes_by_caches_and_nodes_as_it_should_passes(entry, cell_of):
    try:
        with cell_of(entry) as cell:
            answer = cell.prove_on(SHAPED, Depth.STANDARD)
    except HostBusy as error:
        no_verdict(error.message)
    assert answer.exit_text == ""
    assert len(answer.results) == sum(len(phase.oracles) for phase in SHAPED_PHASES)
    assert [result for result in answer.results if not result["ok"]] == []
