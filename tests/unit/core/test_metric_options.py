"""What is compared, in words: both forms of --metric, guards, presets, and every contradiction in one line."""

from __future__ import annotations

import pytest

from schedagent.core.errors import UsageError
from schedagent.core.readings.metric_options import Comparison, as_options, measured
from schedagent.core.readings.presets import load_presets
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.workload import Goal, WorkloadCommand

WORKLOAD = WorkloadCommand("./bench", "/srv")
P99 = r"p99=p99: ([0-9.]+):lower"
RPS = r"rps=rps: ([0-9.]+):higher"
NAMED_P99 = Metric("p99", r"p99: ([0-9.]+)", Direction.LOWER)
NAMED_RPS = Metric("rps", r"rps: ([0-9.]+)", Direction.HIGHER)
SCHBENCH = load_presets()["schbench"]


def read(*metrics, guards=(), objectives=(), goal="", preset=""):
    return measured(WORKLOAD, Comparison(metrics, guards, objectives, goal, preset))


def test_the_short_form():
    workload = read(r"p99: (\d+)", goal="latency")
    assert (workload.goal, workload.metric, workload.objective) == (Goal.LATENCY, r"p99: (\d+)", "")
    assert read(r"p99: (\d+)").goal is Goal.MAKESPAN
    assert read() == WORKLOAD


@pytest.mark.parametrize("expression", [r"p99=(\d+)", r"lat=(\d+):us", r"(?P<unit>\w+)=(\d+)", r"a:(\d+)"])
def test_an_expression_with_the_marks_of_the_long_form(expression):
    assert read(expression).metric == expression


def test_a_name_with_its_direction():
    workload = read(P99)
    assert (workload.goal, workload.metric, workload.objective) == (Goal.LATENCY, NAMED_P99.expression, "p99")
    assert read(RPS).goal is Goal.THROUGHPUT
    assert read(RPS, goal="throughput") == read(RPS)
    assert workload.key == read(NAMED_P99.expression, goal="latency").key, "a name is no other work"


def test_one_of_several_is_compared_and_the_others_are_shown():
    workload = read(P99, RPS, objectives=("rps",))
    assert (workload.objective, workload.goal, workload.metrics) == ("rps", Goal.THROUGHPUT, (NAMED_P99,))
    workload = read(P99, RPS, objectives=("wall time",))
    assert (workload.objective, workload.metric, workload.metrics) == ("", "", (NAMED_P99, NAMED_RPS))
    assert workload.goal is Goal.MAKESPAN


@pytest.mark.parametrize(("text", "margin"), [("5%", 0.05), ("2.5 %", 0.025), ("100%", 1)])
def test_a_guard(text, margin):
    workload = read(P99, guards=(f"{RPS}:{text}",))
    assert workload.guards == (Guard(NAMED_RPS, margin),)
    assert workload.key == read(P99).key, "what is guarded is no other work"


def test_a_guard_of_the_wall_time():
    workload = read(guards=(f"{RPS}:5%",))
    assert (workload.metric, workload.goal, workload.guards) == ("", Goal.MAKESPAN, (Guard(NAMED_RPS, 0.05),))
    assert workload.key == WORKLOAD.key


def test_a_preset():
    workload = read(preset="schbench")
    assert (workload.preset, workload.objective, workload.goal) == ("schbench", "wake-up p99", Goal.LATENCY)
    assert workload.guards == SCHBENCH.guards
    assert read(preset="none") == WORKLOAD
    assert read(preset="ninja").goal is Goal.MAKESPAN


def test_a_guard_of_a_preset_with_another_margin_and_one_of_ones_own():
    workload = read(P99, preset="schbench", guards=("requests/s:20%", f"{RPS}:5%"))
    assert {guard.metric.name: guard.margin for guard in workload.guards} == {
        "requests/s": 0.2,
        "request p99": 0.1,
        "rps": 0.05,
    }
    assert workload.metrics == (NAMED_P99,)
    assert workload.objective == "wake-up p99"


def test_a_preset_is_part_of_the_key_by_the_name_of_its_objective():
    assert read(preset="schbench").key != WORKLOAD.key
    assert read(preset="schbench", guards=("requests/s:20%",)).key == read(preset="schbench").key
    assert read(preset="ninja").key == WORKLOAD.key, "the wall time is compared, so earlier lessons hold"


def test_what_leaves_the_comparison_to_the_output():
    assert Comparison().leaves_open
    assert Comparison(guards=(f"{RPS}:5%",)).leaves_open
    for decided in (Comparison((P99,)), Comparison(goal="makespan"), Comparison(preset="none")):
        assert not decided.leaves_open


@pytest.mark.parametrize(
    "comparison",
    [
        Comparison(),
        Comparison((r"p99: (\d+)",)),
        Comparison((r"p99: (\d+)",), goal="throughput"),
        Comparison((P99,), (f"{RPS}:2.5%",)),
        Comparison((P99, RPS), (), ("rps",)),
        Comparison((P99, RPS), (), ("wall time",)),
        Comparison((RPS,), (), ("wall time",)),
        Comparison((), (), (), "", "schbench"),
        Comparison((P99,), ("requests/s:20%", f"{RPS}:5%"), (), "", "schbench"),
    ],
    ids=str,
)
def test_the_options_of_a_workload_make_the_same_workload(comparison):
    workload = measured(WORKLOAD, comparison)
    words = as_options(workload)
    options = {name: [] for name in ("--metric", "--guard", "--objective", "--goal", "--preset")}
    for name, value in zip(words[::2], words[1::2], strict=True):
        options[name].append(value)
    metrics, guards, objectives, goal, preset = options.values()
    again = measured(WORKLOAD, Comparison(metrics, guards, objectives, "".join(goal), "".join(preset)))
    assert {guard.metric.name: guard for guard in again.guards} == {
        guard.metric.name: guard for guard in workload.guards
    }
    assert (again.metric, again.goal, again.objective, again.metrics, again.preset) == (
        *(workload.metric, workload.goal, workload.objective),
        *(workload.metrics, workload.preset),
    )


@pytest.mark.parametrize(
    ("metrics", "options", "message", "hint"),
    [
        # two objectives
        ((P99, RPS), {}, "two objectives: p99 and rps", "--objective 'p99'"),
        (("a (.*)", "b (.*)"), {}, "two objectives: 'a (.*)' and 'b (.*)'", "NAME=REGEX:lower"),
        (("a (.*)", RPS), {}, "two objectives: 'a (.*)' and rps", "--objective NAME chooses"),
        ((P99, RPS), {"objectives": ("p99", "rps")}, "two objectives: p99 and rps", "guard the other"),
        (("a (.*)",), {"preset": "schbench"}, "two objectives: 'a (.*)' and that of --preset schbench", "NAME=REGEX"),
        ((P99,), {"preset": "schbench", "objectives": ("p99",)}, "two objectives: p99, and wake-up p99", "leave"),
        ((P99, RPS), {"objectives": ("rsp",)}, "--objective 'rsp' is not the name of a --metric", "did you mean rps?"),
        ((P99,), {"objectives": ("zzz",)}, "--objective 'zzz' is not the name", "accepted: p99, wall time"),
        # a guard without a number
        ((), {"guards": ("rps=rps:higher:5%",)}, "'rps' has no group that finds a number", "put ( ) around"),
        ((), {"guards": (RPS,)}, "has no margin", "NAME=REGEX:DIRECTION:MARGIN"),
        ((), {"guards": (r"rps: (\d+)",)}, "is not a guard", "NAME=REGEX:DIRECTION:MARGIN"),
        ((), {"guards": (r"rps: (\d+):5%",)}, "NAME:MARGIN is for a guard of a --preset", "NAME=REGEX"),
        ((), {"guards": ("rpx:5%",), "preset": "schbench"}, "has no guard 'rpx'", "it has: requests/s, request p99"),
        ((), {"guards": (f"{RPS}r:5%",)}, "the direction 'higherr' is not known", "accepted: lower, higher"),
        # margins
        ((), {"guards": (f"{RPS}:0%",)}, "a margin of 0% cannot be used", "above 0 %, at most 100 %"),
        ((), {"guards": (f"{RPS}:101%",)}, "a margin of 101% cannot be used", "above 0 %, at most 100 %"),
        ((), {"guards": (f"{RPS}:-5%",)}, "the margin '-5%' is not a percentage", "above 0 %"),
        ((), {"guards": (f"{RPS}:5",)}, "the margin '5' is not a percentage", "5%"),
        ((), {"guards": ("requests/s:0%",), "preset": "schbench"}, "a margin of 0% cannot be used", "above 0 %"),
        # presets
        ((), {"preset": "schbnch"}, "--preset 'schbnch' is not known", "did you mean schbench"),
        ((), {"preset": "zzz"}, "--preset 'zzz' is not known", "accepted: cyclictest, fio, "),
        # directions
        ((P99,), {"guards": (r"p99=p99: (\d+):higher:5%",)}, "p99 is better lower in one option and higher", "one"),
        ((P99,), {"goal": "throughput"}, "throughput contradicts p99, which is better lower", "leave out"),
        ((RPS,), {"goal": "latency"}, "--goal latency contradicts rps, which is better higher", "leave out --goal"),
        ((), {"goal": "throughput", "preset": "schbench"}, "--goal throughput contradicts wake-up p99", "leave out"),
        ((), {"goal": "makespan", "preset": "schbench"}, "contradicts --preset schbench, which compares wake-up", ""),
        ((), {"goal": "latency", "preset": "ninja"}, "contradicts --preset ninja, which compares the wall time", ""),
        ((r"p99=(\d+):lowr",), {}, "the direction 'lowr' is not known", "accepted: lower, higher"),
        ((r"(\d+):lower",), {}, "has a direction, but no name", "NAME=REGEX:lower"),
        # names
        ((P99, P99), {"objectives": ("p99",)}, "the name p99 is given twice", "a name of its own"),
        ((P99,), {"guards": (f"{P99}:5%",)}, "the name p99 is given twice", "a name of its own"),
        ((r"wall time=(\d+):lower",), {}, "'wall time' cannot be a name", "begin with a letter"),
        ((r"=(\d+):lower",), {}, "'' cannot be a name", "begin with a letter"),
        ((r"requests/s=(\d+):higher",), {"preset": "wrk"}, "the name requests/s is that of the objective", "another"),
        # expressions and goals
        ((r"p99=(:lower",), {}, "'(' is not a regular expression: missing )", "quote it"),
        ((r"p99=(a)(b):lower",), {}, "has 2 groups", "put ( ) around the one number"),
        (("p99: (",), {}, "'p99: (' is not a regular expression", "quote it"),
        ((), {"goal": "latency"}, "--goal latency needs --metric", "p99"),
        ((), {"goal": "latncy"}, "--goal 'latncy' is not known", "did you mean latency"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_says_what_to_do(metrics, options, message, hint):
    with pytest.raises(UsageError) as caught:
        read(*metrics, **options)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message
