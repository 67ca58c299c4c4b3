"""verifier.object.rodata: a loader's values, written into an object as the field builds it."""

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import enum_values
from schedagent.core.errors import UsageError
from schedagent.core.policies.rodata import NOTHING_SET, load_rodata, read_rodata
from schedagent.core.settings import load_settings
from tests.support.paths import FIXTURES
from verifier.object.reader import read_object
from verifier.object.rodata import with_rodata

FOREIGN = FIXTURES / "foreign"


@pytest.fixture(scope="module")
def pages(real_target) -> bytes:
    """Two sources, which call the same kfuncs, as one object."""
    artifact = compile_policy(
        FOREIGN / "sx_pages.bpf.c",
        "sx_pages",
        real_target,
        include_dirs=[FOREIGN / "parts"],
        parts=[FOREIGN / "parts/pages.bpf.c"],
        cache_dir=load_settings().cache_dir,
    )
    return artifact.object_bytes


def test_two_sources_that_call_the_same_kfuncs_are_one_object(pages):
    image = read_object(pages)
    assert {"sx_pages_enqueue", "sx_pages_init", "slice_of", "count_dsqs"} <= set(image.functions)
    called = {each.ref.symbol for each in image.functions["count_dsqs"].instructions if each.ref and each.ref.symbol}
    assert "bpf_iter_num_new___part1" in called
    names = {each.ref.name for each in image.functions["count_dsqs"].instructions if each.ref}
    assert "bpf_iter_num_new" in names


def test_values_of_every_kind_are_written_and_nothing_else_is(pages, real_target):
    before = read_object(pages)
    content = with_rodata(pages, load_rodata(FOREIGN / "sx_pages_loader.toml"), enum_values(real_target))
    image = read_object(content)
    values = {name: image.variables[name].content for name in ("slice_ns", "counts", "greeting", "limits")}
    assert values == {
        "slice_ns": (5_000_000).to_bytes(8, "little"),
        "counts": b"\1",
        "greeting": b"hello\0\0\0",
        "limits": b"\xff\xff\xff\xff\7\0\0\0",
    }
    assert image.ops[0].numbers["timeout_ms"] == 5000
    assert image.ops[0].numbers["flags"] == enum_values(real_target)["SCX_OPS_ENQ_EXITING"]
    assert image.functions == before.functions
    assert len(content) == len(pages)


def test_nothing_set_is_the_same_object(pages):
    assert with_rodata(pages, NOTHING_SET, {}) is pages


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"rodata": {"slices": 1}}, r"no const volatile variable .*\n.*it has: counts, greeting, limits, slice_ns"),
        ({"rodata": {"slice_ns": -1}}, "slice_ns = -1 does not fit"),
        ({"rodata": {"slice_ns": "x"}}, "not a text or a list"),
        ({"rodata": {"counts": 2}}, "accepted: 0 to 1"),
        ({"rodata": {"greeting": "too long"}}, "the text takes 9 bytes"),
        ({"rodata": {"limits": [1, 2, 3]}}, "an array of 2, and 3 values"),
        ({"rodata": {"limits": 1}}, "an array of 2"),
        ({"rodata": {"limits": [1 << 31]}}, "does not fit"),
        ({"ops": {"flags": ["SCX_OPS_NONE"]}}, "this kernel has no SCX_OPS_NONE"),
        ({"ops": {"flags": ["SCX_DSQ_LOCAL"]}}, "this kernel has no SCX_DSQ_LOCAL"),
        ({"ops": {"timeout_ms": 1 << 32}}, "does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(pages, real_target, table, told):
    with pytest.raises(UsageError, match=told):
        with_rodata(pages, read_rodata(table, "it"), enum_values(real_target))
