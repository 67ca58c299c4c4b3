"""Measuring over MCP: a run of its own, on a workload that was run before, with a scripted lab."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import schedagent
from agents.llm.calling import try_tool
from agents.llm.exchange import ToolCall
from agents.tools.catalog import all_tools
from repo_store.records import RunStatus
from schedagent.core.errors import PolicyError, TunableError, UsageError
from schedagent.core.policies.proposal import Origin, Proposal
from schedagent.core.trials.trial import DEFAULT_ARM, Outcome
from schedagent.mcp.workbench import open_services
from tests.support import scripted_lab as scripted
from tests.support.killed_runs import held, measure_over_mcp
from tests.support.model_server import ModelServer
from tests.support.scripted_lab import Script
from tests.support.scripted_model import SPEC, Mind, on

LONGEST = Proposal(origin=Origin.CONFIGURE, policy="longest_first", tunables={"slice_us": 7000})


@pytest.fixture
def script(tmp_path):
    (tmp_path / "state").mkdir()
    made = Script(tmp_path, faults={"fifo": "attach"}, options=scripted.OPTIONS, signs=True)
    with made.in_place():
        yield made


@pytest.fixture
def earlier(script) -> str:
    """A finished run."""
    run_id = script.create()
    script.drive(run_id)
    return run_id


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def services(script, earlier, lines):
    with open_services(script.settings, {}, measures=True, progress=lines.append) as now:
        yield now()


def test_it_is_a_run_with_samples_verdict_and_report(services, script, earlier, lines):
    observed = script.log.count("observe")
    new = services.bench.measure(LONGEST, earlier, 600)
    records = services.records
    assert records.run(new).status is RunStatus.FINISHED
    assert records.run(new).workload == records.run(earlier).workload
    assert records.profile(new) == records.profile(earlier)
    assert script.log.count("observe") == observed
    [candidate] = records.plan(new, 0).candidates
    assert records.verification(new, candidate.key).token
    assert records.run(new).report["deployment"] is None, "a token was issued to whoever asked"
    assert dict(candidate.tunables)["slice_us"] == 7000
    assert candidate.history, "its input is filled from the profile"
    assert records.verdicts(new, 0)[candidate.key].outcome is Outcome.BETTER
    assert len(records.blocks(new, 0)) > 6
    assert lines[0].startswith(f"run {new}: ")
    assert any(line.startswith("measuring: 1 done") for line in lines)


def test_the_tool_tells_the_verdict(services, earlier):
    arguments = json.dumps({"policy": "longest_first", "run": earlier, "minutes": 1})
    answer = try_tool(all_tools(services), ToolCall("", "measure_policy", arguments))
    assert not answer.failed
    assert "longest_first" in answer.text
    assert "better, candidate / default 0." in answer.text


def test_a_policy_that_fails_a_gate_is_not_measured(services, earlier):
    new = services.bench.measure(Proposal(origin=Origin.CONFIGURE, policy="fifo"), earlier, 600)
    [candidate] = services.records.plan(new, 0).candidates
    assert services.records.verdicts(new, 0)[candidate.key].outcome is Outcome.FAILED
    assert services.records.blocks(new, 0) == []


def test_it_is_refused_unless_the_server_may(script, earlier):
    with open_services(script.settings, {}, measures=False) as now:
        services = now()
        assert "measure_policy" not in {tool.name for tool in all_tools(services)}
        with pytest.raises(UsageError, match="may not run workloads"):
            services.bench.measure(LONGEST, earlier, 600)
        assert len(services.records.list_runs()) == 1


def test_a_stop_leaves_a_run_that_can_be_resumed(services, script, earlier, monkeypatch):
    def stop(_lab, _workload):
        raise KeyboardInterrupt

    monkeypatch.setattr(scripted.Lab, "session", stop)
    with pytest.raises(KeyboardInterrupt):
        services.bench.measure(LONGEST, earlier, 600)
    newest = services.records.list_runs(1)[0]
    assert newest.status is RunStatus.INTERRUPTED
    assert services.records.plan(newest.id, 0).candidates


def test_a_verification_keeps_its_report_without_the_token(script, earlier):
    reports = {}
    with open_services(script.settings, reports, measures=False) as now:
        bench = now().bench
        candidate = bench.make(LONGEST, earlier)
        assert bench.verify(candidate, static=False).passed
        assert reports[candidate.key].token == ""
        assert candidate.history != bench.make(LONGEST, "").history == ()


def finished(script: Script, services, run_id: str) -> None:
    """A measured run is complete, of the candidate that was asked for, and observed nothing again."""
    records = services.records
    record = records.run(run_id)
    assert record.status is RunStatus.FINISHED
    assert record.report["deployment"] is None
    assert script.log.count("observe") == 1
    [candidate] = records.candidates(run_id, 0)
    assert records.iterations(run_id) == [0]
    assert records.verdicts(run_id, 0)[candidate.key].outcome is Outcome.BETTER
    for block in records.blocks(run_id, 0):
        assert [sample.arm for sample in block.samples].count(DEFAULT_ARM) == 1


@pytest.mark.parametrize(
    ("where", "further"),
    [
        ("before save_profile", 1),
        ("before save_plan", 1),
        ("after save_plan", 1),
        ("before save_verification", 1),
        ("run", 7),
        ("before add_block", 3),
        ("before save_verdict", 1),
        ("before finish_run", 1),
    ],
)
def test_killed_in_the_middle_it_is_resumed_to_its_end(services, script, earlier, where, further):
    child_script = replace(script, hold=f"{where} {script.log.count(where) + further}")
    child = held(child_script, measure_over_mcp, child_script, earlier, LONGEST)
    child.kill()
    child.join()
    new = services.records.list_runs(1)[0]
    assert (new.status, new.id != earlier) == (RunStatus.RUNNING, True)
    before = services.records.blocks(new.id, 0)
    report = schedagent.resume(new.id, settings=script.settings)
    finished(script, services, new.id)
    assert services.records.blocks(new.id, 0)[: len(before)] == before, "a finished block was lost or measured again"
    assert dict(report.best.candidate.tunables)["slice_us"] == 7000
    assert report.best.candidate.policy == "longest_first"


def test_a_policy_that_won_nowhere_yet_is_there_when_its_run_is_resumed(services, script, earlier):
    made = services.bench.make(Proposal(origin=Origin.COMPOSE, policy="tail_first", spec=SPEC), "")
    child_script = replace(
        script, hold=f"before save_plan {script.log.count('before save_plan') + 1}", ratios={"tail_first": 0.8}
    )
    child = held(child_script, measure_over_mcp, child_script, earlier, Proposal(Origin.CONFIGURE, made.policy))
    child.kill()
    child.join()
    new = services.records.list_runs(1)[0].id
    with replace(child_script, hold="").in_place():
        report = schedagent.resume(new, settings=script.settings)
    assert report.best.candidate.policy == "tail_first"
    finished(script, services, new)


def test_what_cannot_be_made_is_refused_before_there_is_a_run(services, earlier):
    with pytest.raises(TunableError, match="slice_us"):
        services.bench.measure(replace(LONGEST, tunables={"slice_us": 0}), earlier, 600)
    with pytest.raises(PolicyError, match="there is no policy 'nothing'"):
        services.bench.measure(replace(LONGEST, policy="nothing"), earlier, 600)
    assert [run.id for run in services.records.list_runs()] == [earlier]


def test_no_model_is_asked(script, earlier):
    mind = Mind([])
    with ModelServer(mind) as server:
        settings = on(script, server).settings
        with open_services(settings, {}, measures=True) as now:
            new = now().bench.measure(LONGEST, earlier, 600)
            assert now().records.run(new).report["model"] is None
    assert mind.asked == []


def test_a_workload_is_observed_again_where_the_hardware_is_another(services, script, earlier, monkeypatch):
    monkeypatch.setattr(scripted, "HARDWARE", replace(scripted.HARDWARE, cpus=4))
    new = services.bench.measure(LONGEST, earlier, 600)
    assert script.log.count("observe") == 2
    [candidate] = services.records.plan(new, 0).candidates
    assert candidate.history
