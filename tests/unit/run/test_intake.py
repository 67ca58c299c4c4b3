"""What the user typed becomes a workload; refusals are tested through the command line (test_cli.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from schedagent.core.approval import ApprovalStage
from schedagent.core.errors import UsageError
from schedagent.core.readings.metric_options import Comparison
from schedagent.core.trials.workload import Goal
from schedagent.run.intake import Around, Description, planned_run, planned_runs, read_workload
from schedagent.run.options import RunOptions, read_name


def test_a_workload_is_read(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    comparison = Comparison((r"p99: ([\d.]+)",), goal="latency")
    workload = read_workload(Description("true", tmp_path / "link", comparison, Around("true"), 7.5))
    assert workload.directory == str(tmp_path / "real"), "the same place has one name, or earlier lessons are not found"
    assert (workload.command, workload.prepare, workload.goal) == ("true", "true", Goal.LATENCY)
    assert (workload.metric, workload.timeout_s) == (r"p99: ([\d.]+)", 7.5)


def test_a_program_is_looked_for_in_the_directory_of_the_workload(tmp_path):
    with pytest.raises(UsageError, match=r"there is no program './build.sh'"):
        read_workload(Description("./build.sh", tmp_path))
    script = tmp_path / "build.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert read_workload(Description("./build.sh", tmp_path)).directory == str(tmp_path)


def test_nothing_is_run_while_reading(tmp_path):
    read_workload(Description("touch here; $(touch there)", tmp_path, around=Around("touch before")))
    assert list(tmp_path.iterdir()) == []


def test_nul_bytes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--workload contains a NUL byte"):
        read_workload(Description("true\0", tmp_path))


# --- around the runs -------------------------------------------------------------------------------------------------


def test_what_is_done_around_the_runs_is_read(tmp_path):
    around = Around(setup="true", cleanup="true", shell="bash", ignore_failure=True)
    workload = read_workload(Description("shopt -s globstar; true {1..3}", tmp_path, around=around))
    assert (workload.setup, workload.cleanup, workload.ignore_failure) == ("true", "true", True)
    assert Path(workload.shell).is_absolute()
    assert Path(workload.shell).name == "bash"
    assert read_workload(Description("true", tmp_path)).shell == "/bin/sh"


@pytest.mark.parametrize(
    ("around", "message"),
    [
        (Around(shell="nosuchshell"), "--shell: there is no program 'nosuchshell'"),
        (Around(shell="cd"), "--shell: there is no program 'cd'"),
        (Around(setup="mkae"), "--setup: there is no program 'mkae'"),
        (Around(cleanup="mkae"), "--cleanup: there is no program 'mkae'"),
        (Around(cleanup="if"), "--cleanup 'if' is not a shell command"),
        (Around(setup="true\0"), "--setup contains a NUL byte"),
    ],
    ids=str,
)
def test_what_cannot_be_done_around_the_runs(around, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        read_workload(Description("true", tmp_path, around=around))


def test_a_command_is_checked_by_its_own_shell(tmp_path):
    process_substitution = "diff <(true) <(true)"
    with pytest.raises(UsageError, match="is not a shell command"):
        read_workload(Description(process_substitution, tmp_path, around=Around(shell="dash")))
    assert read_workload(Description(process_substitution, tmp_path, around=Around(shell="bash")))


def test_what_is_no_shell_that_we_know_is_not_asked(tmp_path):
    workload = read_workload(Description("print(1", tmp_path, around=Around(shell=sys.executable)))
    assert workload.command == "print(1"


def test_only_what_leaves_the_comparison_open_is_recognised(tmp_path):
    for comparison, open_yet in ((Comparison(), True), (Comparison(goal="makespan"), False)):
        _workload, options = planned_run(Description("true", tmp_path, comparison), RunOptions())
        assert options.recognise is open_yet


# --- parameters ------------------------------------------------------------------------------------------------------


def test_each_value_is_a_run_of_its_own(tmp_path):
    described = Description("true -j {n} {mode} {other}", tmp_path, around=Around(prepare="echo {n}"))
    runs = planned_runs(described, RunOptions(name="scan"), ["n=1,2", "mode=a"])
    assert [workload.command for workload, _ in runs] == ["true -j 1 a {other}", "true -j 2 a {other}"]
    assert [workload.prepare for workload, _ in runs] == ["echo 1", "echo 2"]
    assert [options.name for _, options in runs] == ["scan n=1 mode=a", "scan n=2 mode=a"]
    assert len({workload.key for workload, _ in runs}) == 2
    assert [len(planned_runs(described, RunOptions(), parameters)) for parameters in ([], ["n=1,2", "mode=a,b"])] == [
        1,
        4,
    ]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["n"], "--parameter 'n' is not NAME=VALUE,VALUE"),
        (["n="], "--parameter 'n=' is not NAME"),
        (["n=1,,2"], "is not NAME"),
        (["1n=1"], "is not NAME"),
        (["n=1,1"], "has a value twice"),
        (["n=1", "n=2"], "--parameter n is given twice"),
        (["m=1"], "--parameter m is used nowhere"),
        (["n=" + ",".join(map(str, range(33)))], "asks for 33 runs"),
        (["n=true,mkae"], "there is no program 'mkae'"),
    ],
    ids=str,
)
def test_bad_parameters(parameters, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        planned_runs(Description("{n} x", tmp_path), RunOptions(), parameters)


def test_several_runs_cannot_wait(tmp_path):
    with pytest.raises(UsageError, match="--parameter makes several runs, which cannot wait"):
        planned_runs(Description("true {n}", tmp_path), RunOptions(approve=(ApprovalStage.PLAN,)), ["n=1"])


@pytest.mark.parametrize("name", ["a\nb", "x" * 81, "\x1b[2J"])
def test_bad_names(name):
    with pytest.raises(UsageError, match="cannot be a name"):
        read_name(name)
