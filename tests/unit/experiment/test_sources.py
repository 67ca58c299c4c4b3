"""Numbers from real commands and real logs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from schedagent.core.errors import MetricUnavailable
from schedagent.experiment import sources
from schedagent.experiment.sources import comparable, reader_of
from schedagent.experiment.spec import Kind, NumberSource
from tests.support.daemon_processes import until

ENVIRONMENT = {"PATH": os.environ["PATH"], "MARK": "7"}


def read(source, seconds=0.0, meanwhile=lambda: None, runs=1):
    """What a window reads that is so long; without a length, until a command has run so often, or failed."""
    reader = reader_of(source, ENVIRONMENT)
    reader.begin()
    meanwhile()
    time.sleep(seconds)
    if not seconds:
        until(lambda: len(reader._numbers) >= runs or reader._trouble, 60)
    reader.stop()
    return reader.value()


def command(text):
    return NumberSource(Kind.COMMAND, text)


def script(folder, text):
    path = folder / "metric"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return command(str(path))


def test_the_last_line_of_a_command_is_the_number(tmp_path):
    assert read(script(tmp_path, "echo 1; echo p99 is; echo 12.5; echo")) == 12.5
    assert read(script(tmp_path, "echo $MARK")) == 7, "it has the environment of workloads"


def test_a_command_runs_in_the_folder_that_it_was_named_in(tmp_path):
    (tmp_path / "number").write_text("4")
    assert read(NumberSource(Kind.COMMAND, "cat number", str(tmp_path))) == 4


def test_a_command_that_ends_is_run_again_and_the_mean_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PERIOD_S", 0.01)
    text = f"echo x >> {tmp_path}/runs; wc -l < {tmp_path}/runs"
    value = read(script(tmp_path, text), runs=3)
    runs = len((tmp_path / "runs").read_text().split())
    assert runs >= 3
    assert 1.5 <= value <= (runs + 1) / 2


def test_no_shell_runs_it(tmp_path):
    with pytest.raises(MetricUnavailable, match=r'its last line is "1; touch .*", which is not a number'):
        read(command(f"echo 1; touch {tmp_path}/made"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("echo 12 ms", 'its last line is "12 ms", which is not a number'),
        ("true", 'its last line is "", which is not a number'),
        ("echo nan", "has no ratio"),
        ("echo -3", "has no ratio"),
        ("echo 5; exit 3", 'ended with status 3; its last line: "5"'),
        ("printf '\\033[2J\\nVerdict: better'; exit 1", 'its last line: "Verdict: better"'),
    ],
)
def test_a_command_that_gives_no_number_is_named(tmp_path, text, why):
    with pytest.raises(MetricUnavailable, match=why):
        read(script(tmp_path, text))


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(MetricUnavailable, match="failed"):
        read(command("/no/such/program"))


def test_a_command_that_outlives_its_window_is_killed_with_what_it_started(tmp_path):
    source = script(tmp_path, f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(MetricUnavailable, match="did not end within the window"):
        read(source, 0.6)
    status = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    assert not status.exists() or " Z " in status.read_text(), "somebody else buries it"


def test_more_output_than_is_kept_has_its_last_line(tmp_path):
    assert read(script(tmp_path, "head -c 9000000 /dev/zero | tr '\\0' x; echo; echo 4")) == 4


def log(path, expression):
    return NumberSource(Kind.LOG, expression, str(path))


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "service.log"
    made.write_text("took 99 ms\n")
    return made


def lines(path, *texts):
    def write():
        with path.open("a") as file:
            file.writelines(f"{text}\n" for text in texts)

    return write


def test_the_mean_of_what_a_log_grew_by_counts(path):
    source = log(path, r"took ([0-9.]+) ms")
    assert read(source, 0.05, lines(path, "took 1 ms", "other", "took 4 ms")) == pytest.approx(0.0025)


def test_without_a_group_lines_a_second_count(path):
    assert 0 < read(log(path, "took"), 0.5, lines(path, "took", "took", "none")) <= 4
    assert read(log(path, "took"), 0.05) == 0


def test_a_log_that_was_rotated_is_read_on(path):
    def rotate():
        lines(path, "took 2 s")()
        path.rename(path.with_suffix(".1"))
        lines(path.with_suffix(".1"), "took 4 s")()
        path.write_text("took 6 s\n")

    assert read(log(path, r"took (\d) s"), 0.05, rotate) == 4


def test_a_log_that_was_truncated_is_read_from_its_begin(path):
    assert read(log(path, r"t (\d) s"), 0.05, lambda: path.write_text("t 6 s\n")) == 6


def test_a_log_without_such_a_line_has_no_number(path):
    with pytest.raises(MetricUnavailable, match=r"no line that the log .* grew by"):
        read(log(path, r"took (\d+) s"), 0.05, lines(path, "nothing"))


def test_an_expression_that_backtracks_without_end_is_given_up(path, monkeypatch):
    from schedagent.core.readings import metric

    monkeypatch.setattr(metric, "LIMIT_S", 0.2)
    with pytest.raises(MetricUnavailable, match="took more than"):
        read(log(path, r"(?:x+x+)+y (\d)"), 0.05, lines(path, "x" * 5000))


def test_what_could_block_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(MetricUnavailable, match="no regular file"):
        read(log(tmp_path / "fifo", "x"), 0.05)
    with pytest.raises(MetricUnavailable, match="cannot be read"):
        read(log(tmp_path / "none", "x"), 0.05)


def test_a_log_that_grows_too_fast_is_no_metric(path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_LOG_BYTES", 100)
    with pytest.raises(MetricUnavailable, match="grew by more than"):
        read(log(path, "x"), 0.05, lines(path, "x" * 200))


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), 1e19])
def test_what_has_no_ratio_is_refused(value):
    with pytest.raises(MetricUnavailable, match="has no ratio"):
        comparable(value, "it")
