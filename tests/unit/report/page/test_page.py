"""The page of a run: nothing foreign is markup, nothing is fetched, every number is the repository's."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape

import pytest

from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.policies.proposal import DerivedPolicy, Origin
from schedagent.core.trials.trial import Outcome
from schedagent.report.as_json import to_json
from schedagent.report.build import build_report
from schedagent.report.page import savings
from schedagent.report.page.document import to_html
from schedagent.report.page.plots import Row, strip_plot, timeline
from schedagent.report.page.sources import PolicyText, policy_texts
from tests.support.measured_runs import BUILD, EMULATED, PAIRS, SHARED
from tests.support.page_numbers import differing, numbers_of
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def page(repository, build):
    return to_html(build, policy_texts(repository, build))


@pytest.mark.parametrize("name", ["build", "service"])
def test_every_number_is_the_repositorys(name, request):
    report = request.getfixturevalue(name)
    numbers = numbers_of(to_html(report, {}))
    assert len(numbers) > 200
    assert differing(numbers, json.loads(json.dumps(to_json(report)))) == []


def test_a_number_that_is_not_the_repositorys_is_noticed(page, build):
    report = json.loads(json.dumps(to_json(build)))
    [path, value, shown] = next(entry for entry in numbers_of(page) if entry[0].endswith("expected/ratio"))
    assert differing([(path, value, shown)], report) == []
    assert differing([(path, "0.9", shown)], report)
    assert differing([(path, value, "0.771")], report)


def test_the_verdict_and_the_guards_come_first(page):
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Verdict", "Guards", "What was measured", "The workload", "What was tried, and why", "What it cost",
        "What it would save", "Do it again",
    ]  # fmt: skip


def test_nothing_is_fetched_and_only_the_pages_own_script_may_run(page):
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "://" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_what_others_wrote_is_no_markup(service):
    hostile = "<script>alert(1)</script>\x1b[31m\" onload='x' $\\frac{1}{2}$"
    first = service.iterations[0].candidates[0]
    candidate = replace(first.candidate, policy=hostile, reason=hostile)
    named = replace(first, candidate=candidate, verdict=replace(first.verdict, reason=hostile))
    iteration = replace(service.iterations[0], candidates=(named,), reason=hostile)
    workload = replace(service.workload, command=hostile, objective=hostile)
    text = to_html(
        replace(service, iterations=(iteration,), workload=workload), {hostile: PolicyText(hostile, hostile)}
    )
    assert text.count("<script>") == 1
    assert "\x1b" not in text
    assert "onload='x'" not in text
    assert unescape(text).count("<script>alert(1)</script>") > 5


def test_plots_have_a_mark_for_each_run(page, build):
    plots = dict(re.findall(r'<figure id="([\w-]+)".*?(<svg.*?</svg>)', page, re.DOTALL))
    assert {"ratios", "capacity-0", "runnable", "value-0-0", "value-0-1"} <= set(plots)
    for name in ("value-0-0", "value-0-1"):
        groups = re.findall(rf'<g id="{name}-marks-\d+">(.*?)</g>\s*</g>', plots[name], re.DOTALL)
        assert [group.count("<use") for group in groups] == [SHARED + PAIRS, SHARED + PAIRS, SHARED, SHARED]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'xlink:href="#([^"]+)"', page)) <= set(ids)


def test_plots_take_their_colours_from_the_style(page):
    assert not re.search(r"<svg.*?#0[1-4][0-9a-f]{4}.*?</svg>", page, re.DOTALL)
    assert "var(--arm-1)" in page


def test_a_plot_of_one_value_or_of_none():
    assert "<svg" in strip_plot("p", "t", [Row("a", 0, (2.0,), 2.0)], "s")
    assert "<svg" in strip_plot("p", "t", [Row("a", 0)], None)
    assert "<svg" in strip_plot("p", "t", [Row("a", 0, (0.0, 1.0), 0.5)], None)


def test_labels_in_any_letters_and_settings_of_the_user_change_no_plot():
    import matplotlib

    rows = [Row("延迟 $x_1$", 0, (1.0, 2.0), 1.5)]
    plain = strip_plot("p", "t", rows, "s")
    with matplotlib.rc_context({"figure.dpi": 30, "axes.facecolor": "red", "font.size": 40, "svg.fonttype": "path"}):
        assert strip_plot("p", "t", rows, "s") == plain
    assert "延迟 $x_1$</text>" in plain


def test_a_timeline_of_very_many_points_stays_small():
    points = [(number / 1000, number % 7) for number in range(100_000)]
    assert len(timeline("p", "t", points, 2, 100.0)) < 60_000


def test_candidates_that_all_failed_have_a_page(service):
    nan = float("nan")
    candidates = tuple(
        replace(entry, verdict=replace(entry.verdict, outcome=Outcome.FAILED, ratio=nan, low=nan, high=nan, guards=()))
        for entry in service.iterations[0].candidates
    )
    report = replace(service, best=None, iterations=(replace(service.iterations[0], candidates=candidates),))
    text = to_html(report, {})
    assert 'id="ratios"' not in text
    assert ">failed<" in text


def test_a_run_that_has_hardly_begun_has_a_page(repository):
    run_id = repository.create_run(BUILD, EMULATED, settings={})
    text = to_html(build_report(repository, run_id, complete=False), {})
    assert "<h1>The run is not finished</h1>" in text
    assert "It was not observed yet." in text


# --- what it would save ----------------------------------------------------------------------------------------------


def test_savings_are_those_of_what_is_claimed(build):
    gain = savings.gain_of(build)
    assert (gain.best, gain.least, gain.most) == pytest.approx((0.09, 0.07, 0.11))
    text = "".join(savings.section(build))
    assert "machines × price × 8,760 h × share × gain" in text
    assert "3,942 a year, of 43,800" in text


def test_a_higher_throughput_does_the_same_work_in_less_time(build):
    workload = replace(build.workload, goal=type(build.workload.goal)("throughput"), metric="(x)")
    verdict = replace(build.best.verdict, ratio=1.25, low=1.1, high=1.6, expected=None)
    report = replace(build, workload=workload, best=replace(build.best, verdict=verdict))
    gain = savings.gain_of(report)
    assert (gain.best, gain.least, gain.most) == pytest.approx((0.2, 1 / 11, 0.375))


def test_latency_saves_no_machines_and_no_winner_nothing(service, build):
    assert "frees no machine" in "".join(savings.section(service))
    assert list(savings.section(replace(build, best=None))) == []
    traded = replace(build.best, verdict=replace(build.best.verdict, outcome=Outcome.TRADE_OFF))
    assert savings.gain_of(replace(build, best=traded)) is None


# --- policies --------------------------------------------------------------------------------------------------------


def test_a_patched_policy_is_shown_as_a_difference(repository):
    source = (ROOT / "kernel_bpf/bpf/policies/fair.bpf.c").read_text()
    derived = DerivedPolicy("fair_1", Origin.PATCH, "fair", f"{source}/* more */\n", "m", None, "", "2026-11-30")
    made = DerivedPolicy("mine_1", Origin.GENERATE, "", "int x;", "m", None, "", "2026-11-30")
    for policy in (derived, made):
        repository.keep_policy(policy)
    run_id = repository.create_run(BUILD, EMULATED, settings={})
    names = ("fair_1", "mine_1", "fifo", "gone")
    repository.save_plan(run_id, 0, Plan(tuple(CandidatePolicy(name) for name in names), "because"))
    texts = policy_texts(repository, build_report(repository, run_id))
    assert texts["fair_1"].origin.endswith("from fair, the difference")
    assert texts["fair_1"].text.startswith("--- fair\n+++ fair_1\n")
    assert "\n+/* more */" in texts["fair_1"].text
    assert texts["mine_1"].text == "int x;"
    assert "SCX_OPS_DEFINE" in texts["fifo"].text or "sched_ext_ops" in texts["fifo"].text
    assert "gone" not in texts


def test_matplotlib_is_loaded_for_a_page_alone():
    script = (
        "import sys, schedagent.report.terminal, schedagent.report.as_json, schedagent.report.page.files;"
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False\n"
