"""`schedagent experiment`: a process that runs, a real Prometheus API, a real schedagentd over a scripted kernel.

tests/vm/test_experiment_in_vm.py has the same with real policies in charge.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kernel_bpf.load.sched_ext import KernelState
from schedagent.client.daemon import DaemonClient
from schedagent.core.trials.trial import DEFAULT_ARM
from schedagent.experiment import rule, windows
from schedagent.experiment import service as measuring
from schedagent.experiment.counters import BUILT_IN, OWN_WAITING, Counters
from schedagent.hostlab import lab as host_lab
from schedagent.run import opening
from tests.support.command_line import refused
from tests.support.daemon_processes import until
from tests.support.running_service import Experiments, service


@pytest.fixture
def running():
    with service() as process:
        yield process


@pytest.fixture
def experiments(folders, kernel, run, monkeypatch):
    made = Experiments(folders, kernel, run, monkeypatch)
    yield made
    made.close()
    made.daemon.tell_kernel("reset")


def report_of(result, status):
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def stored(experiments, run):
    """The blocks of a run, as they are stored."""
    with experiments.script.repository() as repository:
        return repository.blocks(run, 0)


def test_a_policy_that_helps_is_better_and_the_default_scheduler_is_in_charge_again(experiments, running):
    words = ("--policy", "plain", "--guard-query", "errors=e:lower:90%", "--json")
    report = report_of(experiments(running.pid, *words), 0)
    assert (report["best"]["policy"], report["outcome"]) == ("plain", "better")
    assert not experiments.daemon.state["enabled"]
    blocks = stored(experiments, report["run"])
    pairs = report["iterations"][0]["candidates"][0]["verdict"]["pairs"]
    assert len(blocks) == pairs + 1 == experiments.timeline.pulses + 1, "a warm-up, and a pulse for each pair"
    orders = {tuple(sample.arm == DEFAULT_ARM for sample in block.samples) for block in blocks[1:]}
    assert orders == {(True, False), (False, True)}, "in random order"
    ranges = [float(fields["end"]) - float(fields["start"]) for _path, fields in experiments.prometheus.asked_for[::2]]
    assert all(seconds > 0.15 for seconds in ranges), "the wash-out is left out"
    every_face(experiments, running, report["run"])


def every_face(experiments, running, run):
    shown = experiments.run("runs", "show", run).stdout
    assert f"experiment on 'pid {running.pid}'" in shown
    assert "Verdict: plain is better: at least" in shown
    assert f"Next: schedagent deploy {run}" in shown, "it has a token, as a winner of optimize has"
    assert "Measured on this machine by pulses, without a restart" in shown
    markdown = experiments.run("runs", "report", run).stdout
    assert f"schedagent experiment --pid {running.pid} --metric-query" in markdown
    assert "--policy plain --window 0.25s --wash-out 0.05s --for 30s" in markdown
    assert "wall time" not in shown + markdown, "a window is as long as it is"
    refused(experiments.run("runs", "replay", run), "is an experiment, which cannot be replayed")
    page = experiments.script.folder / "page.html"
    assert experiments.run("runs", "report", run, "--html", page).exit_code == 0
    assert "pid" in page.read_text()


def test_the_default_in_disguise_has_no_useful_gain(experiments, running):
    experiments.ratio, experiments.noise = 1.0, 0.005
    report = report_of(experiments(running.pid, "--policy", "plain", "--json"), 3)
    assert [each["verdict"]["outcome"] for each in report["iterations"][0]["candidates"]] == ["no useful gain"]
    assert report["best"] is None
    assert report["deployment"] is None


def test_what_varies_too_much_has_no_answer_in_the_time(experiments, running):
    experiments.ratio, experiments.noise = 0.97, 0.2
    result = experiments(running.pid, "--policy", "plain", "--for", "5s")
    assert result.exit_code == 3
    assert "No answer in the time" in result.stdout
    assert "Next: measure longer (--for)" in result.stdout


def test_a_policy_that_harms_the_metric_has_one_pulse(experiments, running):
    experiments.ratio = 5.0
    report = report_of(experiments(running.pid, "--policy", "plain", "--json"), 3)
    [candidate] = report["iterations"][0]["candidates"]
    assert candidate["verdict"]["outcome"] == "worse"
    assert "ended, for it did harm: what is compared was" in candidate["verdict"]["reason"]
    assert experiments.timeline.pulses == 1


def test_a_policy_that_harms_the_service_is_ended_within_its_window(experiments, running, monkeypatch):
    read = Counters.read

    def slow(self):
        return read(self) | ({OWN_WAITING: 5000.0} if experiments.daemon.state["enabled"] else {})

    monkeypatch.setattr(Counters, "read", slow)
    monkeypatch.setattr(rule, "BUILT_IN", BUILT_IN)
    words = ("--policy", "plain", "--window", "20s", "--for", "300s", "--json")
    monkeypatch.setattr(windows, "TICK_S", 0.05)
    patience(monkeypatch)
    report = report_of(experiments(running.pid, *words), 3)
    [candidate] = report["iterations"][0]["candidates"]
    assert "ended, for it did harm: its waiting for CPUs was 5e+03" in candidate["verdict"]["reason"]
    assert experiments.timeline.pulses == 1
    [_default, window] = sorted(stored(experiments, report["run"])[1].samples, key=lambda sample: sample.arm)
    assert window.wall_ns < 8e9, "half of the 16 s that it would have been measured for"


def patience(monkeypatch):
    """Have windows of the default scheduler take no time."""
    default = windows.Windows.default

    def brief(self):
        whole = self._experiment
        self._experiment = replace(whole, window_s=0.3, wash_out_s=0.1)
        try:
            return default(self)
        finally:
            self._experiment = whole

    monkeypatch.setattr(windows.Windows, "default", brief)
    monkeypatch.setattr(measuring.profile, "LONGEST_S", 0.6)


def test_what_the_circuit_breaker_ends_has_failed(experiments, running):
    def eject():
        until(lambda: experiments.daemon.state["enabled"])
        time.sleep(0.1)
        experiments.daemon.tell_kernel("end_policy")

    ejecting = threading.Thread(target=eject)
    ejecting.start()
    report = report_of(experiments(running.pid, "--policy", "plain", "--json"), 3)
    ejecting.join()
    [candidate] = report["iterations"][0]["candidates"]
    assert candidate["verdict"]["outcome"] == "failed"
    assert re.search("stall|sysfs says 'disabled'", candidate["verdict"]["reason"]), "as soon as it was in charge"
    assert experiments.timeline.pulses == 1


def test_the_next_policy_is_tried_until_one_is_better(experiments, running):
    report = report_of(experiments(running.pid, "--policy", "plain", "--policy", "turns", "--json"), 0)
    outcomes = [each["verdict"]["outcome"] for each in report["iterations"][0]["candidates"]]
    assert outcomes == ["better", "inconclusive"]


def test_without_a_metric_waiting_for_cpus_is_compared(experiments, running):
    report = report_of(experiments(running.pid, "--policy", "plain", "--for", "5s", "--json", metric=False), 3)
    assert report["workload"]["objective"] == "waiting for a CPU"
    samples = stored(experiments, report["run"])[1].samples
    assert all(OWN_WAITING in sample.values and sample.cpu_ns > 0 for sample in samples)


def test_what_is_planned_is_tried(experiments, running, monkeypatch):
    """Without --policy the planner proposes, as for optimize."""
    from agents.observation import build_profile
    from tests.support.scripted_lab import long_tail

    monkeypatch.setattr(measuring.profile, "observe", lambda _target, _seconds: build_profile(long_tail()))
    report = report_of(experiments(running.pid, "--candidates", "1", "--json"), 0)
    assert len(report["iterations"][0]["candidates"]) == 1


# --- cut short --------------------------------------------------------------------------------------------------------


def in_child(work):
    """Do something in a process of its own, whose exit status is that of `guarded`."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status = work()
        finally:
            os._exit(status)
    return child


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_run_that_was_cut_short_is_continued_and_windows_count_once(experiments, running, number, status):
    experiments.ratio, experiments.noise = 0.9, 0.04
    child = in_child(lambda: experiments(running.pid, "--policy", "plain").exit_code)
    until(lambda: experiments.timeline.pulses >= 3)
    until(lambda: experiments.daemon.state["enabled"])
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
    until(lambda: not experiments.daemon.state["enabled"], 2)
    with experiments.script.repository() as repository:
        run = repository.list_runs()[0].id
    before = stored(experiments, run)
    assert len(before) >= 3
    result = experiments.run("resume", run, "--json")
    assert result.exit_code in (0, 3), result.output
    after = stored(experiments, run)
    assert after[: len(before)] == before
    assert [block.number for block in after] == list(range(len(after)))


def test_a_service_that_stops_ends_the_experiment(experiments, running):
    ending = threading.Thread(target=lambda: (until(lambda: experiments.timeline.pulses >= 2), running.kill()))
    ending.start()
    result = experiments(running.pid, "--policy", "plain")
    ending.join()
    assert result.exit_code == 1
    assert f"pid {running.pid} does not run any more: it stopped during the experiment" in result.stderr
    assert "resume" in result.stderr
    assert not experiments.daemon.state["enabled"]


def test_a_metric_that_fails_changes_nothing(experiments, running):
    experiments.prometheus.value = lambda _begin, _end: None
    text = refused(experiments(running.pid, "--policy", "plain"), 'the query "p99" has no number in this window', 1)
    assert "try it in Prometheus" in text
    assert experiments.timeline.pulses == 0
    assert experiments.script.log.count("verify") == 0, "nothing was verified for nothing"


def test_a_metric_that_fails_now_and_then_costs_its_windows(experiments, running):
    value, count = experiments.prometheus.value, iter(range(10_000))
    experiments.prometheus.value = lambda begin, end: None if next(count) in (5, 6) else value(begin, end)
    result = experiments(running.pid, "--policy", "plain")
    assert result.exit_code == 0, result.output
    assert "these windows do not count" in result.stderr


def test_a_metric_that_fails_for_good_ends_it(experiments, running):
    value = experiments.prometheus.value
    experiments.prometheus.value = lambda begin, end: None if experiments.timeline.pulses > 2 else value(begin, end)
    result = experiments(running.pid, "--policy", "plain")
    assert result.exit_code == 1
    assert "has no number in this window" in result.stderr
    assert not experiments.daemon.state["enabled"]


def test_schedagentd_that_is_killed_ends_it_with_the_default_scheduler(experiments, running):
    def kill():
        until(lambda: experiments.timeline.pulses >= 2 and experiments.daemon.state["enabled"])
        os.kill(experiments.daemon.pid, signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    result = experiments(running.pid, "--policy", "plain")
    killing.join()
    assert result.exit_code == 1
    assert "schedagentd" in result.stderr
    assert not experiments.daemon.state["enabled"]


def test_as_many_trials_as_an_hour_may_have_end_it_and_say_nothing_of_the_policy(
    folders, kernel, run, monkeypatch, running
):
    made = Experiments(folders, kernel, run, monkeypatch, trials_per_hour=2)
    try:
        result = made(running.pid, "--policy", "plain")
        assert result.exit_code == 1
        assert "there were 2 trials within an hour, as many as are allowed" in result.stderr
        assert "resume" in result.stderr
        with made.script.repository() as repository:
            run_id = repository.list_runs()[0].id
            assert repository.verdicts(run_id, 0) == {}
            assert len(repository.blocks(run_id, 0)) == 3
    finally:
        made.close()
        made.daemon.tell_kernel("reset")


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_machine_that_runs_something_already_is_left_alone(experiments, running):
    deployed = experiments.daemon.deploy()["deployment"]
    before = experiments.timeline.pulses
    refused(
        experiments(running.pid, "--policy", "plain"),
        'no experiment is possible here: schedagentd runs "good" already',
        1,
    )
    assert experiments.daemon.client.ask("status")["active"]["deployment"] == deployed
    assert experiments.timeline.pulses <= before + 1


def test_a_second_one_at_once_is_refused(experiments, running):
    from tests.support.daemon_processes import Agent, request_of

    request = request_of()
    agent = Agent(experiments.daemon, trial=request, lease_s=60)
    until(lambda: experiments.daemon.client.ask("status")["active"])
    refused(
        experiments(running.pid, "--policy", "plain"), 'schedagentd runs "good" already, and there is one at a time', 1
    )
    agent.kill()


def test_a_user_without_the_right_is_refused(experiments, running, monkeypatch):
    ask = DaemonClient.ask

    def looker(self, verb, **fields):
        return ask(self, verb, **fields) | {"may_change": False}

    assert experiments.daemon.client.ask("status")["may_change"] is True
    monkeypatch.setattr(DaemonClient, "ask", looker)
    refused(experiments(running.pid, "--policy", "plain"), "this user may not have schedagentd try policies", 1)
    assert experiments.timeline.pulses == 0


def test_no_schedagentd_is_one_line(experiments, running, monkeypatch, tmp_path):
    monkeypatch.setattr(opening, "DaemonClient", lambda: DaemonClient(tmp_path / "none.sock"))
    refused(
        experiments(running.pid, "--policy", "plain"), "no experiment is possible here: schedagentd is not running", 1
    )


def test_a_kernel_without_sched_ext_is_one_line(experiments, running, monkeypatch):
    monkeypatch.setattr(host_lab, "kernel_state", lambda: KernelState(False))
    refused(experiments(running.pid, "--policy", "plain"), "the kernel of this machine, .*, has no sched_ext", 1)


def test_candidates_proved_on_another_kernel_are_one_line(experiments, running, monkeypatch):
    monkeypatch.setattr(opening, "default_kernel", lambda _settings: SimpleNamespace(release="0.0-other"))
    refused(experiments(running.pid, "--policy", "plain"), "candidates are proved on 0.0-other", 1)


def test_somebody_elses_scheduler_is_not_compared_with(experiments, running):
    experiments.daemon.tell_kernel("take_over")
    refused(experiments(running.pid, "--policy", "plain"), "somebody else put a scheduler in charge", 1)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "no scopes are named"),
        (("--pid", "1", "--unit", "x"), "2 scopes are named"),
        (("--unit", "no-such-unit-here"), r"unit no-such-unit-here\.service has no cgroup"),
        (("--pid", "1", "--metric-command", "x"), "which way the metric is better is not said"),
        (("--pid", "1", "--metric-command", "x", "--better", "less"), "--better 'less' is not known"),
        (("--pid", "1", "--better", "lower"), "of no use without a metric"),
        (("--pid", "1", "--metric-command", "x", "--metric-log", "f", "x", "--better", "lower"), "2 metrics are named"),
        (("--pid", "1", "--guard-query", "up"), "--guard-query has no server"),
        (("--pid", "1", "--window", "2s", "--wash-out", "3s"), "no longer than its wash-out of 3 s"),
        (("--pid", "1", "--for", "1min"), "no claim is made from fewer than 6"),
        (("--pid", "1", "--policy", "no_such_policy"), "no_such_policy"),
        (
            ("--pid", "1", "--metric-query", "nowhere", "up", "--better", "lower"),
            "not the address of a Prometheus server",
        ),
    ],
)
def test_bad_words_are_refused_before_anything_happens(run, words, why):
    refused(run("experiment", *words), why)
