"""What separates the lab from the host: out of two answers, or none if they cannot be true."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schedagent.core.errors import SetupError, VmLost
from schedagent.core.trials.usage import MachineCosts
from verifier.lab import costs, vm
from verifier.lab.costs import compare, probe_host
from verifier.lab.vm import VmLab
from verifier.microvm.jobs import CostsAnswer, MeasureCosts

LAB, HOST = CostsAnswer(28_000_000, 64_000.0), CostsAnswer(1_400_000, 2000.0)


def test_kappa_is_the_time_of_the_work_in_the_lab_by_that_on_the_host() -> None:
    assert compare(LAB, HOST) == MachineCosts(20.0, 64_000.0, 2000.0)


@pytest.mark.parametrize(
    ("lab", "host"),
    [
        (replace(LAB, switch_ns=-5.0), HOST),
        (LAB, replace(HOST, switch_ns=0.0)),
        (replace(LAB, work_ns=1_000_000), HOST),
        (LAB, replace(HOST, work_ns=0)),
    ],
)
def test_figures_that_cannot_be_true_are_none(lab, host, caplog) -> None:
    assert compare(lab, host) is None
    assert "too busy" in caplog.text


def test_a_probe_that_cannot_run_is_told(monkeypatch) -> None:
    monkeypatch.setattr(costs, "_PROGRAM", "raise SystemExit('no such thing')")
    with pytest.raises(SetupError, match="no such thing"):
        probe_host()


class Machine:
    def __init__(self, answers) -> None:
        self._answers = answers
        self.closed = 0

    def __enter__(self):
        return self

    def __exit__(self, *_error) -> None:
        self.closed += 1

    def call(self, job, _timeout_s):
        assert job == MeasureCosts()
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer.to_json()


class Lab(VmLab):
    def __init__(self, *answers, kvm=False) -> None:
        super().__init__(None, None, cpus=2, memory_mib=512, kvm=kvm, environment={})
        self.machine = Machine(list(answers))

    def open(self, *, hostfs):
        return self.machine


@pytest.fixture
def host(monkeypatch) -> None:
    monkeypatch.setattr(vm, "probe_host", lambda: HOST)


@pytest.mark.usefixtures("host")
def test_an_emulated_lab_is_measured_in_a_machine_of_its_own() -> None:
    lab = Lab(LAB)
    assert lab.costs() == MachineCosts(20.0, 64_000.0, 2000.0)
    assert lab.machine.closed == 1


@pytest.mark.usefixtures("host")
def test_a_machine_lost_meanwhile_is_replaced_once() -> None:
    assert Lab(VmLost("gone"), LAB).costs() == MachineCosts(20.0, 64_000.0, 2000.0)
    with pytest.raises(VmLost):
        Lab(VmLost("gone"), VmLost("gone")).costs()


def test_under_kvm_there_is_nothing_to_measure() -> None:
    assert Lab(kvm=True).costs() is None
