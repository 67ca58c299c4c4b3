"""The policy builder: each origin, each mistake in words that help, names that are taken, and asking twice."""

import difflib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.observation import build_profile
from agents.planner.builder import LONGEST_SENTENCE, MOST_NAMESAKES, PolicyBuilder, namesakes, sentence
from agents.planner.inputs import fill
from agents.planner.rules import plan
from kernel_bpf.policies.library import load_library, read_manifest
from repo_store.store import PolicyRepository
from schedagent.core.errors import (
    CompileError,
    NameTaken,
    PolicyError,
    SchedagentError,
    SpecError,
    TunableError,
)
from schedagent.core.policies.identity import cmdline_identity, comm_identity
from schedagent.core.policies.policy import PolicyInfo
from schedagent.core.policies.proposal import DerivedPolicy, Origin, Proposal
from schedagent.core.policies.spec_reader import read_spec, spec_table
from schedagent.run.library import Library
from tests.corpus import STATIC, corpus_verifier
from tests.support.random_specs import drawn
from tests.support.scripted_lab import long_tail

PROFILE = build_profile(long_tail())
BUNDLED = load_library()
FAIR = BUNDLED["fair"].source.read_text()
SPEC = {
    "goal": "The long one first.",
    "classes": [
        {"name": "long", "match": {"programs": ["spin 1400"]}, "priority": 1},
        {"name": "rest", "slice_us": 20000},
    ],
}
COMPOSE = Proposal(Origin.COMPOSE, "two", spec=SPEC, reason="why", expected="10 % less", refuted_by="no difference")
LONGER = FAIR.replace("slice_us = 5000", "slice_us = 20000")
SOURCE = FAIR.replace("struct sched_ext_ops fair", "struct sched_ext_ops mine").replace('"fair"', '"mine"')
GENERATE = Proposal(Origin.GENERATE, "mine", source=SOURCE, description="Mine.")


def diff(new, old=FAIR):
    return "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), "a", "b", lineterm=""))


PATCH = Proposal(Origin.PATCH, "fair", diff=diff(LONGER), description="Longer turns.")


@pytest.fixture
def repository(tmp_path):
    with PolicyRepository(tmp_path / "repository.sqlite") as opened:
        yield opened


@pytest.fixture
def library(repository, tmp_path):
    return Library(BUNDLED, repository, tmp_path / "policies")


@pytest.fixture
def builder(library):
    return PolicyBuilder(library, "run1")


def refused(builder, kind, proposal):
    with pytest.raises(kind) as caught:
        builder.make(proposal, PROFILE)
    return str(caught.value)


# --- configure


def test_a_known_policy_is_configured_with_what_was_measured(builder):
    chosen = plan(PROFILE, BUNDLED, (), (), iteration=1, tried=()).candidates[0]
    asked = Proposal(Origin.CONFIGURE, chosen.policy, dict(chosen.tunables), reason="r", expected="e", refuted_by="n")
    made = builder.make(asked, PROFILE)
    assert (made.policy, made.key) == ("longest_first", chosen.key), "the same candidate as the rules make"
    assert (made.origin, made.reason, made.expected, made.refuted_by) == (Origin.CONFIGURE, "r", "e", "n")


@pytest.mark.parametrize(
    ("policy", "tunables", "kind", "said"),
    [
        (
            "fare",
            {},
            PolicyError,
            "there is no policy 'fare' in the library\n  hint: there are: batch, fair, fifo",
        ),
        ("../fair", {}, PolicyError, "there is no policy '../fair'"),
        ("fair", {"slice": 1}, TunableError, "policy fair has no tunable 'slice'\n  hint: it has: slice_us"),
        ("fair", {"slice_us": 1}, TunableError, "slice_us=1 is out of range\n  hint: accepted: 500 to 100000 us"),
        ("fair", {"slice_us": "5000"}, TunableError, "slice_us='5000' is not a whole number"),
        ("fair", {"slice_us": True}, TunableError, "slice_us=True is not a whole number"),
    ],
)
def test_what_cannot_be_configured(builder, policy, tunables, kind, said):
    assert said in refused(builder, kind, Proposal(Origin.CONFIGURE, policy, tunables))


# --- compose


def test_a_spec_becomes_a_policy_of_the_library(builder, library, repository):
    candidate = builder.make(replace(COMPOSE, tunables={"rest_slice_us": 30000}), PROFILE)
    info = library["two"]
    assert (candidate.policy, dict(candidate.tunables)["rest_slice_us"]) == ("two", 30000)
    assert (candidate.origin, candidate.expected, candidate.refuted_by) == (
        Origin.COMPOSE,
        "10 % less",
        "no difference",
    )
    assert (info.origin, info.parent, info.description) == (Origin.COMPOSE, "", "The long one first.")
    [made] = repository.derived_policies()
    assert (made.name, made.origin, made.run_id) == ("two", Origin.COMPOSE, "run1")
    assert read_spec(made.spec) == read_spec({"name": "two", **SPEC})
    assert info.source.read_text() == made.source
    assert info.source.with_name("two.toml").read_text() == made.manifest


def test_programs_get_the_number_of_their_class(builder):
    candidate = builder.make(COMPOSE, PROFILE)
    assert candidate.classes == ((cmdline_identity(b"./spin\x001400\x00"), 0),)
    kinds = {**SPEC, "classes": [{"name": "quick", "match": {"programs": ["sh"]}},
                                 {"name": "works", "match": {"programs": ["workers"]}}, {"name": "rest"}]}  # fmt: skip
    measured = builder.make(replace(COMPOSE, spec=kinds), PROFILE)
    assert dict(measured.classes) == {comm_identity("sh"): 0, comm_identity("spin"): 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spec": None}, "the proposal has no spec"),
        ({"spec": [SPEC]}, "the proposal has no spec"),
        ({"spec": {**SPEC, "goal": None}}, "goal: missing"),
        ({"spec": {**SPEC, "colour": 1}}, "colour: no such field"),
        ({"policy": "Two"}, "name = 'Two': not 1 to 15 of a-z"),
        ({"policy": "charge"}, "name = 'charge': charge exists already"),
        ({"spec": {**SPEC, "classes": [{"name": "x", "match": {"programs": ["cc1"]}}, {"name": "rest"}]}},
         "classes[0].match.programs[0] = 'cc1': the profile has no such label; there are spin, sh, spin 200"),
    ],
)  # fmt: skip
def test_what_cannot_be_composed(builder, repository, changes, said):
    assert said in refused(builder, SpecError, replace(COMPOSE, **changes))
    assert repository.derived_policies() == []


def test_tunables_are_checked_before_a_policy_is_kept(builder, repository):
    for proposal in (COMPOSE, PATCH, GENERATE):
        refused(builder, TunableError, replace(proposal, tunables={"nothing": 1}))
    assert repository.derived_policies() == []


# --- patch


def test_a_diff_becomes_a_policy_with_its_parent_s_documentation(builder, library, repository):
    candidate = builder.make(PATCH, PROFILE)
    info, parent = library["fair_1"], library["fair"]
    assert (candidate.policy, candidate.origin, dict(candidate.tunables)["slice_us"]) == ("fair_1", Origin.PATCH, 20000)
    assert (info.origin, info.parent, info.description) == (Origin.PATCH, "fair", "Longer turns.")
    assert info.tunables == (replace(parent.tunables[0], default=20000), parent.tunables[1])
    assert (info.target_workloads, info.inputs, info.declares) == (parent.target_workloads, (), ())
    assert "struct sched_ext_ops fair_1 = {" in info.source.read_text()
    assert repository.derived_policies()[0].parent == "fair"
    assert parent.source.read_text() == FAIR, "the parent is as it was"


def test_a_patch_may_bring_tunables_inputs_and_declarations(builder, library):
    added = (
        '#include "vtime.bpf.h"\n#include "known_class.bpf.h"\n\n/* Declares: weights */\n'
        "/* Turns of others. 10 to 99. */\nconst volatile u64 other_us = 20;\n"
    )
    builder.make(replace(PATCH, diff=diff(FAIR.replace('#include "vtime.bpf.h"\n', added))), PROFILE)
    info = library["fair_1"]
    assert (info.inputs, info.declares, info.tunable("other_us").unit) == (
        ("classes",),
        ("weights",),
        "us",
    )
    assert dict(info.classes)["workers"] == 2, "numbered as the bundled layered does"


def test_a_patched_policy_is_patched_again(builder, library):
    builder.make(PATCH, PROFILE)
    old = library["fair_1"].source.read_text()
    again = Proposal(Origin.PATCH, "fair_1", diff=diff(old.replace("= 20000", "= 30000"), old))
    assert builder.make(again, PROFILE).policy == "fair_2"
    assert library["fair_2"].parent == "fair_1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy": "fare"}, "there is no policy 'fare'"),
        ({"diff": ""}, "the diff has no hunk"),
        ({"diff": diff(LONGER).replace("-const volatile u64 slice_us = 5000;", "-const volatile u64 slice_us = 4000;")},
         "hunk 1 (line 3 of the diff) does not apply: line 7 of the diff is 'const volatile u64 slice_us = 4000;', "
         "but line 26 of the source is 'const volatile u64 slice_us = 5000;'"),
        ({"diff": diff(FAIR.replace("slice_us = 5000", "slice_us = 5"))}, "slice_us = 5 is not between 500 and 100000"),
        ({"diff": diff(FAIR.replace('.name = "fair"', ".flags = 0"))}, "the ops struct has no name"),
        ({"diff": diff(FAIR.replace("fair: every task gets", "Declares: everything,"))}, "declares 'everything'"),
    ],
)  # fmt: skip
def test_what_cannot_be_patched(builder, repository, changes, said):
    assert said in refused(builder, PolicyError, replace(PATCH, **changes))
    assert repository.derived_policies() == []


def test_an_object_cannot_be_patched(builder, library):
    library._policies["fair"] = replace(library["fair"], source=Path("fair.bpf.o"))
    assert "a compiled object, which cannot be patched" in refused(builder, PolicyError, PATCH)


# --- generate


def test_a_source_becomes_a_policy_that_says_what_it_says_of_itself(builder, library):
    candidate = builder.make(replace(GENERATE, tunables={"slice_us": 700}), PROFILE)
    info = library["mine"]
    assert (candidate.policy, candidate.origin, dict(candidate.tunables)["slice_us"]) == ("mine", Origin.GENERATE, 700)
    assert (info.origin, info.description, info.target_workloads) == (
        Origin.GENERATE,
        "Mine.",
        (PROFILE.kind.value,),
    )
    assert (info.tunable("slice_us").minimum, info.tunable("slice_us").maximum) == (500, 100_000)
    assert info.source.read_text() == SOURCE


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"source": ""}, PolicyError, "defines no struct sched_ext_ops"),
        ({"source": "I would use longest first."}, PolicyError, "defines no struct sched_ext_ops"),
        ({"source": "x" * (256 * 1024 + 1)}, CompileError, "the source is too long"),
        ({"source": SOURCE + "\0"}, CompileError, "is zero"),
        ({"source": SOURCE + "/* \ud800 */"}, CompileError, "is not UTF-8"),
        ({"source": SOURCE.replace(" 500 to 100000.", "")}, PolicyError, "gives the range of the tunable slice_us"),
        ({"policy": "../../etc/x"}, PolicyError, "cannot be the name of a policy"),
        ({"policy": "static"}, PolicyError, "cannot be the name of a policy"),
        ({"policy": "sixteen_letters_"}, PolicyError, "1 to 15 of a-z"),
    ],
)
def test_what_cannot_be_generated(builder, repository, tmp_path, changes, kind, said):
    assert said in refused(builder, kind, replace(GENERATE, **changes))
    assert repository.derived_policies() == []
    assert list((tmp_path / "policies").glob("*")) == []


def test_words_of_a_model_are_bounded_and_printable(builder, library):
    said = "a\x1b[31m\n\tb \ud800" + "c" * 1000
    candidate = builder.make(replace(GENERATE, description=said, reason=said, expected=said, refuted_by=said), PROFILE)
    for text in (candidate.reason, candidate.expected, candidate.refuted_by, library["mine"].description):
        assert text.startswith("a\\x1b[31m b \\ud800ccc")
        assert len(text) == LONGEST_SENTENCE


# --- names


def test_asked_twice_the_same_comes_out(builder, library, repository):
    for proposal in (COMPOSE, PATCH, GENERATE):
        first = builder.make(proposal, PROFILE)
        assert builder.make(proposal, PROFILE) == first
    assert [made.name for made in repository.derived_policies()] == ["fair_1", "mine", "two"]


def test_a_name_that_other_content_has_gets_a_number(builder, library, repository):
    first = builder.make(GENERATE, PROFILE)
    repaired = replace(GENERATE, source=SOURCE.replace("5000", "6000"))
    second = builder.make(repaired, PROFILE)
    assert (first.policy, second.policy) == ("mine", "mine_1")
    assert "struct sched_ext_ops mine_1 = {" in library["mine_1"].source.read_text()
    assert (builder.make(GENERATE, PROFILE), builder.make(repaired, PROFILE)) == (first, second)
    assert first.key != second.key
    other = replace(COMPOSE, spec={**SPEC, "goal": "Something else."})
    assert [builder.make(one, PROFILE).policy for one in (COMPOSE, other, COMPOSE)] == ["two", "two_1", "two"]
    assert repository.derived_policies()[-1].spec["name"] == "two_1"


def test_a_bundled_name_is_taken_whatever_the_way(builder, library):
    assert builder.make(replace(COMPOSE, policy="fifo"), PROFILE).policy == "fifo_1"
    assert builder.make(replace(GENERATE, policy="fair"), PROFILE).policy == "fair_1"
    assert library["fifo"] == BUNDLED["fifo"]


def test_another_process_that_takes_the_name_first(builder, library, repository, tmp_path):
    elsewhere = Library(BUNDLED, repository, tmp_path / "policies")
    assert PolicyBuilder(elsewhere, "run2").make(GENERATE, PROFILE).policy == "mine"
    repaired = replace(GENERATE, source=SOURCE.replace("5000", "6000"))
    assert builder.make(repaired, PROFILE).policy == "mine_1", "although this library did not know of it"


def test_namesakes():
    assert list(namesakes("fair"))[:3] == ["fair", "fair_1", "fair_2"]
    assert list(namesakes("fair_1"))[:3] == ["fair_1", "fair_2", "fair_3"]
    assert list(namesakes("longest_first"))[10:12] == ["longest_firs_10", "longest_firs_11"]
    assert max(len(name) for name in namesakes("x" * 15)) == 15
    assert len(list(namesakes("fair"))) == MOST_NAMESAKES + 1


def test_too_many_namesakes():
    class Full(dict):
        def keep(self, made):
            raise NameTaken(made.name)

    assert "99 policies are called two already" in refused(PolicyBuilder(Full(BUNDLED)), PolicyError, COMPOSE)


def test_every_possible_name_of_a_drawn_spec_can_be_composed(builder, library):
    for spec in drawn(20):
        words = [word for kind in spec.classes for word in kind.match.programs]
        profile = replace(PROFILE, commands=tuple(replace(PROFILE.commands[0], label=word) for word in words))
        asked = Proposal(Origin.COMPOSE, spec.name, spec=spec_table(spec))
        first = builder.make(asked, profile)
        other = builder.make(replace(asked, spec=asked.spec | {"goal": "Another one."}), profile)
        assert first.policy != other.policy
        assert {first.policy, other.policy} <= set(namesakes(spec.name))


# --- the static gates


@pytest.mark.parametrize("proposal", [COMPOSE, PATCH, GENERATE], ids=lambda proposal: proposal.origin)
def test_what_is_made_of_good_parts_passes_the_static_gates(builder, library, proposal):
    verifier = corpus_verifier(static_only=True)
    candidate = builder.make(proposal, PROFILE)
    report = verifier.verify(candidate, library[candidate.policy]).report
    passed = [gate.gate for gate in report.gates if gate.status.value == "passed"]
    assert passed == list(STATIC), report.failure and report.failure.detail


# --- anything


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    origin=st.sampled_from([origin for origin in Origin if origin is not Origin.BUNDLED]),
    policy=st.one_of(st.sampled_from(["fair", "mine"]), st.text(max_size=20)),
    tunables=st.dictionaries(st.sampled_from(["slice_us", "x"]), st.integers() | st.text() | st.booleans(), max_size=2),
    spec=st.none() | st.recursive(st.none() | st.integers() | st.text(max_size=9),
                                  lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner)),
    cut=st.integers(0, len(SOURCE)),
    noise=st.text(max_size=30),
)  # fmt: skip
def test_any_proposal_is_made_or_refused_in_words(builder, origin, policy, tunables, spec, cut, noise):
    source, change = SOURCE[:cut] + noise + SOURCE[cut:], diff(LONGER)[:cut] + noise
    proposal = Proposal(origin, policy, tunables, spec, change, source, noise, noise, noise, noise)
    try:
        candidate = builder.make(proposal, PROFILE)
    except SchedagentError as error:
        assert error.message  # noqa: PT017 - either is right
    else:
        assert re.fullmatch(r"[a-z][a-z0-9_]{0,14}", candidate.policy)


def test_a_manifest_is_as_the_library_reads_it(builder, repository):
    for proposal in (COMPOSE, PATCH, GENERATE):
        builder.make(proposal, PROFILE)
    for made in repository.derived_policies():
        info = read_manifest(made.manifest, made.name, Path())
        assert isinstance(info, PolicyInfo)
        assert fill(info, info.configured({}), PROFILE).policy == made.name
        assert isinstance(made, DerivedPolicy)


def test_sentences():
    assert sentence(" a\n b ") == "a b"
