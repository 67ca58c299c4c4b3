"""What is compared, on the command line: each refusal before the first run, scans, and what help and Tab know of it."""

from __future__ import annotations

import json
import re

import pytest

from schedagent.cli.guide import completion
from schedagent.cli.guide.topics import load_topics
from schedagent.core.readings.presets import load_presets
from tests.support.benchmark_outputs import SCHBENCH
from tests.support.command_line import refused

P99 = "p99=p99: ([0-9.]+):lower"
RPS = "rps=rps: ([0-9.]+):higher"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", P99, "--metric", RPS], "two objectives: p99 and rps hint: choose one: --objective 'p99'"),
        (["--metric", P99, "--objective", "p99", "--objective", "rps"], "two objectives: p99 and rps"),
        (["--guard", "rps=rps:higher:5%"], "has no group that finds a number"),
        (["--guard", RPS], "has no margin"),
        (["--guard", f"{RPS}:0%"], "a margin of 0% cannot be used hint: accepted: above 0 %, at most 100 %"),
        (["--guard", f"{RPS}:200%"], "a margin of 200% cannot be used"),
        (["--preset", "schbnch"], "--preset 'schbnch' is not known hint: did you mean schbench"),
        (["--metric", P99, "--guard", f"{RPS.replace('rps=', 'p99=')}:5%"], "p99 is better lower in one option and"),
        (["--metric", P99, "--goal", "throughput"], "--goal throughput contradicts p99"),
        (["--metric", "p99=p99: (:lower"], "is not a regular expression"),
        (["--metric", "p99=(a)(b):lower"], "has 2 groups"),
        (["--metric", "x (.*) \udcff"], "is not UTF-8 text"),
        (["--guard", "x=(.*)\udcff:lower:5%"], "is not UTF-8 text"),
        (["--shell", "nosuchshell"], "--shell: there is no program 'nosuchshell'"),
        (["--min-pairs", "5"], "--min-pairs"),
        (["--min-pairs", "21"], "--min-pairs"),
        (["--warmup", "0"], "--warmup"),
        (["--parameter", "n=1,2"], "--parameter n is used nowhere hint: write {n} in the command"),
        (["--name", "x" * 100], "cannot be a name"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_the_first_run(run, folders, words, message):
    text = refused(run("optimize", "true", *words), re.escape(message))
    assert text.count("hint: ") <= 1
    assert not (folders / "state").exists()


def test_options_reach_the_run(run, script):
    words = ("--metric", P99, "--metric", RPS, "--objective", "rps", "--guard", "err=err: (.*):lower:10%")
    around = ("--shell", "bash", "--ignore-failure", "--setup", "true", "--cleanup", "true")
    more = ("--warmup", "3", "--min-pairs", "8", "--name", "first try")
    shown = json.loads(run("optimize", "--dry-run", "--json", "true", *words, *around, *more).stdout)
    workload, options = shown["workload"], shown["options"]
    assert (workload["objective"], workload["goal"], workload["metric"]) == ("rps", "throughput", "rps: ([0-9.]+)")
    assert [metric["name"] for metric in workload["metrics"]] == ["p99"]
    assert [guard["margin"] for guard in workload["guards"]] == [0.1]
    assert (workload["shell"][-5:], workload["ignore_failure"]) == ("/bash", True)
    assert (workload["setup"], workload["cleanup"]) == ("true", "true")
    assert (options["warmup"], options["rules"]["minimum_pairs"], options["name"]) == (3, 8, "first try")
    assert not options["recognise"]


def test_a_preview_says_what_would_be_compared(run, script):
    compared = lambda *words: re.search(r"compare: +(.*)", run("optimize", "--dry-run", "true", *words).stdout)[1]  # noqa: E731
    assert compared() == "wall time (makespan); the output may choose a preset"
    assert compared("--preset", "none") == "wall time (makespan)"
    assert compared("--metric", "p99: (.*)", "--goal", "latency") == "p99: (.*) (latency)"
    assert compared("--preset", "schbench") == ("objective wake-up p99, guards requests/s and request p99 (latency)")


def test_each_value_of_a_parameter_is_a_run_with_its_report(run, script):
    result = run("optimize", "true {n}", "--parameter", "n=1,2", "--quiet", "--iterations", "1")
    assert result.exit_code == 0
    assert [line for line in ("true 1", "true 2") if line in result.stdout] == ["true 1", "true 2"]
    runs = json.loads(run("runs", "list", "--json").stdout)
    assert [listed["command"] for listed in runs] == ["true 2", "true 1"]


def test_a_run_tells_what_it_recognised(run, script, monkeypatch):
    monkeypatch.setattr(type(script.lab()), "observe", observing(script))
    result = run("optimize", "true", "--iterations", "1")
    assert "looks like schbench: objective wake-up p99" in result.stderr
    assert "read 7324.45 from: `average rps: 7324.45`" in result.stderr


def observing(script):
    from dataclasses import replace

    observe = type(script.lab()).observe

    def printing(lab, workload):
        sample, observation = observe(lab, workload)
        return replace(sample, output_tail=SCHBENCH), observation

    return printing


def test_tab_offers_presets():
    assert completion.presets("sch") == ["schbench"]
    assert "none" in completion.presets("")


def test_the_topic_lists_every_preset_with_what_it_compares_and_guards():
    text = load_topics()["presets"].text
    for preset in load_presets().values():
        [row] = re.findall(rf"^    {preset.name} +.*$", text, re.MULTILINE)
        objective = preset.objective.name if preset.objective else "wall time"
        columns = [column.strip() for column in re.split(r"  +", row.strip())]
        guards = [guard.metric.name for guard in preset.guards]
        assert columns[:2] == [preset.name, objective]
        assert guarded(columns[2:]) == guards


def guarded(columns):
    """The guards of a row; what several have in common may be written once, at the end."""
    if not columns:
        return []
    names = columns[0].split(", ")
    common = " completion latency"
    return [name if not columns[0].endswith(common) or name.endswith(common) else name + common for name in names]
