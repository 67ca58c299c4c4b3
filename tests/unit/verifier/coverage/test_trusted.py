"""What of a source counts as ours."""

from __future__ import annotations

import pytest

from kernel_bpf.policies.compose import compose
from kernel_bpf.policies.library import load_library, policy_from_file
from tests.support.random_specs import drawn
from verifier.coverage.trusted import is_composed, leaves_headers_alone


def policy(folder, text: str):
    path = folder / "t.bpf.c"
    path.write_text(text)
    return policy_from_file(path)


def test_composed_policies_are_known_by_their_bytes(tmp_path):
    for spec in drawn(20):
        composed = compose(spec)
        path = tmp_path / f"{spec.name}.bpf.c"
        path.write_text(composed.source)
        (tmp_path / f"{spec.name}.toml").write_text(composed.toml)
        info = policy_from_file(path)
        assert is_composed(info)
        path.write_text(composed.source.replace("return", "return ", 1))
        assert not is_composed(info)


HEAD = "/*\n * The spec that this was composed from:\n"


@pytest.mark.parametrize(
    "text", ["int x;\n", HEAD, f"{HEAD} * {{}}\n */\n", f'{HEAD} * {{"name":1}}\n */\n', f"{HEAD} * [\n */\n"]
)
def test_what_carries_no_spec_of_its_own_is_not_composed(tmp_path, text):
    assert not is_composed(policy(tmp_path, text))


def test_bundled_policies_leave_the_words_of_our_headers_alone():
    assert all(leaves_headers_alone(info, ()) for info in load_library().values())


@pytest.mark.parametrize(
    "line",
    [
        "#define vtask_of(p) mine(p)",
        "#undef time_before",
        "#  define\tCREDIT_MAX_NS 1",
        "#/* */define/* a */is_pinned(p) 1",
        "%:define clamp_slice(x) x",
        "#def\\\nine clamp_slice(x) x",
        '#pragma push_macro("time_before")',
        '_Pragma("push_macro(\\"time_before\\")")',
    ],
)
def test_a_source_that_gives_them_another_meaning_is_noticed(tmp_path, line):
    assert not leaves_headers_alone(policy(tmp_path, f'{line}\n#include "vtime.bpf.h"\n'), ())
    assert leaves_headers_alone(policy(tmp_path, '#define MINE_NS 5\n#include "vtime.bpf.h"\n'), ())


def test_headers_of_its_own_may_do_so_unseen(tmp_path):
    info = policy(tmp_path, '#include "mine.h"\n')
    assert leaves_headers_alone(info, (tmp_path,))
    (tmp_path / "mine.h").write_text("#define vtask_of(p) mine(p)\n")
    assert not leaves_headers_alone(info, (tmp_path,))
