"""Pairs of policies before and after the fix of a bug: what the object shows must tell them apart, the right way round.

Those that only a run tells apart are entries of `make test-verifier`.
"""

from __future__ import annotations

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import enum_values, features
from schedagent.core.policies.policy import READABLE
from schedagent.core.rules import LOGIC, RULES, FindingClass
from schedagent.core.settings import load_settings
from tests.corpus import load_pairs
from verifier.logic.checks import check_logic
from verifier.object.reader import read_object

PAIRS = load_pairs()
STATIC = [pair for pair in PAIRS if pair.severity is not None]
LIMITS = 31
"""The rule on limits of cgroups, which no policy of a pair is about: it would need their callbacks."""

UNFAIR = (20, 22, 29)
"""Rules on which these findings are a matter of taste or goal."""


def findings(policy, target):
    artifact = compile_policy(policy.source, policy.name, target, cache_dir=load_settings().cache_dir)
    assert artifact.log == "", "compiles without warnings"
    image = read_object(artifact.object_bytes)
    found = check_logic(image, features(target), enum_values(target), reads=READABLE).findings
    return tuple(each for each in found if each.rule != LIMITS)


def test_there_are_many_and_every_file_belongs_to_one():
    assert len(PAIRS) >= 20 <= len(STATIC)
    sources = {pair.before.source.name for pair in PAIRS} | {pair.after.source.name for pair in PAIRS}
    assert sources == {path.name for path in PAIRS[0].before.source.parent.glob("*.bpf.c")}
    assert len({pair.rule for pair in PAIRS}) >= 15


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_pair_says_what_tells_it_apart(pair):
    assert len(pair.bug) > 80
    assert (pair.severity is None) == bool(pair.oracle)
    assert not pair.oracle or pair.oracle in RULES[pair.rule].checks
    assert pair.oracle or LOGIC in RULES[pair.rule].gates


@pytest.mark.parametrize("pair", STATIC, ids=lambda pair: pair.name)
def test_before_and_after_are_told_apart(pair, real_target):
    """By the rule alone: neither breaks another one, but for what the field does otherwise than our own policies."""
    before, after = findings(pair.before, real_target), findings(pair.after, real_target)
    assert pair.wrong(before, after) == "", (before, after)
    assert {finding.rule for finding in before} <= {pair.rule, *pair.keeps}
    if pair.rule in UNFAIR:
        assert {finding.finding_class for finding in before} == {FindingClass.UNFAIR}
