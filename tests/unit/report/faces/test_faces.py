"""Markdown, samples as CSV, the command that repeats a run, and two runs side by side."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from dataclasses import replace

import pytest
import typer
from rich.console import Console

from schedagent.cli import app as cli
from schedagent.core.errors import UsageError
from schedagent.core.readings.metric_options import Comparison, measured
from schedagent.core.trials.trial import DEFAULT_ARM, Block
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.report.build import build_report
from schedagent.report.faces.again import repeat_command
from schedagent.report.faces.comparison import compare, render, to_json
from schedagent.report.faces.markdown import samples_markdown, to_markdown
from schedagent.report.faces.samples import samples_csv
from schedagent.report.page.files import write_report
from tests.support.measured_runs import PAIRS, REQUESTS, SHARED, build_run

# --- Markdown --------------------------------------------------------------------------------------------------------


def test_markdown_has_the_conclusion_a_table_and_the_command(build):
    text = to_markdown(build)
    assert text.startswith("### schedagent: `make -j`\n\n**Verdict: ")
    assert "| policy | verdict | expected on hardware | raw, emulated | pairs | guards |\n| --- |" in text
    assert "| longest\\_first slice\\_us=20000 | better | 0.910 (0.890 to 0.930) | 0.770 " in text
    assert "| plain | not reached | - | - | 0 | - |" in text
    assert "| wall time | longest\\_first | 2.455 s |" in text
    assert re.search(r"- without a policy, by nice: [01]\.\d+ expected on hardware, 0\.96", text)
    assert text.endswith(f"    {repeat_command(build)}\n")


def test_markdown_names_the_guards_that_broke(service):
    assert "| trade-off | 0.0" in to_markdown(service)
    assert "| broken: requests/s, request p99 |" in to_markdown(service)


HOSTILE = "a|b `c`` <img src=x> @octocat #7 [x](y) \x1b[31m\nend"


def test_what_others_wrote_is_no_markup_in_markdown(service):
    workload = replace(service.workload, command=HOSTILE)
    first = service.iterations[0].candidates[0]
    named = replace(first, verdict=replace(first.verdict, reason=HOSTILE))
    iteration = replace(service.iterations[0], candidates=(named, *service.iterations[0].candidates[1:]))
    text = to_markdown(replace(service, workload=workload, iterations=(iteration,)))
    assert text.startswith("### schedagent: ``` a|b `c`` ")
    [reason] = [line for line in text.splitlines() if line.startswith("- layered: a")]
    assert r"a\|b \`c\`\` \<img src=x\> @" in reason
    assert r"\[x\](y)" in reason
    assert "@octocat" not in reason
    assert "#7" not in reason
    assert "\x1b" not in text


def test_samples_as_a_markdown_table(build):
    lines = samples_markdown(build).splitlines()
    assert lines[0] == "| arm | block | wall time | wall time, s | CPU time, s | failure |"
    assert len(lines) == 2 + 4 * (SHARED + 1) + 2 * PAIRS


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_has_a_row_for_each_run_and_every_number_of_it(service):
    rows = list(csv.DictReader(io.StringIO(samples_csv(service))))
    samples = [(block, sample) for block in service.iterations[0].blocks for sample in block.samples]
    assert len(rows) == len(samples) == 3 * (PAIRS + 1)
    for row, (block, sample) in zip(rows, samples, strict=True):
        assert (int(row["block"]), float(row["objective"])) == (block.number, sample.value)
        assert float(row["wall_s"]) == sample.wall_ns / 1e9
        assert float(row[f"value {REQUESTS.name}"]) == sample.values[REQUESTS.name]
        assert int(row["voluntary_switches"]) == sample.usage.voluntary_switches
        assert row["warm_up"] == str(int(block.number == 0))
    assert {row["arm"] for row in rows} == {"default", "layered", "interactive"}


def test_csv_of_an_older_run_leaves_empty_what_it_lacks_and_no_cell_is_a_formula(service):
    sample = service.iterations[0].blocks[1].sample(DEFAULT_ARM)
    odd = replace(sample, usage=None, values={"=1+1": 2.0}, value=math.nan, exit_status=None)
    report = replace(service, iterations=(replace(service.iterations[0], blocks=(Block(1, (odd,)),)),))
    [row] = csv.DictReader(io.StringIO(samples_csv(report)))
    assert (row["objective"], row["exit_status"], row["voluntary_switches"], row["full"]) == ("", "", "", "")
    assert row["value '=1+1"] == "2.0"
    assert row["failure"] == "it ran into its time limit"


# --- the command -----------------------------------------------------------------------------------------------------


def given_by(command):
    """The values of the options that a command gives `optimize`."""
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("schedagent", "optimize")
    return typer.main.get_command(cli.app).commands["optimize"].make_context("optimize", words).params


@pytest.mark.parametrize("name", ["build", "service"])
def test_the_command_that_repeats_a_run_is_one_that_the_program_takes(name, request):
    report = request.getfixturevalue(name)
    given = given_by(repeat_command(report))
    workload = report.workload
    assert given["words"] == [workload.command]
    assert (str(given["directory"]), given["prepare"]) == (workload.directory, workload.prepare)
    assert (given["cpus"], given["memory"]) == (2, "2048M")
    asked = Comparison(given["metric"] or (), given["guard"] or (), given["objective"] or (), given["goal"])
    blank = WorkloadCommand(workload.command, workload.directory, prepare=workload.prepare)
    assert measured(blank, asked) == replace(workload, units=())


def test_the_command_has_only_what_differs_from_the_defaults(service):
    changed = {"budget_s": 90.0, "iterations": 1, "warmup": 2, "rules": {"minimum_pairs": 8}}
    words = shlex.split(repeat_command(replace(service, options={**service.options, **changed})))
    for option, value in (("--budget-minutes", "1.5"), ("--iterations", "1"), ("--warmup", "2"), ("--min-pairs", "8")):
        assert words[words.index(option) + 1] == value
    assert not {"--candidates", "--timeout"} & set(words)
    assert "--iterations" not in repeat_command(replace(service, options={})), "a run of an older version"


# --- two runs --------------------------------------------------------------------------------------------------------


def shown(first, second):
    stream = io.StringIO()
    render(compare(first, second), first, second, Console(file=stream, width=80, emoji=False))
    return stream.getvalue()


def test_two_runs_of_one_workload_agree_or_differ(repository, build):
    other = build_report(repository, build_run(repository, run_id="20261130-050000-cccccc"))
    text = shown(build, other)
    assert "longest_first slice_us=20000: they agree" in text
    assert "    A  better: 0.910 (0.890 to 0.930) expected on hardware, 12 pairs" in text
    assert "The default scheduler, medians:" in text
    assert "differ (" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    entry = other.iterations[0].candidates[0]
    worse = replace(entry.verdict, expected=replace(entry.verdict.expected, ratio=1.1, low=1.05, high=1.2))
    candidates = (replace(entry, verdict=worse), *other.iterations[0].candidates[1:])
    changed = replace(other, iterations=(replace(other.iterations[0], candidates=candidates),))
    assert "longest_first slice_us=20000: they differ" in shown(build, changed)


def test_what_cannot_be_compared_is_said_in_a_line(build, service):
    text = " ".join(shown(build, service).split())
    assert "The workloads differ (command, directory, goal, prepare, metric): ratios may" in text
    assert "The machines differ (lab): absolute values cannot be compared" in text
    assert "One was emulated" in text
    assert "medians" not in text
    values = json.loads(json.dumps(to_json(compare(build, service)), allow_nan=False))
    assert (values["same_workload"], values["same_hardware"], values["defaults"]) == (False, False, [])
    assert {entry["agree"] for entry in values["policies"]} == {None}


def test_a_run_beside_itself_is_called_that(build):
    assert "This is the same run twice." in shown(build, build)


# --- files -----------------------------------------------------------------------------------------------------------


def test_every_form_goes_into_its_file(repository, build, tmp_path):
    files = {form: tmp_path / form for form in ("html", "markdown", "csv", "samples")}
    write_report(repository, build, files)
    assert files["html"].read_text().startswith("<!doctype html>")
    assert files["markdown"].read_text() == to_markdown(build)
    assert files["csv"].read_text() == samples_csv(build)
    assert files["samples"].read_text() == samples_markdown(build)


def test_files_that_cannot_be_written(repository, build, tmp_path):
    from pathlib import Path

    with pytest.raises(UsageError, match="--html - cannot be written"):
        write_report(repository, build, {"html": Path("-")})
    with pytest.raises(UsageError, match="--markdown and --csv both go to stdout"):
        write_report(repository, build, {"markdown": Path("-"), "csv": Path("-")})
    with pytest.raises(UsageError, match=r"--csv .*none/x cannot be written: No such file"):
        write_report(repository, build, {"csv": tmp_path / "none" / "x"})
