"""What was measured, in every face: both arms' values, guards, what is expected on hardware, the split, two modes."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from statistics import median

import pytest
from pydantic import TypeAdapter
from rich.console import Console

from schedagent.core.trials.trial import DEFAULT_ARM, Block, Sample
from schedagent.core.trials.usage import Usage
from schedagent.report.as_json import json_schema, to_json
from schedagent.report.build import read_report
from schedagent.report.faces.remarks import arm_names, remarks
from schedagent.report.faces.strips import levels, strips
from schedagent.report.json_form import ReportForm
from schedagent.report.terminal import render
from schedagent.report.values import SECONDS, ArmValues, ValueReport, figure, split_of, values_of
from tests.support.measured_runs import (
    BATCH,
    BUILD,
    INTERACTIVE,
    LAYERED,
    LONGEST,
    NICE,
    PAIRS,
    SHARED,
)


def as_json(report):
    values = json.loads(json.dumps(to_json(report), allow_nan=False))
    TypeAdapter(ReportForm).validate_json(json.dumps(values), strict=True)
    return values


def text_of(report, width=80, terminal=False):
    stream = io.StringIO()
    render(report, Console(file=stream, width=width, emoji=False, force_terminal=terminal, color_system=None))
    return stream.getvalue()


def sample(arm, value, *, wall_s=1.0, cpu_s=1.0, **further):
    return Sample(arm, value, int(wall_s * 1e9), int(cpu_s * 1e9), 0, "2026-11-30T02:00:00+00:00", 1, **further)


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_has_what_is_expected_on_hardware_beside_what_was_measured(build):
    first, second, third = as_json(build)["iterations"][0]["candidates"]
    assert first["verdict"]["outcome"] == "better"
    assert first["expected"] == {
        "ratio": 0.91, "low": pytest.approx(0.89), "high": pytest.approx(0.93),
        "bounds": {"utilisation": pytest.approx(0.915), "raw": first["verdict"]["ratio"]},
    }  # fmt: skip
    assert second["verdict"]["outcome"] == "no useful gain"
    assert (third["verdict"], third["expected"], third["guards"], third["values"]) == (None, None, [], {})
    assert as_json(build)["costs"] == {"kappa": 8.3, "lab_switch_ns": 21400.0, "host_switch_ns": 1350.0}


def test_json_has_every_guard_with_its_margin(service):
    layered, interactive = as_json(service)["iterations"][0]["candidates"]
    assert layered["verdict"]["outcome"] == "trade-off"
    assert layered["expected"] is None, "measured on hardware"
    assert [(guard["name"], guard["margin"], guard["held"]) for guard in layered["guards"]] == [
        ("requests/s", 0.05, False),
        ("request p99", 0.1, False),
    ]
    assert all(guard["low"] < guard["ratio"] < guard["high"] for guard in layered["guards"])
    assert all(guard["held"] for guard in interactive["guards"])


def test_json_has_the_absolute_values_of_both_arms(service):
    report = as_json(service)
    candidate = report["iterations"][0]["candidates"][0]
    assert list(candidate["values"])[:5] == ["wake-up p99", "requests/s", "request p99", "wall time", "CPU time"]
    requests = candidate["values"]["requests/s"]
    measured = [
        entry["values"]["requests/s"]
        for block in report["iterations"][0]["blocks"][1:]
        for entry in block["samples"]
        if entry["arm"] == LAYERED.key
    ]
    arm = requests["candidate"]
    assert (arm["n"], arm["median"], arm["worst"]) == (PAIRS, median(measured), min(measured))
    assert requests["lower_is_better"] is False
    assert requests["unit"] is None
    assert candidate["values"]["wall time"]["unit"] == "s"
    assert candidate["values"]["voluntary switches"]["default"]["n"] == PAIRS


def test_json_splits_the_time(build):
    split = as_json(build)["iterations"][0]["candidates"][0]["split"]
    assert split["wall_time"] == pytest.approx(split["cpu_time"] * split["utilisation"])
    assert split["cpu_time"] == pytest.approx(0.84, abs=0.01)


def test_the_schema_is_of_version_2_and_names_every_outcome(service):
    schema = json_schema()
    outcomes = schema["$defs"]["VerdictForm"]["properties"]["outcome"]["enum"]
    assert outcomes == [
        "better", "trade-off", "worse", "no difference", "no useful gain", "inconclusive", "failed",
    ]  # fmt: skip
    report = as_json(service)
    candidate = report["iterations"][0]["candidates"][0]
    for name, form in (
        ("SplitForm", candidate["split"]),
        ("GuardForm", candidate["guards"][0]),
        ("ValueForm", candidate["values"]["requests/s"]),
        ("ArmForm", candidate["values"]["requests/s"]["default"]),
        ("Usage", report["iterations"][0]["blocks"][0]["samples"][0]["usage"]),
    ):
        assert set(form) == set(schema["$defs"][name]["properties"])


def test_a_report_reads_as_it_was_stored(repository, tmp_path, build):
    stored = repository.run(build.run).report
    assert stored["version"] == 2
    assert as_json(read_report(repository, build.run, tmp_path / "none")) == stored


def test_a_leader_is_shown_by_its_own_blocks_and_who_lost_the_race_by_the_shared_ones(build):
    first, second, _third = as_json(build)["iterations"][0]["candidates"]
    for candidate, pairs in ((first, PAIRS), (second, SHARED)):
        assert candidate["verdict"]["pairs"] == len(candidate["pairs"]) == pairs
        assert candidate["values"]["wall time"]["default"]["n"] == pairs
    assert first["split"]["wall_time"] == pytest.approx(first["verdict"]["ratio"])


def test_a_knob_is_shown_without_a_claim(build):
    [knob] = as_json(build)["iterations"][0]["knobs"]
    assert (knob["name"], knob["value"]["candidate"]["n"]) == ("nice", SHARED)
    assert 0.94 < knob["ratio"] < 1
    assert 0.9 < knob["expected"] < 1.1
    shown = f"by nice: {knob['expected']:.3f} expected on hardware, {knob['ratio']:.3f} as measured, emulated"
    assert f"without a policy, {shown}" in " ".join(text_of(build).split())


# --- values and split ------------------------------------------------------------------------------------------------


def test_warm_up_and_failed_runs_count_in_neither_arm():
    blocks = [
        Block(0, (sample(DEFAULT_ARM, 90.0), sample("a", 90.0))),
        Block(1, (sample(DEFAULT_ARM, 2.0), sample("a", 1.0))),
        Block(2, (sample(DEFAULT_ARM, 80.0), replace(sample("a", 1.0), exit_status=1))),
        Block(3, (sample(DEFAULT_ARM, 70.0), sample("b", 1.0))),
    ]
    value = values_of(blocks, "a", BUILD, 2)[0]
    assert (value.name, value.default.runs, value.candidate.runs) == ("wall time", (2.0,), (1.0,))
    assert (value.default.spread, value.default.worst) == (0, 2.0)
    assert values_of(blocks, "c", BUILD, 2) == ()
    assert split_of(blocks, "c") is None


def test_runs_of_an_older_version_have_times_and_no_usage(service):
    blocks = [
        replace(block, samples=tuple(replace(entry, usage=None, values={}) for entry in block.samples))
        for block in service.iterations[0].blocks
    ]
    names = [value.name for value in values_of(blocks, LAYERED.key, service.workload, 2)]
    assert names == ["wake-up p99", "wall time", "CPU time", "utilisation"]
    assert "usage" not in text_of(replace(service, iterations=(replace(service.iterations[0], blocks=blocks),)))


def test_a_value_that_one_arm_lacks_is_left_out():
    blocks = [Block(1, (sample(DEFAULT_ARM, 2.0, values={"x": math.nan}), sample("a", 1.0, values={"x": 3.0})))]
    assert "x" not in [value.name for value in values_of(blocks, "a", BUILD, 2)]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.2345, "s", "1.234 s"), (0.0123456, "s", "12.35 ms"), (4.2e-05, "s", "42.00 us"), (3e-9, "s", "3 ns"),
        (0.0, "s", "0 s"), (123.456, "s", "123.5 s"), (0.853, "fraction", "85.3 %"), (1234567.0, None, "1,234,567"),
        (170.25, None, "170.2"), (math.nan, "s", "-"), (9000.0, "count", "9000"),
    ],
    ids=str,
)  # fmt: skip
def test_figures_have_four_digits_and_a_unit(value, unit, text):
    assert figure(value, unit) == text


# --- the terminal ----------------------------------------------------------------------------------------------------


def test_what_is_expected_stands_first_and_the_raw_ratio_beside_it_is_called_emulated(build):
    text = text_of(build)
    [headings] = [line for line in text.splitlines() if line.startswith("┃")]
    assert headings.replace("┃", " ").split() == ["policy", "pairs", "expected", "interval", "raw", "verdict"]
    [row] = [line for line in text.splitlines() if line.startswith("│") and "longest_first" in line]
    assert row.replace("│", " ").split()[2:] == ["12", "0.910", "0.890", "to", "0.930", "0.770", "better"]
    assert "raw: as measured, emulated" in text
    assert "a task\n    switch costs 21.40 us here and 1.350 us there" in text
    assert "wall time x 0.770 = CPU time x 0.839, use of the CPUs x 0.917" in text


def test_guards_are_held_or_broken_with_ratio_and_margin(service):
    text = text_of(service)
    assert "guard requests/s: broken, ratio 0." in text
    assert "; may be 5 % worse" in text
    assert "guard request p99: held" in text
    assert "trade-off" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_both_arms_have_absolute_values_and_a_strip_only_on_a_terminal(build, terminal):
    lines = text_of(build, terminal=terminal).splitlines()
    place = next(place for place, line in enumerate(lines) if "wall time, default" in line)
    default, candidate = lines[place : place + 2]
    assert default.split()[:9] == ["wall", "time,", "default", "3.205", "s", "44.92", "ms", "3.271", "s"]
    assert candidate.split()[:4] == ["this", "policy", "2.455", "s"]
    assert ("●" in default) is terminal
    assert all(len(line) <= 80 for line in lines if "this policy" in line or ", default" in line)


def test_two_modes_stand_beside_the_median(service):
    text = " ".join(text_of(service).split())
    assert re.search(
        r"wake-up p99 of interactive has two modes: 9 of 12 runs near [\d.]+ us and 3 of 12 runs near [\d.]+ ms", text
    )
    entry = next(entry for entry in service.candidates if entry.candidate == INTERACTIVE)
    assert f"worst {figure(entry.values[0].candidate.worst, SECONDS)}" in text
    modes = as_json(service)["iterations"][0]["candidates"][1]["values"]["wake-up p99"]["candidate"]["modes"]
    assert [(mode["runs"], mode["share"]) for mode in modes] == [(9, 0.75), (3, 0.25)]


def test_what_runs_left_behind_and_filled_is_said(build):
    usage = Usage(1, 1, left_behind=("sleep", "\x1b[31mx"), left_cpu_ns=2_000_000_000, full="/tmp/big")
    iteration = build.iterations[0]
    first = iteration.blocks[1].samples[0]
    block = Block(1, (replace(first, usage=usage), replace(iteration.blocks[1].samples[1], exit_status=2)))
    report = replace(build, iterations=(replace(iteration, blocks=(block,)),))
    lines = "\n".join(remarks(report))
    assert "1 run left processes behind" in lines
    assert "2.000 s of CPU time count nowhere" in lines
    assert "1 run filled /tmp/big" in lines
    assert "failed: it ended with exit status 2" in lines
    assert "\x1b" not in text_of(report)
    assert remarks(build) == []


def test_arms_of_one_policy_are_told_apart(build):
    names = {"": "default", LONGEST.key: "longest_first", BATCH.key: "batch", NICE: "nice"}
    assert arm_names(build) == names | plain(build)
    entries = list(build.candidates)
    other = replace(entries[1], candidate=replace(LONGEST, tunables=(("slice_us", 1),)))
    twice = replace(build, iterations=(replace(build.iterations[0], candidates=(entries[0], other)),))
    assert set(arm_names(twice).values()) - {"nice"} == {
        "default",
        "longest_first slice_us=20000",
        "longest_first slice_us=1",
    }


def plain(report):
    return {entry.candidate.key: "plain" for entry in report.candidates if entry.candidate.policy == "plain"}


def arm(*runs):
    return ArmValues(median(runs), 0, max(runs), runs, ())


def test_strips_share_a_scale_and_count_what_coincides():
    value = ValueReport("x", None, True, arm(1.0, 1.0, 1.0, 1.0), arm(2.0, 3.0, 3.0))
    assert strips(value, 5) == ("●    ", "  · •")
    assert strips(ValueReport("x", None, True, arm(1.0, 10.0), arm(100.0)), 5) == ("· ·  ", "    ·")
    assert strips(ValueReport("x", None, True, arm(5.0), arm(5.0)), 3) == ("·  ", "·  ")


def test_what_held_over_time_is_drawn_by_its_most():
    assert levels([(0.0, 8), (0.5, 4), (1.0, 1)], 2.0, 4) == "█▄▁▁"
    assert levels([(0.0, 1), (0.1, 8), (0.2, 1)], 1.0, 2) == "█▁"
    assert levels([(0.5, 0)], 1.0, 2) == "  "


@pytest.mark.parametrize("terminal", [True, False])
def test_the_profile_is_drawn_on_a_terminal_alone(build, terminal):
    assert ("runnable tasks, at most 10  |█" in text_of(build, terminal=terminal)) is terminal


def test_a_run_whose_best_is_a_trade_off_is_listed_as_one(service):
    traded = replace(service, best=None)
    assert traded.outcome == "trade-off"
    [first, second] = service.iterations[0].candidates
    none = replace(
        traded, iterations=(replace(service.iterations[0], candidates=(replace(first, verdict=None), second)),)
    )
    assert none.outcome == "keep the default scheduler"
