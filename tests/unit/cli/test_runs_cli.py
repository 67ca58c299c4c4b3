"""`runs report` and `runs compare`: files, stdout, and one clear line for what cannot be done."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest

from tests.support.command_line import refused
from tests.support.measured_runs import COSTS, PAIRS, build_run, service_run
from tests.support.paths import ROOT


@pytest.fixture
def runs(run, script, folders):
    """Two finished runs in the repository that the program finds."""
    run("runs", "list")
    with script.repository() as repository:
        return build_run(repository), service_run(repository)


def test_without_an_option_the_report_is_markdown_on_stdout(run, runs):
    asked = run("runs", "report", runs[0])
    assert asked.exit_code == 0
    assert asked.stdout.startswith("### schedagent: `make -j`")


def test_every_form_goes_where_it_is_sent(run, runs, tmp_path):
    page, table = tmp_path / "page.html", tmp_path / "runs.md"
    asked = run("runs", "report", runs[1], "--html", str(page), "--csv", "-", "--samples", str(table))
    assert asked.exit_code == 0
    assert page.read_text().startswith("<!doctype html>")
    assert len(list(csv.DictReader(io.StringIO(asked.stdout)))) == 3 * (PAIRS + 1)
    assert table.read_text().startswith("| arm | block | wake-up p99 |")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "nothing"], "there is no run 'nothing'"),
        (["report", "RUN", "--html", "-"], "--html - cannot be written hint: a page goes into a file"),
        (["report", "RUN", "--html", "/nowhere/x.html"], "--html /nowhere/x.html cannot be written: No such file"),
        (["report", "RUN", "--csv", "-", "--markdown", "-"], "--markdown and --csv both go to stdout"),
        (["compare", "RUN", "nothing"], "there is no run 'nothing'"),
    ],
    ids=str,
)
def test_what_cannot_be_reported_is_said_in_a_line(run, runs, words, message):
    refused(run("runs", *(runs[0] if word == "RUN" else word for word in words)), message)


def test_two_runs_are_compared_for_people_and_for_programs(run, runs):
    text = run("runs", "compare", *runs).stdout
    assert f"A  {runs[0]}: 'make -j'" in text
    assert "The machines differ (lab)" in text
    values = json.loads(run("runs", "compare", *runs, "--json").stdout)
    assert (values["first"], values["second"], values["same_workload"]) == (*runs, False)


def test_a_comparison_loads_no_plots_and_a_report_for_the_terminal_neither(run, runs, folders):
    script = (
        "import sys; from schedagent.cli.app import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    for words in (["runs", "compare", *runs], ["runs", "report", runs[0]], ["runs", "report", runs[0], "--csv", "-"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
        )
        assert not {"matplotlib", "langgraph", "langchain_openai", "numpy"} & set(done.stderr.split())


def test_doctor_shows_what_emulation_costs_once_a_run_has_measured_it(run, script, folders, monkeypatch):
    monkeypatch.setattr("schedagent.setup.doctor.examine", lambda _settings: [])
    assert json.loads(run("doctor", "--json").stdout)["findings"] == []
    run("runs", "list")
    with script.repository() as repository:
        measured_at = repository.run(build_run(repository)).started_at
    (finding,) = json.loads(run("doctor", "--json").stdout)["findings"]
    assert finding["name"] == "emulation"
    assert f"work takes {COSTS.kappa:.0f} times as long in the VM" in finding["detail"]
    assert "a task switch takes" in finding["detail"]
    assert finding["detail"].endswith(f"(measured {measured_at[:10]})")
