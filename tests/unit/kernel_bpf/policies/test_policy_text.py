"""What a source says about its policy: name, tunables, inputs, declared oracles; and manifests that are read again."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_bpf.policies.compose import compose
from kernel_bpf.policies.library import load_library, policy_from_file, read_manifest
from kernel_bpf.policies.manifest import write_manifest
from kernel_bpf.policies.policy_text import check_name, declares, inputs, reads, tunables, with_name
from schedagent.core.errors import PolicyError
from schedagent.core.policies.policy import DECLARABLE, PolicyInfo, Tunable
from schedagent.core.policies.rodata import read_rodata
from schedagent.core.trials.workload import WorkloadClass
from tests.support.random_specs import drawn

LIBRARY = load_library()
LOADER_OPS = ({}, {"timeout_ms": 5000, "flags": 2}, {"flags": ["SCX_OPS_ENQ_LAST", "SCX_OPS_ENQ_EXITING"]})
OPS = 'struct sched_ext_ops old = {\n\t.exit = (void *)old_exit,\n\t.name = "old",\n};\n'


@pytest.mark.parametrize("name", LIBRARY)
def test_the_bundled_policies_keep_the_conventions(name):
    info, source = LIBRARY[name], LIBRARY[name].source.read_text()
    assert with_name(source, name) == source
    assert tunables(source, {tunable.name: tunable for tunable in info.tunables}) == info.tunables
    assert inputs(source) == info.inputs
    assert declares(source) == ()
    again = read_manifest(write_manifest(info), name, info.source)
    assert again == replace(info, algorithm=again.algorithm, limitations=again.limitations), "but for line breaks"
    assert again.algorithm.split() == info.algorithm.split()


@pytest.mark.parametrize("name", sorted(LIBRARY.keys() - {"longest_first"}))
def test_ranges_are_read_from_comments(name):
    info, found = LIBRARY[name], tunables(LIBRARY[name].source.read_text(), {})
    assert [(one.name, one.type, one.minimum, one.maximum, one.default) for one in found] == [
        (one.name, one.type, one.minimum, one.maximum, one.default) for one in info.tunables
    ]


@pytest.mark.parametrize("spec", drawn(10), ids=lambda spec: spec.name)
def test_composed_policies_keep_them_too(spec):
    composed = compose(spec)
    told = read_manifest(composed.toml, spec.name, Path())
    assert with_name(composed.source, spec.name) == composed.source
    assert tunables(composed.source, {one.name: one for one in told.tunables}) == told.tunables
    assert inputs(composed.source) == told.inputs


# --- the name


def test_a_policy_is_renamed_in_its_ops_struct_and_in_what_the_kernel_shows():
    source = LIBRARY["fair"].source.read_text()
    renamed = with_name(source, "fair_1")
    changed = [(a, b) for a, b in zip(source.splitlines(), renamed.splitlines(), strict=True) if a != b]
    assert changed == [
        ("struct sched_ext_ops fair = {", "struct sched_ext_ops fair_1 = {"),
        ('\t.name = "fair",', '\t.name = "fair_1",'),
    ]
    assert with_name(renamed, "fair") == source


def test_only_code_is_renamed_and_members_are_not():
    source = (
        '/* old: struct sched_ext_ops none = */ // old\nchar a[] = "old \\" old";\nint b = x.old + y->old;\n'
        f"int c = (int)&old;\n{OPS}"
    )
    renamed = with_name(source, "new")
    assert renamed == source.replace("&old", "&new").replace("ops old", "ops new").replace('= "old",', '= "new",')


STRIKES = """\
struct task_ctx {{ u64 strikes; struct {{ u64 strikes[2]; }} inner; }};
static u64 count(u64 strikes) {{ return strikes + sizeof(strikes); }}
static void strike(struct task_ctx *c) {{ c->strikes++; struct task_ctx d = {{ .strikes = 1 }}; d.strikes = 2; }}
static u64 most(void) {{ u64 strikes = 1, *p = &strikes; return *p + '{{'; }}
enum kind {{ SOME = 1 }};
const void *whole = &{name};
static u64 limit(void) {{ return {name}.timeout_ms + sizeof({name}); }}
extern struct sched_ext_ops {name};
SEC(".struct_ops.link")
struct sched_ext_ops {name} = {{ .name = "{name}", .timeout_ms = 5000 }};
"""


def test_what_is_called_like_the_ops_struct_and_is_another_thing_keeps_its_name():
    assert with_name(STRIKES.format(name="strikes"), "fresh") == STRIKES.format(name="fresh")


def test_a_member_or_a_local_variable_may_be_called_like_the_policy():
    assert with_name(STRIKES.format(name="fresh"), "strikes") == STRIKES.format(name="strikes")


@pytest.mark.parametrize(
    "taken",
    ["static int fresh;", "enum { A, fresh };", "#define fresh 1", "typedef u32 fresh;", "struct { int x; } fresh;"],
)
def test_what_the_whole_file_sees_cannot_be_the_name_too(taken):
    with pytest.raises(PolicyError, match="uses the word fresh already"):
        with_name(f"{taken}\n{OPS}", "fresh")


def test_the_name_that_the_kernel_shows_need_not_have_been_the_struct_s():
    assert with_name(OPS.replace('"old"', '"something else"'), "fresh") == with_name(OPS, "fresh")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("int x;", "defines no struct sched_ext_ops"),
        ("/* " + OPS + "*/", "defines no struct sched_ext_ops"),
        ("SCX_OPS_DEFINE(old_ops, .name = \"old\");", "defines no struct sched_ext_ops"),
        (OPS + OPS.replace("old", "older"), "defines 2 structs: old, older sched_ext_ops"),
        (OPS.replace('.name = "old"', ".flags = 1"), "the ops struct has no name"),
        (OPS.replace('.name = "old"', '/* .name = "old" */'), "the ops struct has no name"),
        ("static int fresh(void);\n" + OPS, "uses the word fresh already"),
    ],
)  # fmt: skip
def test_what_cannot_be_renamed(source, said):
    with pytest.raises(PolicyError, match=re.escape(said)):
        with_name(source, "fresh")


@pytest.mark.parametrize(
    "name", ["", "Fair", "1st", "a-b", "x" * 16, "../x", "fair\n", "static", "size_t", "vtime", "é"]
)
def test_names_that_no_policy_can_have(name):
    with pytest.raises(PolicyError, match="cannot be the name of a policy"):
        check_name(name)


# --- tunables


def one(text):
    [found] = tunables(text, {})
    return found


def test_a_tunable_is_described_by_its_comment():
    found = one("/*\n * How long a turn is,\n * at most. 100 to 20000.\n */\nconst volatile u64 turn_us = 5000;")
    assert found == Tunable("turn_us", "u64", "us", 100, 20000, 5000, "How long a turn is, at most.")
    assert one("const volatile bool eager = true;") == Tunable("eager", "bool", "none", 0, 1, 1, "not said")
    assert one("/* -5 to 5 */ const volatile s32 bias = -0x2;") == Tunable("bias", "s32", "none", -5, 5, -2, "not said")
    assert one("/* \x1b[2J. 0 to 1. */\nconst volatile u32 x = 1UL;").effect == "\\x1b[2J."


def test_a_comment_stands_for_those_that_follow_it_directly():
    text = "/* Share. 1 to 9. */\nconst volatile u64 a = 1;\nconst volatile u64 b = 2;\n"
    assert [(found.name, found.maximum) for found in tunables(text, {})] == [("a", 9), ("b", 9)]
    with pytest.raises(PolicyError, match="no comment gives the range of the tunable c"):
        tunables(f"{text}int x;\nconst volatile u64 c = 2;\n", {})


def test_what_was_documented_before_counts_but_for_the_default():
    known = Tunable("turn_us", "u64", "us", 1, 10, 5, "Longer turns.")
    found = tunables("/* 3 to 4. */\nconst volatile u64 turn_us = 7;", {"turn_us": known})
    assert found == (replace(known, default=7),)
    with pytest.raises(PolicyError, match="turn_us = 11 is not between 1 and 10"):
        tunables("const volatile u64 turn_us = 11;", {"turn_us": known})


def test_what_the_loader_sets_and_what_is_commented_out_are_no_tunables():
    assert tunables("const volatile u64 __SCX_X;\n/* const volatile u64 a; */\n// const volatile u64 b;\n", {}) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("const volatile u64 x = 5;", "no comment gives the range of the tunable x"),
        ("/* Range: 1-10 */ const volatile u64 x = 5;", "no comment gives the range"),
        ("/* 6 to 10. */ const volatile u64 x = 5;", "x = 5 is not between 6 and 10"),
        ("/* 1 to 10. */ const volatile int x = 5;", "the tunable x cannot be read: const volatile int x = 5;"),
        ("/* 1 to 10. */ const volatile u64 x;", "the tunable x cannot be read"),
        ("/* 1 to 10. */ const volatile u64 x = SLICE;", "the tunable x cannot be read"),
        ("/* 1 to 10. */ const volatile u64 x = 010;", "the tunable x cannot be read"),
        ("/* 1 to 10. */ const volatile u64 x[2] = {1, 2};", "the tunable x cannot be read"),
        (f"/* 1 to 10. */ const volatile u64 x = {'9' * 5000};", "the tunable x cannot be read"),
        (f"/* 1 to {'9' * 5000}. */ const volatile u64 x = 1;", "no comment gives the range"),
    ],
)
def test_tunables_that_cannot_be_read(text, said):
    with pytest.raises(PolicyError, match=re.escape(said)):
        tunables(text, {})


# --- inputs, declarations


def test_inputs_are_the_maps_that_the_loader_fills():
    assert inputs('#include "history.bpf.h"') == ("history",)
    assert inputs("bpf_map_lookup_elem(&task_class, &key)") == ("classes",)
    assert inputs('// "history.bpf.h"\n/* task_class */ int task_classes;') == ()


def test_oracles_are_declared_in_a_comment():
    assert declares("/*\n * Declares: saturated machine, weights\n */") == ("weights", "saturated machine")
    assert declares('char x[] = "Declares: weights";') == ()
    with pytest.raises(PolicyError, match="declares 'starvation', which is nothing that a policy may leave out"):
        declares("/* Declares: weights, starvation. */")


# --- manifests

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Zl", "Zp")), min_size=1, max_size=60)
NUMBERS = st.integers(-(1 << 63), (1 << 64) - 1)


@st.composite
def tunable(draw, name):
    minimum, default, maximum = sorted(draw(st.lists(NUMBERS, min_size=3, max_size=3)))
    if draw(st.booleans()):
        return Tunable(name, "bool", "none", 0, 1, draw(st.integers(0, 1)), draw(WORDS))
    return Tunable(name, "s64", "none", minimum, maximum, default, draw(WORDS))


@st.composite
def rodata(draw):
    numbers = st.integers(-(1 << 63), (1 << 64) - 1)
    texts = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=20)
    constants = st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True), numbers | texts | st.lists(numbers, max_size=3), max_size=3
    )
    return read_rodata({"rodata": draw(constants), "ops": draw(st.sampled_from(LOADER_OPS))}, "it")


@st.composite
def described(draw):
    names = draw(st.lists(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), max_size=4, unique=True))
    return PolicyInfo(
        name=draw(WORDS),
        description=draw(WORDS),
        target_workloads=tuple(draw(st.lists(st.sampled_from([kind.value for kind in WorkloadClass])))),
        algorithm='How \\ it "decides".',
        limitations="When it loses.",
        tunables=tuple(draw(tunable(name)) for name in names),
        inputs=("history", "classes"),
        source=Path("x.bpf.c"),
        declares=tuple(draw(st.lists(st.sampled_from(DECLARABLE), unique=True))),
        classes=tuple(draw(st.dictionaries(WORDS, st.integers(0, (1 << 32) - 1), max_size=4)).items()),
        rodata=draw(rodata()),
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(described())
def test_what_is_written_is_read_again(info):
    assert read_manifest(write_manifest(info), "x.toml", info.source) == info


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('inputs = ["classes"]', "inputs = []", "classes are given, but the policy has no such input"),
        ("workers = 2", "workers = -1", "classes has 'workers' = -1, not a class number"),
        ("workers = 2", "workers = 1.5", "classes has 'workers' = 1.5, not a class number"),
        ("workers = 2", "workers = true", "classes has 'workers' = True, not a class number"),
        ("{ short_bursts = 1, workers = 2, background = 3 }", "3", "classes must be a table"),
    ],
)
def test_classes_that_cannot_be_read(old, new, said, tmp_path):
    text = LIBRARY["layered"].source.with_name("layered.toml").read_text()
    assert old in text
    (tmp_path / "layered.toml").write_text(text.replace(old, new))
    (tmp_path / "layered.bpf.c").touch()
    with pytest.raises(PolicyError, match=re.escape(said)):
        policy_from_file(tmp_path / "layered.bpf.c")


def test_what_it_goes_by_is_declared_in_a_comment_or_by_a_header_of_ours():
    assert reads("/*\n * Reads: random numbers,  nice\n */") == ("nice", "random numbers")
    assert reads('#include "known_class.bpf.h"') == ("comm", "arguments", "map values")
    assert reads('#include "history.bpf.h"\n// Reads: uid') == ("comm", "uid", "arguments", "runtime", "map values")
    assert reads('char x[] = "Reads: comm";\n/* Reads: the weight of the task, comm of course */') == ()
