"""Composing: the same bytes each time, in the kernel's style, documented, and accepted by the static gates."""

import re
import shutil
import subprocess
import textwrap
import tomllib
from dataclasses import replace

import pytest
from hypothesis import given, settings

import kernel_bpf.policies.compose
from kernel_bpf.policies.c_text import call, comment, switch
from kernel_bpf.policies.compose import carried_spec, compose
from kernel_bpf.policies.library import policy_from_file
from schedagent.cli.guide.topics import load_topics
from schedagent.core.errors import SpecError
from schedagent.core.policies.identity import cgroup_identity, fnv1a
from schedagent.core.policies.spec import MAX_CLASSES, Bounds, Match, PolicySpec, TaskClass
from schedagent.core.policies.spec_reader import read_spec
from schedagent.core.verification import Severity
from tests.corpus import STATIC, Entry, corpus_verifier, judge
from tests.support.paths import ROOT
from tests.support.random_specs import drawn, specs

SAMPLE = {spec.name: spec for spec in drawn(18)}
PLAIN = PolicySpec("plain", "Something simple.", (TaskClass("everyone"),))


def written(spec, folder):
    """Write both files of a composed policy; return its source."""
    composed = compose(spec)
    (folder / f"{spec.name}.toml").write_text(composed.toml)
    source = folder / f"{spec.name}.bpf.c"
    source.write_text(composed.source)
    return source


# --- what is written


@settings(max_examples=100, deadline=None, derandomize=True)
@given(specs())
def test_the_same_spec_gives_the_same_bytes_in_80_columns(spec):
    composed = compose(spec)
    assert composed == compose(replace(spec))
    too_long = [line for line in composed.source.splitlines() if len(line.expandtabs(8)) > 80]
    assert [line for line in too_long if not line.startswith(" *")] == []  # a goal may have words that long
    assert not re.search(r"[ \t]$", composed.source, re.MULTILINE)
    assert composed.source.startswith(f"/* SPDX-License-Identifier: GPL-2.0-only */\n/*\n * {spec.name}: ")
    assert f'\t.name = "{spec.name}",\n}};\n\n/*\n * The spec' in composed.source
    assert read_spec(carried_spec(composed.source)) == spec


@settings(max_examples=50, deadline=None, derandomize=True)
@given(specs())
def test_documentation_says_what_the_source_has(spec):
    composed = compose(spec)
    table = tomllib.loads(composed.toml)
    assert table["description"] == " ".join(spec.goal.split())
    in_source = re.findall(r"^const volatile (\w+) (\w+) = (-?\d+);$", composed.source, re.MULTILINE)
    told = [(entry["type"], entry["name"], str(entry["default"])) for entry in table["tunables"]]
    assert in_source == told
    assert ("history" in table["inputs"]) == ("history.bpf.h" in composed.source)
    assert ("classes" in table["inputs"]) == ("known_class.bpf.h" in composed.source)


def test_the_library_reads_what_is_composed(tmp_path):
    for spec in SAMPLE.values():
        info = policy_from_file(written(spec, tmp_path))
        assert (info.name, info.target_workloads) == (spec.name, spec.target_workloads)


@pytest.mark.skipif(shutil.which("clang-format-19") is None, reason="no clang-format-19")
def test_clang_format_finds_nothing_to_change(tmp_path):
    sources = [written(spec, tmp_path) for spec in drawn(36)]
    style = ROOT / ".clang-format"
    command = ["clang-format-19", f"--style=file:{style}", "--dry-run", "--Werror", *map(str, sources)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr[:2000]


@pytest.mark.parametrize(
    ("changes", "declared"),
    [
        ({}, None),
        ({"order": "fifo"}, ["weights", "cgroup weights"]),
        ({"order": "deadline"}, ["weights"]),
        ({"slice_us": 999}, ["saturated machine"]),
        ({"slice_us": 20_000}, None),
        ({"slice_us": 20_001}, ["weights", "cgroup weights"]),
        ({"order": "shortest_first", "slice_us": 100}, ["weights", "saturated machine", "cgroup weights"]),
    ],
)
def test_what_a_policy_does_not_seek_it_declares(changes, declared):
    spec = replace(PLAIN, classes=(replace(PLAIN.classes[0], **changes),))
    assert tomllib.loads(compose(spec).toml).get("declares") == declared


def test_weights_hold_across_classes_only_by_shares_and_by_what_tasks_are():
    known = TaskClass("known", Match(programs=("make",)))
    two = replace(PLAIN, classes=(known, TaskClass("everyone")))
    assert "declares" not in compose(replace(two, dispatch="shares")).toml
    assert 'declares = ["weights", "cgroup weights"]' in compose(replace(two, dispatch="priority")).toml
    nice = replace(known, match=Match(nice=Bounds(below=0)))
    assert 'declares = ["weights"]' in compose(replace(two, dispatch="shares", classes=(nice, two.classes[1]))).toml


def test_every_primitive_leaves_its_mark():
    first = TaskClass("first", Match(cgroup="build.slice", pinned=False, nice=Bounds(-5, 5)), "longest_first", "pack",
                      preempts=True, priority=1)  # fmt: skip
    source = compose(replace(PLAIN, classes=(first, TaskClass("rest", order="deadline", placement="spread")))).source
    for mark in (
        f"cgroup_name_hash(p) != {cgroup_identity('build.slice'):#x}ULL", "if (is_pinned(p))",
        "prelude_init(p);", "prelude_restart(p, deq_flags);",
        "task_nice(p) < first_nice_from", "task_nice(p) >= first_nice_below", "longest_key(p, first_prelude_us",
        "claim_packed(p)", "claim_spread(p)", "burst_slack(p, rest_slack_us)", "preempt_lower(p, class_rank(class)",
        "rescue_classes(NR_CLASSES, 0x2, cpu, starvation_ns())",
    ):  # fmt: skip
        assert mark in source
    assert cgroup_identity("build.slice") == fnv1a(b"build.slice")


@pytest.mark.parametrize("name", ["charge", "vtime", "deadline", "nr_cpus", "record"])
def test_a_name_that_the_headers_use_is_refused(name):
    with pytest.raises(SpecError, match=f"name = '{name}': \\w+ exists already"):
        compose(replace(PLAIN, name=name))


def test_an_invalid_spec_is_refused():
    with pytest.raises(SpecError, match="starvation_ms = 1: below 100"):
        compose(replace(PLAIN, starvation_ms=1))


def test_the_headers_agree_with_the_spec():
    queues = (kernel_bpf.policies.compose.INCLUDE / "queues.bpf.h").read_text()
    assert re.search(rf"^#define MAX_CLASSES {MAX_CLASSES}$", queues, re.MULTILINE)


# --- C as text


def test_calls_are_broken_at_the_parenthesis():
    assert call("f", ["a", "b"], ";") == "f(a, b);"
    assert call("\treturn some_function", ["a" * 30, "b" * 30, "c"], ";") == (
        f"\treturn some_function({'a' * 30},\n\t\t\t     {'b' * 30}, c);"
    )


def test_comments_are_wrapped():
    assert comment("Short.") == "/* Short. */"
    assert comment("one " * 30).splitlines()[0] == "/*"
    assert comment("a\n\nb") == "/*\n * a\n *\n * b\n */"


def test_switches_say_only_what_differs():
    assert switch("x", {"A": ["return 1;"], "B": ["return 1;"]}) == ["return 1;"]
    assert switch("x", {"A": ["return 1;"], "B": ["return 2;"], "C": ["return 1;"]}) == [
        "switch (x) {", "case B:", "\treturn 2;", "default:", "\treturn 1;", "}",
    ]  # fmt: skip


# --- the example


def test_the_spec_of_the_topic_is_composed():
    _head, _, example = load_topics()["policies"].body.partition("\n\n")
    spec = textwrap.dedent(example.partition("\n\nTurn it")[0])
    assert compose(read_spec(tomllib.loads(spec))).name == "build_first"


# --- the static gates


@pytest.fixture(scope="module")
def verifier():
    """Without a kernel to compile for this is an error that says what to run."""
    return corpus_verifier(static_only=True)


WAITS_FOR_ITS_QUOTA = (20, "enqueue", "include/bandwidth.bpf.h")
"""The finding that a task is put where no idle CPU looks; the oracle for work conservation clears it."""


@pytest.mark.parametrize("spec", SAMPLE.values(), ids=lambda spec: spec.name)
def test_composed_policies_pass_the_static_gates(spec, verifier, tmp_path):
    info = policy_from_file(written(spec, tmp_path))
    report = judge(Entry("correct", info), verifier)
    passed = [gate.gate for gate in report.gates if gate.status.value == "passed"]
    assert passed == list(STATIC), report.failure and report.failure.detail
    found = [finding for gate in report.gates for finding in gate.findings]
    declared = [finding for finding in found if finding.rule == 31]
    assert {finding.word for finding in declared} <= set(info.declares)
    waits = [finding for finding in found if (finding.rule, finding.where, finding.file) == WAITS_FOR_ITS_QUOTA]
    cut = [finding for finding in found if finding not in (*declared, *waits)]  # where the walk ran out of its budget
    assert all(finding.severity is Severity.WARNING and "not every path" in finding.message for finding in cut), cut


def test_what_a_policy_goes_by_it_declares():
    first = TaskClass("first", Match(cgroup="build.slice", nice=Bounds(-5, 5), runtime_ms=Bounds(10)))
    second = TaskClass("second", Match(programs=("make",)))
    spec = replace(PLAIN, classes=(first, second, TaskClass("rest", order="longest_first")))
    declared = ["comm", "cgroup", "nice", "arguments", "runtime", "map values"]
    assert tomllib.loads(compose(spec).toml)["reads"] == declared
    assert "reads" not in compose(PLAIN).toml
