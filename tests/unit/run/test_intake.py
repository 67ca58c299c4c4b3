"""What the user typed becomes a workload; refusals are tested through the command line (test_cli.py)."""

from __future__ import annotations

import pytest

from schedagent.core.errors import UsageError
from schedagent.core.trials.metric_options import Comparison
from schedagent.core.trials.workload import Goal
from schedagent.run.intake import Around, Description, read_workload


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
