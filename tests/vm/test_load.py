"""The loader on a real sched_ext kernel: one run of guest_load.py inside a micro-VM, then one test for each fact."""

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from schedagent.core.settings import load_settings
from tests.support.in_guest import ROOT, told_inside
from verifier.microvm.kernels import default_kernel

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

FIXTURES = ROOT / "tests" / "fixtures"
SOURCES = ("policies/trouble", "policies/unreadable", "foreign/sx_visitor", "foreign/sx_silent", "foreign/sx_traced")
INCLUDE = FIXTURES / "foreign" / "include"


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What guest_load.py printed."""
    settings = load_settings()
    kernel = default_kernel(settings)
    target = prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
    folder = tmp_path_factory.mktemp("objects")
    objects = []
    for source in (FIXTURES / f"{name}.bpf.c" for name in SOURCES):
        name = source.name.removesuffix(".bpf.c")
        objects.append(folder / f"{name}.o")
        objects[-1].write_bytes(compile_policy(source, name, target, include_dirs=(INCLUDE,)).object_bytes)
    return told_inside(settings.cache_dir, kernel, "guest_load.py", *objects, timeout_s=100)


def test_a_policy_is_enabled_only_while_attached(seen):
    orderly = seen["orderly"]
    assert orderly["state before"]["state"] == "disabled"
    assert not orderly["enabled before"]
    assert orderly["enabled"]
    assert (orderly["state"]["state"], orderly["state"]["ops"]) == ("enabled", "trouble")
    assert orderly["state"]["switch_all"]
    assert orderly["state"]["enable_seq"] == orderly["state before"]["enable_seq"] + 1
    assert orderly["state"]["events"]
    assert not orderly["enabled after"]
    assert (orderly["state after"]["state"], orderly["state after"]["ops"]) == ("disabled", "")


def test_tunables_maps_and_tracing_programs_reach_the_kernel(seen):
    orderly = seen["orderly"]
    assert (orderly["history_of_42"], orderly["class_of_42"], orderly["slice_us"]) == (2**40, 3, 300)
    assert orderly["execs"] >= 1


def test_the_kernel_verifier_tells_its_figures(seen):
    stats = seen["orderly"]["stats"]
    assert set(stats) == {f"trouble_{name}" for name in ("exec", "enqueue", "running", "init", "exit")}
    for figures in stats.values():
        assert figures["instructions"] > 0
        assert figures["verified_instructions"] > 0
        assert figures["jited_bytes"] > 0


def test_an_orderly_end_is_no_ejection(seen):
    orderly = seen["orderly"]
    assert orderly["exit while enabled"] is None
    assert (orderly["exit"]["kind"], orderly["exit"]["kind_name"]) == (64, "unregistered")
    assert orderly["same exit"]
    assert orderly["exit after close"]


def test_a_second_policy_is_refused_and_harms_nothing(seen):
    kind, message = seen["orderly"]["second"]
    assert kind == "KernelRejected"
    assert "Device or resource busy" in message
    assert "'trouble' is loaded already" in message
    assert seen["orderly"]["enabled after second"] == [True, False]


def test_a_failing_init_is_a_rejection_with_the_reason(seen):
    kind, message = seen["init"]["raised"]
    assert kind == "KernelRejected"
    assert "ops.init() failed (-22)" in message
    assert not seen["init"]["enabled"]


def test_a_policy_that_raises_an_error_never_looks_alive(seen):
    error = seen["error"]
    assert error["ejected"]
    assert not error["enabled"]
    assert error["exit"]["kind"] == 1025
    assert "fault 2 was asked for" in error["exit"]["message"]
    assert error["state"] == "disabled"


def test_a_policy_that_loses_tasks_is_seen_to_stall(seen):
    stall = seen["stall"]
    assert stall["ejected"]
    assert stall["exit"]["kind_name"] == "stall"
    assert "failed to run for" in stall["exit"]["message"]
    assert stall["lasted_s"] < 5
    assert stall["state"] == "disabled"


def test_the_kernel_verifier_log_is_handed_on(seen):
    kind, message = seen["unreadable"]
    assert kind == "KernelRejected"
    assert "unreadable_enqueue" in message
    assert "invalid mem access 'scalar'" in message


def test_a_forked_process_cannot_keep_a_policy_attached(seen):
    assert seen["heir"] == [["nothing was raised", ""], "disabled"]


def test_what_does_not_fit_is_refused_before_attach(seen):
    assert seen["no tunable"][0] == "TunableError"
    assert seen["full map"][0] == "PolicyError"
    assert "room for 16 entries, not for 17" in seen["full map"][1]


def test_what_root_ops_shows_is_the_name_in_the_ops_struct(seen):
    assert seen["another name"] == ["trouble", "trouble", True]


def test_a_policy_from_elsewhere_gets_its_constants_and_tells_why_it_ended(seen):
    visitor = seen["visitor"]  # its init fails unless the constants were filled in
    assert (visitor["raised"][0], visitor["enabled"], visitor["ops"]) == ("nothing was raised", True, "visitor")
    assert visitor["exit"]["kind"] == 64
    losing = seen["losing visitor"]
    assert losing["exit"]["kind_name"] == "stall"
    assert "failed to run for" in losing["exit"]["message"]
    assert losing["lasted_s"] < 4, "the watchdog was shortened from 5 s to 1 s"


def test_a_policy_that_records_nothing_is_judged_by_sysfs(seen):
    silent, leaving = seen["silent"], seen["leaving"]
    assert (silent["enabled"], silent["ops"], silent["records"], silent["exit"]) == (True, "silent", False, None)
    assert silent["lasted_s"] >= 0.2
    assert leaving["exit"] is None
    assert not leaving["enabled"] or leaving["lasted_s"] < 10
    if leaving["raised"][0] != "nothing was raised":
        assert "the policy records no exit information" in leaving["raised"][1]


def test_a_program_that_traces_a_function_is_attached_with_its_policy(seen):
    traced = seen["traced"]
    assert (traced["enabled"], traced["untraced"]) == (True, [])
    assert traced["calls"] > 1


def test_nothing_stays_loaded(seen):
    assert (seen["at the end"]["state"], seen["at the end"]["ops"]) == ("disabled", "")
