"""Measuring over MCP: a run of its own, on a workload that was run before, with a scripted lab."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agents.llm.calling import try_tool
from agents.llm.exchange import ToolCall
from agents.tools.catalog import all_tools
from repo_store.records import RunStatus
from schedagent.core.errors import UsageError
from schedagent.core.policies.proposal import Origin, Proposal
from schedagent.core.trials.trial import Outcome
from schedagent.mcp import workbench
from schedagent.mcp.workbench import open_services
from tests.support import scripted_lab as scripted
from tests.support.scripted_lab import Script


class Signing(scripted.Verifier):
    """Hands out a token with every report."""

    def verify(self, candidate, info):
        verified = super().verify(candidate, info)
        return replace(verified, report=replace(verified.report, token="sat2.a.b.c"))


LONGEST = Proposal(origin=Origin.CONFIGURE, policy="longest_first", tunables={"slice_us": 7000})


@pytest.fixture
def script(tmp_path, monkeypatch) -> Script:
    (tmp_path / "state").mkdir()
    made = Script(tmp_path, faults={"fifo": "attach"}, options=scripted.OPTIONS, signs=True)
    monkeypatch.setattr(workbench, "open_lab", lambda _settings: scripted.Lab(made))
    monkeypatch.setattr(workbench, "open_verifier", lambda _settings: Signing(made))
    return made


@pytest.fixture
def earlier(script) -> str:
    """A finished run."""
    run_id = script.create()
    script.drive(run_id)
    return run_id


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def services(script, earlier, told):
    with open_services(script.settings, {}, measures=True, tell=told.append) as now:
        yield now()


def test_it_is_a_run_with_samples_verdict_and_report(services, script, earlier, told):
    observed = script.log.count("observe")
    new = services.bench.measure(LONGEST, earlier, 600)
    records = services.records
    assert records.run(new).status is RunStatus.FINISHED
    assert records.run(new).workload == records.run(earlier).workload
    assert records.profile(new) == records.profile(earlier)
    assert script.log.count("observe") == observed
    [candidate] = records.plan(new, 0).candidates
    assert records.verification(new, candidate.key).token
    assert records.run(new).report["deployment"] is None, "a token was handed out without approval"
    assert dict(candidate.tunables)["slice_us"] == 7000
    assert candidate.history, "its input is filled from the profile"
    assert records.verdicts(new, 0)[candidate.key].outcome is Outcome.BETTER
    assert len(records.blocks(new, 0)) > 6
    assert told[0].startswith(f"run {new}: ")
    assert any(line.startswith("measuring: 1 done") for line in told)


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
