"""What the static gates do with a source of 3,000 lines, in counts: tests/bench/test_verifier.py has the seconds."""

import pytest

from kernel_bpf.build.compile import compile_policy
from tests.support.large_source import large_source
from tests.support.small_policy import TARGET
from verifier.logic.taint.calls import Calls
from verifier.logic.taint.graph import blocks_of
from verifier.logic.taint.settle import settle
from verifier.logic.walk import calls
from verifier.logic.walk.code import prepare
from verifier.logic.walk.flow import Walker
from verifier.object.reader import read_object


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.bpf.c"
    path.write_text(large_source())
    assert path.read_text().count("\n") >= 3000
    return read_object(compile_policy(path, "large", TARGET).object_bytes)


def test_paths_that_meet_are_followed_once_for_all_of_them(large):
    walker = Walker(large, frozenset(), calls.FIXED_ENUMS)
    for member, name in large.ops[0].callbacks.items():
        walker.enter(member, large.functions[name])
    steps = {entry.member: entry.steps for entry in walker.walk.entries}
    assert not any(entry.exhausted or entry.unreadable for entry in walker.walk.entries)
    assert max(steps.values()) < 20_000, steps  # 26,000 if each that comes later is followed to the end again


def test_a_block_runs_again_only_if_what_it_looks_at_has_changed(large):
    codes = {name: prepare(each, {}) for name, each in large.functions.items()}
    flow = Calls(large, codes, {name: blocks_of(code) for name, code in codes.items()})
    settle(flow)
    size = sum(len(code.ops) for code in codes.values())
    assert flow.operations < 11 * size, flow.operations / size
