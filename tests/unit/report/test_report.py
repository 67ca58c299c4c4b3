"""The report: JSON without NaN, and text for every way a run can end."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from agents.observation import build_profile
from repo_store.store import PolicyRepository
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.trials.judge import failed, judge
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample, Verdict
from schedagent.core.trials.workload import Goal
from schedagent.core.verification import GateResult, GateStatus, VerificationReport
from schedagent.report.run_report import build_report, conclusion, render
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


def text_of(report) -> str:
    stream = io.StringIO()
    render(report, Console(file=stream, width=200, emoji=False))
    return stream.getvalue()


def as_json(report):
    return json.loads(json.dumps(report, allow_nan=False))


def test_a_report_is_json_without_nan_and_reads_the_same_again(repository):
    verdicts = [BETTER, failed(["block 1: it ended with exit status 1"]), judge([(1.0, 1.1)])]
    report = build_report(repository, stored_run(repository, verdicts))
    assert as_json(report) == json.loads(json.dumps(report))
    assert text_of(as_json(report)) == text_of(report)
    first, second, third = (found["verdict"] for found in report["iterations"][0]["candidates"])
    assert (first["outcome"], first["ratio"]) == ("better", 0.8)
    assert (second["outcome"], second["ratio"], second["low"], second["high"]) == ("failed", None, None, None)
    assert (third["outcome"], third["ratio"], third["high"]) == ("inconclusive", pytest.approx(1.1), None)
    assert report["best"]["key"] == FIRST.key
    assert report["iterations"][0]["runs_measured"] == 2


def test_the_table_shows_every_kind_of_verdict(repository):
    verdicts = [BETTER, failed(["block 1: it ended with exit status 1"]), judge([(1.0, 1.1)])]
    text = text_of(build_report(repository, stored_run(repository, verdicts)))
    rows = {line.split()[3]: line for line in text.splitlines() if "passed" in line}
    assert "0.800" in rows["longest_first"]
    assert "0.780 to 0.820" in rows["longest_first"]
    assert "6 (+1 disturbed)" in rows["longest_first"]
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
    report = as_json(build_report(repository, run_id))
    assert (report["profile"], report["iterations"], report["best"]) == (None, [], None)
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
    assert build_report(repository, run_id)["best"]["key"] == best.key


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
