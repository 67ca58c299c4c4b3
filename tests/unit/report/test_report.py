"""The report: JSON without NaN, and text for every way a run can end."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from agents.observation import build_profile
from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.trials.judge import failed, judge
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample, Verdict
from schedagent.core.trials.workload import Goal
from schedagent.core.verification import GateResult, GateStatus, VerificationReport
from schedagent.report.as_json import to_json
from schedagent.report.build import build_report, read_report
from schedagent.report.conclusion import conclusion
from schedagent.report.terminal import render
from tests.support.scripted_lab import HARDWARE, LIBRARY, OPTIONS, WORKLOAD, long_tail

FIRST, SECOND, THIRD = (CandidatePolicy(name, info.configured({})) for name, info in LIBRARY.items())
BETTER = Verdict(Outcome.BETTER, 0.8, 0.78, 0.82, 0.983, 6, 1, "20.0% lower")
PASSED = (GateResult("source", GateStatus.PASSED, "fine"), GateResult("compile", GateStatus.PASSED, "fine"))


@pytest.fixture
def repository(tmp_path):
    with PolicyRepository(tmp_path / "repository.sqlite") as opened:
        yield opened


def stored_run(repository, verdicts, workload=WORKLOAD, verified_by=""):
    """A run whose only plan has these verdicts; None for a candidate that was not reached."""
    run_id = repository.create_run(workload, HARDWARE, settings=asdict(OPTIONS))
    repository.save_profile(run_id, build_profile(long_tail()))
    candidates = (FIRST, SECOND, THIRD)[: len(verdicts)]
    repository.save_plan(run_id, 0, Plan(candidates, "because", "earlier"))
    for candidate, verdict in zip(candidates, verdicts, strict=True):
        if verdict:
            report = VerificationReport(candidate.policy, candidate.key, "d", "7.3.4", PASSED, verified_by=verified_by)
            repository.save_verification(run_id, report)
            repository.save_verdict(run_id, 0, candidate.key, verdict)
    sample = Sample(DEFAULT_ARM, 1.0, 1, 1, 0, "now", 1)
    repository.add_block(run_id, 0, Block(0, (sample, replace(sample, arm=FIRST.key, value=math.nan))))
    return run_id


def text_of(report, width=200) -> str:
    stream = io.StringIO()
    render(report, Console(file=stream, width=width, emoji=False))
    return stream.getvalue()


def as_json(report):
    return json.loads(json.dumps(to_json(report), allow_nan=False))


def test_a_report_is_json_without_nan(repository):
    verdicts = [BETTER, failed(["block 1: it ended with exit status 1"]), judge([(1.0, 1.1)])]
    report = as_json(build_report(repository, stored_run(repository, verdicts)))
    first, second, third = (found["verdict"] for found in report["iterations"][0]["candidates"])
    assert (first["outcome"], first["ratio"]) == ("better", 0.8)
    assert (second["outcome"], second["ratio"], second["low"], second["high"]) == ("failed", None, None, None)
    assert (third["outcome"], third["ratio"], third["high"]) == ("inconclusive", pytest.approx(1.1), None)
    assert report["best"]["key"] == FIRST.key
    assert report["iterations"][0]["runs_measured"] == 2


def test_the_table_shows_every_kind_of_verdict(repository):
    verdicts = [BETTER, failed(["block 1: it ended with exit status 1"]), judge([(1.0, 1.1)])]
    text = text_of(build_report(repository, stored_run(repository, verdicts)))
    rows = {line.split()[3]: line for line in text.splitlines() if line.startswith("│")}
    assert "0.800" in rows["longest_first"]
    assert "0.780 to 0.820" in rows["longest_first"]
    assert "2 gates passed; 1 disturbed pair left out" in text
    assert "failed" in rows["plain"]
    assert "1.100" in rows["turns"]
    assert "inconclusive" in rows["turns"]
    assert "20.0% lower" in text
    assert "Learned earlier: earlier" in text
    assert "spin" in text
    assert "batch-long-tail" in text


def test_a_candidate_that_was_not_reached(repository):
    text = text_of(build_report(repository, stored_run(repository, [None])))
    assert "not reached" in text
    assert "not run" in text


@pytest.mark.parametrize("status", [GateStatus.FAILED, GateStatus.SKIPPED])
def test_a_gate_that_did_not_pass_is_named(repository, status):
    run_id = stored_run(repository, [None])
    gates = (PASSED[0], GateResult("attach", status, "why"), GateResult("stress", GateStatus.SKIPPED, "not run"))
    repository.save_verification(run_id, VerificationReport(FIRST.policy, FIRST.key, "d", "7.3.4", gates))
    assert f"{status.value}: attach" in text_of(build_report(repository, run_id))


def test_a_run_that_has_hardly_begun(repository):
    run_id = repository.create_run(WORKLOAD, HARDWARE, settings=asdict(OPTIONS))
    report = build_report(repository, run_id)
    values = as_json(report)
    assert (values["profile"], values["iterations"], values["best"]) == (None, [], None)
    assert "./batch.sh" in text_of(report)


def test_no_candidates_at_all(repository):
    run_id = repository.create_run(WORKLOAD, HARDWARE, settings=asdict(OPTIONS))
    repository.save_profile(run_id, build_profile(long_tail()))
    repository.save_plan(run_id, 0, Plan((), "keep the default scheduler: it is serial"))
    text = text_of(build_report(repository, run_id))
    assert "keep the default scheduler: it is serial" in text
    assert "Keep the default scheduler." in text


@pytest.mark.parametrize(
    ("goal", "metric", "ratio", "said", "title"),
    [
        (Goal.MAKESPAN, "", 0.8, "20.0 % less time than", "ratio below 1: less time"),
        (Goal.LATENCY, "(x)", 0.8, "20.0 % less of the metric than", "ratio below 1: a smaller metric"),
        (Goal.THROUGHPUT, "(x)", 1.25, "25.0 % more of the metric than", "ratio above 1: more"),
    ],
)
def test_the_verdict_speaks_of_what_was_measured(repository, goal, metric, ratio, said, title):
    verdict = replace(BETTER, ratio=ratio, low=ratio - 0.02, high=ratio + 0.02)
    run_id = stored_run(repository, [verdict], replace(WORKLOAD, goal=goal, metric=metric))
    report = build_report(repository, run_id)
    assert said in "\n".join(conclusion(report))
    assert title in text_of(report)


@pytest.mark.parametrize(("goal", "best"), [(Goal.MAKESPAN, FIRST), (Goal.THROUGHPUT, SECOND)])
def test_the_best_is_the_best_for_the_goal(repository, goal, best):
    verdicts = [replace(BETTER, ratio=0.7), replace(BETTER, ratio=0.9), replace(BETTER, outcome=Outcome.WORSE)]
    metric = "" if goal is Goal.MAKESPAN else "(x)"
    run_id = stored_run(repository, verdicts, replace(WORKLOAD, goal=goal, metric=metric))
    assert build_report(repository, run_id).best.candidate.key == best.key


@pytest.mark.parametrize(
    ("outcome", "said"),
    [(Outcome.INCONCLUSIVE, "the undecided may be decided"), (Outcome.NO_DIFFERENCE, "Next: nothing to do")],
)
def test_without_a_winner_the_next_step_depends_on_what_is_undecided(repository, outcome, said):
    run_id = stored_run(repository, [replace(BETTER, outcome=outcome)])
    assert said in "\n".join(conclusion(build_report(repository, run_id)))


def test_what_bounded_the_run_is_said(repository):
    run_id = stored_run(repository, [BETTER])
    assert "time budget ended the run" in "\n".join(conclusion(build_report(repository, run_id, out_of_time=True)))
    assert "time budget" not in "\n".join(conclusion(build_report(repository, run_id)))
    assert "nothing was changed on this machine" in "\n".join(conclusion(build_report(repository, run_id)))


def test_text_of_the_workload_is_shown_as_it_is(repository):
    workload = replace(WORKLOAD, command="echo [bold]:100:[/bold]")
    assert "'echo [bold]:100:[/bold]'" in text_of(build_report(repository, stored_run(repository, [BETTER], workload)))


@pytest.mark.parametrize(
    ("verified_by", "sentence"),
    [
        ("", "verified and signed by this process itself, not by a separate service."),
        ("the service at /run/v.sock", "verified and signed by the service at /run/v.sock."),
    ],
)
def test_the_report_says_who_verified(repository, verified_by, sentence):
    run_id = stored_run(repository, (BETTER,), verified_by=verified_by)
    assert sentence in text_of(build_report(repository, run_id))


def test_the_tables_fit_eighty_columns_and_no_heading_is_wrapped(repository):
    worst = replace(BETTER, ratio=10.123, low=9.123, high=11.123, pairs=20, outcome=Outcome.NO_DIFFERENCE)
    run_id = stored_run(repository, [worst, failed(["block 1: it ended with exit status 1"]), None])
    lines = text_of(build_report(repository, run_id), width=80).splitlines()
    tables = [line for line in lines if line[:1] in "┏┃┡│└" and line]
    assert max(map(len, tables)) <= 80
    [headings] = [line for line in tables if line.startswith("┃")]
    assert headings.replace("┃", " ").split() == ["policy", "pairs", "ratio", "interval", "verdict"]
    [commands] = [line for line in lines if "longest" in line and "waited" in line]
    assert commands.split() == ["command", "tasks", "CPU", "time", "longest", "waited"]


OLD_MODEL = {
    "used": "3 calls, 9.4k tokens, $0.02",
    "total": {
        "model": "small",
        "calls": 3,
        "input_tokens": 9000,
        "output_tokens": 400,
        "cost": 0.02,
        "estimated": False,
    },
    "steps": [],
    "notes": [{"role": "planning", "iteration": 1, "text": "planned by rules"}],
}


def old_report(run_id):
    """What an older version stored at the end of such a run: other names, and no word of approvals."""
    candidate = {"key": FIRST.key, "policy": FIRST.policy, "way": "configure", "mends": "", "verdict": None}
    return {
        "run": run_id,
        "best": candidate,
        "iterations": [{"reason": "because", "candidates": [candidate]}],
        "outcome": "better",
        "model": OLD_MODEL,
        "out_of_time": True,
    }


def test_a_run_of_an_older_version_has_a_report_like_any_other(repository, tmp_path):
    run_id = stored_run(repository, [BETTER])
    repository.finish_run(run_id, RunStatus.FINISHED, old_report(run_id))
    report = read_report(repository, run_id, tmp_path / "no transcript")
    values = as_json(report)
    [candidate] = values["iterations"][0]["candidates"]
    assert (candidate["origin"], candidate["repairs"]) == ("configure", "")
    assert not {"way", "mends"} & candidate.keys()
    assert (values["complete"], values["out_of_time"], values["best"]["key"]) == (True, True, FIRST.key)
    assert values["model"] == OLD_MODEL, "its transcript is gone, and with it what it cost"
    text = text_of(report)
    assert "Model: 3 calls, 9.4k tokens, $0.02." in text
    assert "time budget ended the run" in text


def test_a_finished_run_reads_as_it_was_stored(repository, tmp_path):
    run_id = stored_run(repository, [BETTER, None])
    stored = as_json(build_report(repository, run_id, out_of_time=True))
    repository.finish_run(run_id, RunStatus.FINISHED, stored)
    assert as_json(read_report(repository, run_id, tmp_path / "none")) == stored


def test_a_token_of_an_older_version_is_none_to_deploy(repository):
    run_id = stored_run(repository, [BETTER])
    report = VerificationReport(FIRST.policy, FIRST.key, "d", "7.3.4", PASSED, token="sat1.payload.signature")
    other = repository.create_run(WORKLOAD, HARDWARE, settings=asdict(OPTIONS))
    repository.save_plan(other, 0, Plan((FIRST,), "because"))
    repository.save_verification(other, report)
    repository.save_verdict(other, 0, FIRST.key, BETTER)
    assert build_report(repository, run_id).deployment is None
    assert build_report(repository, other).deployment is None
