"""Reading specs: what is accepted, and that every mistake is told by the name of its field."""

import copy
import json
import re
import tomllib
from dataclasses import fields

import pytest
from hypothesis import given, settings

from schedagent.core.errors import SpecError, UsageError
from schedagent.core.policies.spec import (
    DISPATCHES,
    MEASURES,
    NUMBERS,
    ORDERS,
    PLACEMENTS,
    Bounds,
    Match,
    PolicySpec,
    TaskClass,
    check_spec,
    problems,
)
from schedagent.core.policies.spec_reader import read_spec, spec_schema, spec_table
from tests.support.random_specs import specs

TABLE = tomllib.loads("""
name = "two"
goal = "Short tasks first."
dispatch = "priority"

[[classes]]
name = "short"
match = { burst_us = { below = 3000 } }
order = "shortest_first"
priority = 1
preempts = true

[[classes]]
name = "rest"
slice_us = 20000
""")


def changed(**changes):
    """The table with fields set, by path: classes_0_slice_us=5."""
    table = copy.deepcopy(TABLE)
    for path, value in changes.items():
        place = table
        *steps, last = re.fullmatch(r"(?:(classes)_(\d)_)?(?:(match)_)?(\w+)", path).groups()
        for step in steps:
            if step is not None:
                place = place[int(step)] if step.isdigit() else place.setdefault(step, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    return table


def mistakes(table):
    with pytest.raises(SpecError) as error:
        read_spec(table)
    return error.value.message.splitlines()[1:]


def test_a_spec_is_read_with_its_defaults():
    spec = read_spec(TABLE)
    assert spec == PolicySpec(
        "two",
        "Short tasks first.",
        (
            TaskClass("short", Match(burst_us=Bounds(below=3000)), "shortest_first", preempts=True, priority=1),
            TaskClass("rest", slice_us=20000),
        ),
    )
    assert spec.classes[0].number("slice_us") == 5000
    assert [kind.name for kind in spec.by_rank] == ["short", "rest"]


def test_null_is_as_good_as_nothing():
    """Models that must give every field give null."""
    table = changed(starvation_ms=None) if "starvation_ms" in TABLE else copy.deepcopy(TABLE)
    table["starvation_ms"] = table["target_workloads"] = table["classes"][1]["match"] = None
    table["classes"][0]["match"]["nice"] = table["classes"][1]["priority"] = None
    assert read_spec(table) == read_spec(TABLE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": None}, "name: missing"),
        ({"name": 5}, "name = 5: not text"),
        ({"name": "Two"}, "name = 'Two': not 1 to 15 of a-z, 0-9 and _, beginning with a letter"),
        ({"name": "x" * 16}, f"name = '{'x' * 16}': not 1 to 15 of a-z, 0-9 and _, beginning with a letter"),
        ({"name": "static"}, "name = 'static': this word means something else in C; choose another"),
        ({"name": "size_t"}, "name = 'size_t': this word means something else in C; choose another"),
        ({"goal": None}, "goal: missing"),
        ({"goal": " "}, "goal: 1 characters, accepted are 1 to 300"),
        ({"goal": "x" * 301}, "goal: 301 characters, accepted are 1 to 300"),
        ({"goal": "a\x1b[2J"}, "goal: has characters that cannot be printed"),
        ({"goal": "a */ b"}, "goal: has the marks of a C comment, which it is going to stand in"),
        ({"target_workloads": "mixed"}, "target_workloads = 'mixed': not a list of words"),
        ({"target_workloads": []}, "target_workloads = []: not a list of words"),
        ({"target_workloads": ["mixed", "games"]}, "target_workloads[1] = 'games': accepted are batch-long-tail, "
            "parallel-build, latency-sensitive, cpu-batch, serial, mixed"),
        ({"dispatch": "random"}, "dispatch = 'random': accepted are priority, shares, round_robin"),
        ({"starvation_ms": 50}, "starvation_ms = 50: below 100"),
        ({"starvation_ms": 201}, "starvation_ms = 201: above 200, the most for several classes of which one is by "
            "burst_us, runtime_ms or wakeups_per_s"),
        ({"starvation_ms": 501, "classes_0_match": {"kthread": True}}, "starvation_ms = 501: above 500, the most for "
            "several classes"),
        ({"starvation_ms": 1001}, "starvation_ms = 1001: above 1000"),
        ({"starvation_ms": 1.5}, "starvation_ms = 1.5: not a whole number"),
        ({"starvation_ms": True}, "starvation_ms = True: not a whole number"),
        ({"preempt_scan_cpus": 65}, "preempt_scan_cpus = 65: above 64"),
        ({"colour": "red"}, "colour: no such field; there are classes, dispatch, goal, name, preempt_scan_cpus, "
            "starvation_ms, target_workloads"),
        ({"despatch": "shares"}, "despatch: no such field; did you mean dispatch?"),
        ({"classes": None}, "classes: missing"),
        ({"classes": "short"}, "classes = 'short': not tables"),
        ({"classes": []}, "classes = []: not tables"),
        ({"classes_0_name": None}, "classes[0].name: missing"),
        ({"classes_0_name": "a-b"}, "classes[0].name = 'a-b': not 1 to 15 of a-z, 0-9 and _, beginning with a letter"),
        ({"classes_1_name": "short"}, "classes[1].name = 'short': classes[0] has this name already"),
        ({"classes_0_order": "lifo"}, "classes[0].order = 'lifo': accepted are fifo, vtime, deadline, longest_first, "
            "shortest_first"),
        ({"classes_0_placement": "here"}, "classes[0].placement = 'here': accepted are any_idle, previous_cpu, same_llc"
            ", spread, pack"),
        ({"classes_1_slice_us": 5}, "classes[1].slice_us = 5: below 100"),
        ({"classes_1_slice_us": 100_001}, "classes[1].slice_us = 100001: above 100000"),
        ({"classes_1_slice_us": "5ms"}, "classes[1].slice_us = '5ms': not a whole number"),
        ({"classes_0_priority": 10}, "classes[0].priority = 10: above 9"),
        ({"classes_0_share": 5}, "classes[0].share = 5: only dispatch = 'shares' has it, not 'priority'"),
        ({"classes_0_slack_us": 5}, "classes[0].slack_us = 5: only order = 'deadline' has it, not 'shortest_first'"),
        ({"classes_1_patience_ms": 5}, "classes[1].patience_ms = 5: only order = 'longest_first' or 'shortest_first' "
            "has it, not 'vtime'"),
        ({"classes_0_patience_ms": 0}, "classes[0].patience_ms = 0: below 1"),
        ({"classes_0_patience_ms": 201}, "classes[0].patience_ms = 201: above starvation_ms = 200, after which any wait"
            " ends"),
        ({"classes_0_long_us": 100}, "classes[0].long_us = 100: below 200"),
        ({"classes_1_unknown_ms": 5}, "classes[1].unknown_ms = 5: only order = 'longest_first' has it, not 'vtime'"),
        ({"classes_1_prelude_us": 5}, "classes[1].prelude_us = 5: only order = 'longest_first' has it, not 'vtime'"),
        ({"classes_1_slice_by_weight": True}, "classes[1].slice_by_weight = true: order 'vtime' keeps weights anyway; "
            "leave it out"),
        ({"classes_1_slice_by_weight": 1}, "classes[1].slice_by_weight = 1: not true or false"),
        ({"classes_1_preempts": True}, "classes[1].preempts = true: no class has a lower priority than 'rest'"),
        ({"classes_1_match": {"kthread": True}}, "classes[1].match: the last class takes everything else, so it must be"
            " left out there"),
        ({"classes_0_match": {}}, "classes[0].match: empty, so no later class gets a task; only the last class may have"
            " none"),
        ({"classes_0_match": "all"}, "classes[0].match: not a table but 'all'"),
        ({"classes_0_match_comm": "make"}, "classes[0].match.comm: no such field; there are burst_us, cgroup, "
            "kthread, nice, pinned, programs, runtime_ms, wakeups_per_s"),
        ({"classes_0_match_programs": "make"}, "classes[0].match.programs = 'make': not a list of words"),
        ({"classes_0_match_programs": []}, "classes[0].match.programs = []: not a list of words"),
        ({"classes_0_match_programs": ["cc1", 5]}, "classes[0].match.programs = ['cc1', 5]: not a list of words"),
        ({"classes_0_match_programs": ["cc1", "x" * 81]}, f"classes[0].match.programs[1] = '{'x' * 81}': not 1 to 80 "
            "printable characters"),
        ({"classes_0_match_programs": ["a\nb"]}, "classes[0].match.programs[0] = 'a\\nb': not 1 to 80 printable "
            "characters"),
        ({"classes_0_match_programs": ["cc1", "cc1"]}, "classes[0].match.programs[1] = 'cc1': "
            "classes[0].match.programs[0] is the same program"),
        ({"classes_0_match_programs": [f"p{n}" for n in range(33)]}, "classes[0].match.programs: 33 of them, accepted "
            "are at most 32"),
        ({"classes_0_match_pinned": 1}, "classes[0].match.pinned = 1: not true or false"),
        ({"classes_0_match_kthread": "no"}, "classes[0].match.kthread = 'no': not true or false"),
        ({"classes_0_match_cgroup": "a/b"}, "classes[0].match.cgroup = 'a/b': not the last part of a path, of at most "
            "63 bytes"),
        ({"classes_0_match_nice": {"below": 21}}, "classes[0].match.nice.below = 21: above 20"),
        ({"classes_0_match_nice": {}}, "classes[0].match.nice: neither at_least nor below is given"),
        ({"classes_0_match_nice": [0, 5]}, "classes[0].match.nice: not a table but [0, 5]"),
        ({"classes_0_match_nice": {"above": 5}}, "classes[0].match.nice.above: no such field; there are at_least, "
            "below"),
        ({"classes_0_match_burst_us": {"at_least": -1}}, "classes[0].match.burst_us.at_least = -1: below 0"),
        ({"classes_0_match_runtime_ms": {"at_least": 5, "below": 5}}, "classes[0].match.runtime_ms: no number is at "
            "least 5 and below 5"),
        ({"classes_0_match_wakeups_per_s": {"below": "x"}}, "classes[0].match.wakeups_per_s.below = 'x': not a whole "
            "number"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_by_the_name_of_its_field(changes, said):
    assert f"  {said}" in mistakes(changed(**changes))


def test_preemption_needs_priorities():
    [line] = [line for line in mistakes(changed(dispatch="shares")) if "preempts" in line]
    assert line == "  classes[0].preempts = true: only with dispatch = 'priority', not 'shares'"


def test_all_mistakes_are_told_at_once():
    found = mistakes(changed(goal=" ", classes_0_order="lifo", classes_1_slice_us=5))
    assert [line.split(" ")[2].rstrip(":") for line in found] == ["goal", "classes[0].order", "classes[1].slice_us"]


def test_too_many_classes():
    rest = TABLE["classes"][1]
    table = changed(classes=[{**rest, "name": f"c{n}", "match": {"nice": {"below": n}}} for n in range(4)] + [rest])
    assert mistakes(table) == ["  classes: 5 of them, accepted are 1 to 4"]


@pytest.mark.parametrize("value", [None, 5, "spec", [], [TABLE]])
def test_what_is_no_table_is_refused(value):
    assert mistakes(value)[0].startswith("  the spec: not a table")


def test_a_spec_made_in_python_is_checked_too():
    spec = PolicySpec("ok", "g", (TaskClass("a", slice_us=5),))
    with pytest.raises(SpecError, match=re.escape("classes[0].slice_us = 5: below 100")):
        check_spec(spec)
    assert issubclass(SpecError, UsageError)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(specs())
def test_what_is_drawn_is_valid_and_survives_being_written(spec):
    assert list(problems(spec)) == []
    assert read_spec(json.loads(json.dumps(spec_table(spec)))) == spec


def test_the_schema_knows_every_field_and_word():
    schema = spec_schema()
    kind = schema["properties"]["classes"]["items"]
    match = kind["properties"]["match"]
    for told, read in ((schema, PolicySpec), (kind, TaskClass), (match, Match)):
        assert set(told["properties"]) == {field.name for field in fields(read)}
        assert told["additionalProperties"] is False
    assert kind["properties"]["order"]["enum"] == list(ORDERS)
    assert kind["properties"]["placement"]["enum"] == list(PLACEMENTS)
    assert schema["properties"]["dispatch"]["enum"] == list(DISPATCHES)
    numbers = {**schema["properties"], **kind["properties"]}
    for name, accepted in NUMBERS.items():
        assert (numbers[name]["minimum"], numbers[name]["maximum"]) == (accepted.minimum, accepted.maximum)
    for name, accepted in MEASURES.items():
        assert match["properties"][name]["properties"]["below"]["maximum"] == accepted.maximum
