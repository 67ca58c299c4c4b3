"""schedagentd under attack on a real sched_ext kernel: one run of guest_attack.py, then a test for each attack.

Bounds are those of the design (a sample and the bound of starvation, a lease, systemd's watchdog), with much on top:
the machine is emulated, beside others. Without what is tested none of these policies would ever end, or somebody else
would end it, with another cause.
"""

import re

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from schedagent.core.settings import load_settings
from tests.support.in_guest import ROOT, told_inside
from verifier.microvm.kernels import default_kernel

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

STARVE = (ROOT / "tests/fixtures/policies/starve.bpf.c").read_text()
LEASE_S, STARVATION_S, WATCHDOG_S, EMULATED_S = 6.0, 3.0, 3.0, 20.0


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What guest_attack.py printed."""
    settings = load_settings()
    kernel = default_kernel(settings)
    target = prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
    folder = tmp_path_factory.mktemp("objects")
    sources = {
        "starve": STARVE,
        "greedy": large("greedy", "char large[100 << 20];"),
        # The record lies in .bss here, behind 12 MiB and before 12 more.
        "sprawling": large("sprawling", "char before[12 << 20];\nchar zz_behind[12 << 20];"),
    }
    objects = []
    for name, text in sources.items():
        source = folder / f"{name}.bpf.c"
        source.write_text(text)
        objects.append(folder / f"{name}.o")
        objects[-1].write_bytes(compile_policy(source, name, target).object_bytes)
    return told_inside(settings.cache_dir, kernel, "guest_attack.py", *objects, timeout_s=300)


def large(name: str, variables: str) -> str:
    """The policy under another name, with more in its data sections."""
    text = STARVE.replace("starve", name)
    return text.replace("void SCX_CALLBACK", f"{variables}\n\nvoid SCX_CALLBACK", 1)


def test_it_is_out_of_reach_of_what_it_loads(seen):
    protected = seen["protected"]
    assert (protected["policy"], protected["oom"]) == (True, -900)
    assert protected["locked_kib"] > 0
    assert protected["rss_kib"] < 45 * 1024


def test_a_policy_that_starves_everything_is_ended_by_it_before_the_kernel_would(seen):
    assert seen["starved"]["end"] == "starvation"
    assert seen["starved"]["lasted_s"] < STARVATION_S + EMULATED_S


def test_a_fork_bomb_prolongs_no_lease(seen):
    bombed = seen["bombed"]
    assert bombed["end"] == "lease lapsed"
    assert bombed["refused forks"] > 100
    assert bombed["lasted_s"] < LEASE_S + EMULATED_S


def test_a_memory_hog_keeps_no_policy_in_charge(seen):
    assert seen["hungry"]["alive"], "others are killed for memory"
    assert seen["hungry"]["lasted_s"] < EMULATED_S


def test_a_hundred_mebibytes_are_refused_with_the_reason(seen):
    greedy = seen["greedy"]
    assert (greedy["same"], greedy["end"], greedy["default"], greedy["alive"]) == (
        True,
        "could not be loaded",
        True,
        True,
    )
    assert re.search(r"may take 200\.\d MiB", greedy["detail"]), greedy["detail"]


def test_what_is_allowed_is_not_read(seen):
    sprawling = seen["sprawling"]
    assert sprawling["rss_kib"] < (45 + 24) * 1024, "libbpf keeps the initial content of a section; nothing is copied"
    assert (sprawling["end"], "sysrq" in sprawling["detail"]) == ("exited by itself", True)


def test_a_daemon_that_is_stopped_keeps_no_policy_in_charge_and_it_is_blamed(seen):
    stopped = seen["stopped"]
    assert stopped["lasted_s"] < WATCHDOG_S + EMULATED_S
    assert stopped["end"] == "schedagentd or the machine died during its probation"


def test_a_full_disk_prolongs_no_lease(seen):
    assert seen["full"]["end"] == "lease lapsed"
    assert seen["full"]["lasted_s"] < LEASE_S + EMULATED_S


@pytest.mark.parametrize(
    ("order", "limit_s"), [("keeper first", 2 * LEASE_S + EMULATED_S), ("schedagentd first", None)]
)
def test_a_pinned_policy_ends_when_nothing_of_ours_can_be_started(seen, order, limit_s):
    killed = seen[order]
    assert killed["survived"], "it was pinned"
    assert killed["refused"] != 0
    assert killed["left"] == []
    assert limit_s is None or killed["lasted_s"] < limit_s
    assert killed["end"] in ("lease lapsed", "schedagentd died")


def test_nothing_is_left(seen):
    assert seen["ended"] == 0
