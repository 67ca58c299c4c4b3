"""A profile for people and for prompts: short, bounded, 80 columns, and nothing in it steers a terminal."""

from __future__ import annotations

import json

import pytest

from agents.llm.exchange import estimated_tokens
from kernel_bpf.observe.sched_probe import Switch
from schedagent.core.errors import UsageError
from schedagent.core.host_profile import read_profile, to_json
from schedagent.observing.commands import name
from schedagent.observing.drawing import BAR, COLUMNS, HEIGHT, WIDTH, bars, chart, columns, host_pages
from schedagent.observing.perfetto import chrome_trace
from schedagent.observing.text import summary
from schedagent.observing.tracing import distribution
from tests.support.observed_host import histogram, largest_profile


def test_the_summary_of_the_largest_profile_is_below_400_tokens():
    text = summary(largest_profile())
    assert estimated_tokens(text) < 400, estimated_tokens(text)


def test_a_profile_survives_json_and_a_wrong_one_is_refused():
    profile = largest_profile()
    assert read_profile(json.dumps(to_json(profile))) == profile
    for wrong, why in (
        ("{}", "no profile: version"),
        ("nonsense", "no profile"),
        (json.dumps({**to_json(profile), "seconds": "3"}), "no profile: seconds"),
        (json.dumps({**to_json(profile), "version": 9}), "of version 9"),
    ):
        with pytest.raises(UsageError, match=why):
            read_profile(wrong)


def test_no_line_is_longer_than_80_columns():
    lines = list(host_pages(largest_profile()))
    assert [line for line in lines if len(line) > COLUMNS] == []
    assert {"Commands:", "Latency-critical threads:", "Who wakes whom:", "Processes:", "Changes:"} <= set(lines)


def test_names_of_processes_are_printable():
    assert name(b"\x1b[2J\n\xff") == "?[2J?\ufffd"
    assert name(b"") == "?"


def test_parallelism_is_drawn_over_time():
    drawn = columns([(5.0, 5.0, 1.0, 1.0), (10.0, 5.0, 2.0, 4.0)], 10.0)
    assert len(drawn) == WIDTH
    assert (drawn[0], drawn[-1]) == ((1.0, 1.0), (2.0, 4.0))
    rows = list(chart(drawn, 10.0))
    assert len(rows) == HEIGHT + 2
    half = 9 + WIDTH // 2
    assert rows[0][half + 1 :] == "." * (WIDTH // 2 - 1), "four wait or run in the second half"
    assert rows[0][9:half].strip() == ""
    assert rows[HEIGHT - 1][9:] == "#" * WIDTH


def test_histograms_are_bars_with_their_counts():
    lines = list(bars(distribution(histogram(b4=10, b5=30, b8=20))))
    assert [line.split()[-1] for line in lines] == ["40", "0", "20"]
    assert [line.count("#") for line in lines] == [BAR, 0, BAR // 2]
    assert lines[0].split()[:2] == ["4", "us"]


def test_a_trace_has_a_slice_for_each_time_on_a_cpu():
    switches = [
        Switch(1_000_000, 7_000, 11, 11, 0, 0, b"one"),
        Switch(3_000_000, 0, 12, 10, 0, 1, b"two"),
        Switch(4_000_000, 0, 0, 0, 0, 0, b""),
        Switch(9_000_000, 0, 11, 11, 0, 0, b"one"),
        Switch(2_000_000, 0, 13, 13, 1, 0, b"\xff\x1b"),
    ]
    trace = json.loads("".join(chrome_trace(switches, 5, "the machine")))
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [(each["name"], each["tid"], each["ts"], each["dur"]) for each in slices] == [
        ("one", 0, 0.0, 2000.0),
        ("two", 0, 2000.0, 1000.0),
    ], "nobody knows when the last one of each CPU ends, and nothing runs on an idle one"
    assert slices[0]["args"] == {"thread": 11, "process": 11, "waited_us": 7.0, "left": "sleeping"}
    assert trace["otherData"] == {"scope": "the machine", "switches": 5, "switches_not_kept": 5}


def test_an_empty_trace_is_one_too():
    assert json.loads("".join(chrome_trace([], 0, "x")))["traceEvents"]
