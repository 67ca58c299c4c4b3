"""Where a run measures: in the micro-VM, on this machine, or on this machine if it can."""

from __future__ import annotations

import pytest

from kernel_bpf.load.sched_ext import KernelState
from schedagent.core.errors import UsageError
from schedagent.core.policies.program import SchedulerProgram
from schedagent.core.policies.proposal import Origin, Proposal
from schedagent.hostlab import lab as host_lab
from schedagent.hostlab.lab import HostLab
from schedagent.run import opening
from schedagent.run.options import AUTO, HOST, VM, RunOptions
from tests.support import scripted_lab as scripted
from tests.support.scripted_lab import Script

PROGRAM = Proposal(Origin.PROGRAM, "scx_ours", program=SchedulerProgram("/usr/bin/scx_ours", (), "ab" * 32))


@pytest.fixture
def script(tmp_path) -> Script:
    (tmp_path / "state").mkdir()
    return Script(tmp_path, ratios={})


@pytest.fixture
def able(script, monkeypatch):
    """Say whether something can be measured on this machine."""
    reasons = [""]
    monkeypatch.setattr(host_lab, "why_not_here", lambda _daemon, _release: reasons[-1])
    monkeypatch.setattr(opening, "open_lab", lambda _settings: scripted.Lab(script))
    monkeypatch.setattr(opening, "default_kernel", lambda _settings: type("Kernel", (), {"release": "7.0"}))
    return reasons


def test_a_run_measures_where_it_was_asked_to(able, script):
    for asked, here, there in ((VM, VM, VM), (HOST, HOST, None), (AUTO, HOST, VM)):
        able.append("")
        assert opening.placed(script.settings, RunOptions(on=asked)).on == here
        able.append("it has no sched_ext")
        if there is None:
            with pytest.raises(UsageError, match="--on host: it has no sched_ext"):
                opening.placed(script.settings, RunOptions(on=asked))
        else:
            assert opening.placed(script.settings, RunOptions(on=asked)).on == there


def test_a_program_is_not_started_on_this_machine(able, script):
    assert opening.placed(script.settings, RunOptions(on=AUTO, schedulers=(PROGRAM,))).on == VM
    with pytest.raises(UsageError, match="in the micro-VM only"):
        opening.placed(script.settings, RunOptions(on=HOST, schedulers=(PROGRAM,)))


def test_a_stored_run_is_opened_where_it_was(able, script):
    stored = RunOptions.from_json({"rules": {}, "on": HOST})
    lab = opening.open_place(script.settings, stored)
    assert isinstance(lab, HostLab)
    assert (lab.hardware.lab, lab.costs()) == ("host", None)
    assert not isinstance(opening.open_place(script.settings, RunOptions.from_json({"rules": {}})), HostLab)


def test_this_very_machine_is_asked(monkeypatch):
    monkeypatch.setattr(host_lab, "kernel_state", lambda: KernelState(available=False))
    assert "has no sched_ext" in host_lab.why_not_here(opening.DaemonClient(), "7.0")
