"""The report: JSON without NaN, and text for every way a run can end."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from pydantic import TypeAdapter
from rich.console import Console
from scipy.stats import t as student

from agents.observation import build_profile
from repo_store.records import RunFailure, RunStatus
from repo_store.store import PolicyRepository
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.terminal.console import UNBROKEN
from schedagent.core.trials.judge import failed, judge
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample, Verdict
from schedagent.core.trials.workload import Goal
from schedagent.core.verification import GateResult, GateStatus, VerificationReport
from schedagent.report.as_json import json_schema, to_json
from schedagent.report.build import build_report, read_report
from schedagent.report.conclusion import conclusion
from schedagent.report.json_form import ReportForm
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
    sample = Sample(DEFAULT_ARM, 1.0, 1, 1, 0, "2026-11-30T02:00:00+00:00", 1)
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
        (
            Goal.MAKESPAN,
            "",
            0.8,
            "at least 18.0% less time, probably 20.0%, in this emulated machine.",
            "ratio below 1: less time",
        ),
        (
            Goal.LATENCY,
            "(x)",
            0.8,
            "at least 18.0% less of the metric, probably 20.0%",
            "ratio below 1: a smaller metric",
        ),
        (Goal.THROUGHPUT, "(x)", 1.25, "at least 23.0% more of the metric, probably 25.0%", "ratio above 1: more"),
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
    ended = "\n".join(conclusion(build_report(repository, run_id, out_of_time=True)))
    assert "The time budget ended the run before another plan." in ended
    assert "time budget" not in "\n".join(conclusion(build_report(repository, run_id)))
    assert "nothing was changed on this machine" in "\n".join(conclusion(build_report(repository, run_id)))


NOISY = judge([(1.0, 1.5), (1.0, 0.7), (1.0, 1.4), (1.0, 0.6), (1.0, 1.5), (1.0, 0.7)])
BARELY = judge([(1.0, 0.9)] * 2)


@pytest.mark.parametrize(
    ("verdicts", "advice"),
    [
        ((BARELY,), "may be decided: about 4 more pairs, some 4 minutes."),
        ((BARELY, NOISY), "What is undecided differs too little or varies too much to be settled in reasonable time."),
    ],
)
def test_more_time_is_advised_with_its_price_and_only_if_it_may_decide_something(repository, verdicts, advice):
    run_id = stored_run(repository, list(verdicts))
    for number, minute in ((1, 0), (2, 1), (3, 3)):
        started_at = f"2026-11-30T02:0{minute}:30+00:00"
        repository.add_block(run_id, 0, Block(number, (Sample(DEFAULT_ARM, 1.0, 1, 1, 0, started_at, 1),)))
    report = build_report(repository, run_id, out_of_time=True)
    text = "\n".join(conclusion(report))
    assert advice in text
    assert "what was not decided by then is called inconclusive" in text
    in_time = "\n".join(conclusion(replace(report, out_of_time=False)))
    assert "Next: on a quieter machine the undecided may be decided." in in_time
    assert "budget" not in in_time
    assert not re.search(r"\b\d{3,} more pairs", text)


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


@pytest.mark.parametrize("width", [80, 120, UNBROKEN])
@pytest.mark.parametrize("policy", ["longest_first", "a_policy_that_a_model_gave_a_rather_long_name_1"])
def test_the_tables_fit_and_break_neither_headings_nor_names(repository, width, policy):
    worst = replace(BETTER, ratio=10.123, low=9.123, high=11.123, pairs=20, outcome=Outcome.NO_DIFFERENCE)
    run_id = stored_run(repository, [worst, failed(["block 1: it ended with exit status 1"]), None])
    report = build_report(repository, run_id)
    command = "python3 /home/somebody/projects/a-project-with-a-long-name/tools/generate_everything.py --fast"
    profile = replace(report.profile, commands=(replace(report.profile.commands[0], label=command),))
    [iteration] = report.iterations
    first = replace(iteration.candidates[0], candidate=replace(FIRST, policy=policy))
    named = replace(iteration, candidates=(first, *iteration.candidates[1:]))
    lines = text_of(replace(report, profile=profile, iterations=(named,)), width=width).splitlines()
    tables = [line for line in lines if line[:1] in "┏┃┡│└" and line]
    assert max(map(len, tables)) <= width
    [headings] = [line for line in tables if line.startswith("┃")]
    expected = ["policy", "pairs", "ratio", "interval", "verdict"]
    narrow = width == 80 and policy != "longest_first"
    assert headings.replace("┃", " ").split() == expected[narrow:]
    assert [line for line in lines if line.startswith(f"  1 {policy} ")], "the whole name stands below the table"
    assert any(policy in line for line in tables) is not narrow
    assert "…" not in "".join(lines)
    [commands] = [line for line in lines if "longest" in line and "waited" in line]
    assert commands.split() == ["tasks", "CPU", "time", "longest", "waited", "command"]
    assert [line for line in lines if line.endswith(f"s  {command}")], "not broken by us"


WORKLOAD_FAILED = RunFailure(
    "'make' failed: exit status 2\n    cc: no such file\n    hint: believe me", "fix it", False
)
LOST = RunFailure("the guest said nothing for 30 s", "look at the console's end", True)


@pytest.mark.parametrize(
    ("failure", "shown", "hidden"),
    [
        (WORKLOAD_FAILED, "Next: fix it.", "resume"),
        (
            LOST,
            "Next: look at the console's end; then continue, nothing that was measured is lost: schedagent resume",
            "",
        ),
        (replace(LOST, hint=""), "Next: continue, nothing that was measured is lost: schedagent resume", "console"),
    ],
)
def test_a_failed_run_says_why_and_offers_to_go_on_only_if_that_helps(repository, failure, shown, hidden):
    run_id = repository.create_run(WORKLOAD, HARDWARE, settings=asdict(OPTIONS))
    repository.finish_run(run_id, RunStatus.FAILED, failure=failure)
    report = build_report(repository, run_id, complete=False)
    text = text_of(report)
    assert f"No verdict: the run failed: {failure.message.splitlines()[0]}" in text
    assert shown in text
    assert not hidden or hidden not in text
    assert not [line for line in text.splitlines() if line.startswith("hint")], "output passes for a hint"
    assert as_json(report)["failure"] == asdict(failure)
    repository.resume_run(run_id)
    assert "failed" not in text_of(build_report(repository, run_id, complete=False))


def test_the_schema_describes_every_report_and_a_sceptic_can_recompute_the_interval(repository):
    run_id = repository.create_run(WORKLOAD, HARDWARE, settings=asdict(OPTIONS))
    repository.save_plan(run_id, 0, Plan((FIRST, SECOND), "because", "earlier"))
    values = [(2.0, 1.5), (1.9, 1.6), (2.1, 1.4), (2.0, 1.6), (1.8, 1.5), (2.2, 1.7), (2.0, 1.5)]
    for number, pair in enumerate(values):
        arms = [(DEFAULT_ARM, pair[0]), (FIRST.key, pair[1])]
        samples = [
            Sample(arm, value, int(value * 1e9), 10**9, 0, f"2026-11-30T02:0{number}:0{place}+00:00", 10**8)
            for place, (arm, value) in enumerate(reversed(arms) if number % 2 else arms)
        ]
        repository.add_block(run_id, 0, Block(number, tuple(samples)))
    verdict = judge(values[1:], comparisons=2)
    repository.save_verdict(run_id, 0, FIRST.key, verdict)
    report = as_json(build_report(repository, run_id))
    TypeAdapter(ReportForm).validate_json(json.dumps(report), strict=True)
    first, second = report["iterations"][0]["candidates"]
    assert second["pairs"] == []
    assert [(pair["default"], pair["candidate"]) for pair in first["pairs"]] == values[1:]
    logs = np.log([pair["candidate"] / pair["default"] for pair in first["pairs"]])
    apart = logs - logs.mean()  # of six values none is cut off
    seen = (apart[:-1] * apart[1:]).sum() / (apart**2).sum()
    alike = min(max(seen + (1 + 3 * seen) / 6, 0), 0.7)
    error = math.sqrt((apart**2).sum() / (6 * 5) * (1 + alike) / (1 - alike))
    first_level = 0.9 * (1 - first["verdict"]["confidence"]) * (6 / 20) ** 2
    half = student.ppf(1 - first_level / 2, 5) * error
    recomputed = [math.exp(logs.mean() + shift) for shift in (0, -half, half)]
    assert recomputed == pytest.approx([first["verdict"][name] for name in ("ratio", "low", "high")])
    blocks = report["iterations"][0]["blocks"]
    assert [block["warm_up"] for block in blocks] == [True] + [False] * 6
    assert [sample["arm"] for sample in blocks[1]["samples"]] == [FIRST.key, "default"], "the order they ran in"
    assert blocks[1]["samples"][1] == {
        "arm": "default", "value": 1.9, "wall_s": 1.9, "cpu_s": 1.0, "calibration_ms": 100.0,
        "started_at": "2026-11-30T02:01:01+00:00", "exit_status": 0, "failure": "",
        "values": {}, "usage": None,
    }  # fmt: skip


def properties(schema, name):
    return set(schema["$defs"][name]["properties"])


def test_the_schema_names_every_field_of_a_report(repository):
    report, schema = as_json(build_report(repository, stored_run(repository, [BETTER]))), json_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    assert report["version"] == schema["properties"]["version"]["const"] == 2
    assert set(report) == set(schema["properties"]) == set(schema["required"])
    [iteration] = report["iterations"]
    assert set(iteration) == properties(schema, "IterationForm")
    assert set(iteration["candidates"][0]) == properties(schema, "CandidateForm")
    assert set(iteration["candidates"][0]["verdict"]) == properties(schema, "VerdictForm")
    assert set(iteration["blocks"][0]["samples"][0]) == properties(schema, "SampleForm")


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
