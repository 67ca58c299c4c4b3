"""Presets against what the tools really print: excerpts, cut down by hand, of runs of a second or of their manuals."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest

from schedagent.core.errors import MetricError
from schedagent.core.readings import presets
from schedagent.core.readings.metric import problem_of
from schedagent.core.readings.presets import find_preset, load_presets, settle, with_preset
from schedagent.core.readings.readings import OutputReader
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.workload import Goal, WorkloadCommand
from tests.support.benchmark_outputs import OUTPUTS
from tests.support.paths import ROOT

WORKLOAD = WorkloadCommand("./bench.sh", "/srv")


def settled(output, workload=WORKLOAD):
    return settle(workload, output, recognise=True)


@pytest.mark.parametrize("excerpt", OUTPUTS, ids=lambda excerpt: excerpt.name)
def test_a_benchmark_is_recognised_and_read(excerpt):
    found = settled(excerpt.output, WorkloadCommand(excerpt.command, "/srv"))
    workload = found.workload
    assert workload.preset == excerpt.preset
    values = OutputReader(workload).read(excerpt.output, strict=True)
    read = {workload.objective: values.objective} if workload.metric else {}
    read |= dict(values.named)
    assert read == {name: pytest.approx(value) for name, value in excerpt.values.items()}


def test_every_preset_is_tried_on_an_output():
    assert {excerpt.preset for excerpt in OUTPUTS} == set(load_presets())


@pytest.mark.parametrize("name", load_presets())
def test_every_preset_can_be_used(name):
    preset = load_presets()[name]
    metrics = [guard.metric for guard in preset.guards] + ([preset.objective] if preset.objective else [])
    assert metrics
    for metric in metrics:
        assert problem_of(metric.expression, group_needed=True) == ("", "")
    assert len({metric.name for metric in metrics}) == len(metrics)
    assert all(0 < guard.margin <= 1 for guard in preset.guards)
    assert set(preset.over) <= set(load_presets())
    assert preset.title


def test_the_user_is_shown_what_was_recognised_and_read():
    [schbench] = (excerpt for excerpt in OUTPUTS if excerpt.name == "schbench")
    assert settled(schbench.output).notes == (
        "looks like schbench: objective wake-up p99, guards requests/s and request p99 "
        "(to compare the wall time: --preset none)",
        "wake-up p99: read 3.06 ms from: `* 99.0th: 3060       (13036 samples)` (matched 2 times; the last one counts)",
        "requests/s: read 7324.45 from: `average rps: 7324.45`",
        "request p99: read 24.288 ms from: `* 99.0th: 24288      (13117 samples)` "
        "(matched 2 times; the last one counts)",
    )
    kinds = (("wake-up p99", "s"), ("requests/s", ""), ("request p99", "s"))
    assert settled(schbench.output).workload.units == kinds
    assert settled(schbench.output).workload.key == replace(settled(schbench.output).workload, units=()).key


def test_what_was_not_printed_is_not_guarded():
    output = "Running 1s test @ x\n  1 threads and 4 connections\n    Latency     4.79ms\nRequests/sec:    876.44\n"
    found = settled(output)
    assert [guard.metric.name for guard in found.workload.guards] == ["mean latency"]
    assert "not printed, so not guarded: p99" in found.notes


def test_an_output_of_nothing_known_is_compared_by_the_wall_time():
    assert settled("done\n") == (WORKLOAD, ())


def test_nothing_is_recognised_unless_that_is_wanted():
    output = OUTPUTS[0].output
    assert settle(WORKLOAD, output, recognise=False) == (WORKLOAD, ())


def test_a_tool_without_its_number_is_compared_by_the_wall_time_and_says_what_helps():
    found = settled("stress-ng: info:  [11979] successful run completed in 1.01s\n")
    assert found.workload == WORKLOAD
    assert found.notes == (
        "looks like stress-ng, but did not print bogo ops/s: the wall time is compared "
        "(stress-ng prints numbers with --metrics)",
    )


def test_two_tools_in_one_output_are_not_guessed_at():
    hackbench, pgbench = (
        next(excerpt.output for excerpt in OUTPUTS if excerpt.preset == name) for name in ("hackbench", "pgbench")
    )
    found = settled(hackbench + pgbench)
    assert found.workload == WORKLOAD
    assert found.notes == (
        "looks like hackbench and pgbench: the wall time is compared, unless you choose "
        "--preset hackbench or --preset pgbench",
    )


def test_a_preset_by_name_needs_its_objective():
    workload = with_preset(WORKLOAD, find_preset("wrk2"))
    with pytest.raises(MetricError, match=r"--preset wrk2 \(p99\) .* matched nothing .*\n    done") as caught:
        settle(workload, "done\n", recognise=False)
    assert caught.value.hint == "wrk2 prints percentiles with --latency"


def test_guards_of_the_user_must_be_there_and_come_beside_those_of_a_preset():
    guard = Guard(Metric("errors", r"errors: (\d+)", Direction.LOWER), 0.5)
    workload = WorkloadCommand("./bench.sh", "/srv", guards=(guard,))
    [hackbench] = (excerpt for excerpt in OUTPUTS if excerpt.name == "hackbench")
    with pytest.raises(MetricError, match=r"--guard errors .* matched nothing"):
        settled(hackbench.output, workload)
    found = settled(hackbench.output + "errors: 0\n", workload)
    assert (found.workload.preset, found.workload.guards) == ("hackbench", (guard,))
    assert found.notes[-1].startswith("errors: read 0 from: `errors: 0`; 0.5, half of its last digit, stands for it")


def test_the_key_is_that_of_what_is_compared():
    build = next(excerpt for excerpt in OUTPUTS if excerpt.preset == "ninja")
    compared = settled(build.output, WorkloadCommand(build.command, "/srv")).workload
    assert compared.guards
    assert compared.key == WorkloadCommand(build.command, "/srv").key, "the wall time still is"
    by_output = settled(OUTPUTS[0].output).workload
    assert by_output.key != WORKLOAD.key, "verdicts on the wall time teach nothing about a latency"
    assert by_output.key == with_preset(WORKLOAD, find_preset(by_output.preset)).key, "however the preset was chosen"
    assert by_output.goal in (Goal.LATENCY, Goal.THROUGHPUT)


def test_an_output_on_which_our_expressions_take_too_long_is_not_recognised(monkeypatch):
    def too_long(expression, text):
        raise MetricError("too long")

    monkeypatch.setattr(presets, "search", too_long)
    assert settled(OUTPUTS[0].output) == (WORKLOAD, ())


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "line", ["T: 0 ( ", "Wakeup Latencies percentiles (usec)\n 50.0th: 1\n", "[1/2] x\n", '"mean": ']
)
def test_a_megabyte_of_half_an_output_does_not_hold_up_recognition(line):
    settled(line * (1_000_000 // len(line)))


def test_the_presets_are_installed():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = table["tool"]["setuptools"]["package-data"]["schedagent"]
    for file in presets.PRESETS.iterdir():
        place = file.relative_to(ROOT / "schedagent")
        assert any(place.match(pattern) for pattern in patterns), place
