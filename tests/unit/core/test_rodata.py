"""core.policies.rodata: what a loader sets, read from a file."""

import pytest

from schedagent.core.errors import UsageError
from schedagent.core.policies.rodata import NOTHING_SET, Rodata, load_rodata, read_rodata

TEXT = """\
[rodata]
slice_ns = 5_000_000
fifo = true
name = "x"
cpus = [1, -2]
[ops]
flags = ["SCX_OPS_ENQ_LAST"]
timeout_ms = 5000
"""


def test_a_file_is_read_and_goes_over_a_socket_unchanged(tmp_path):
    path = tmp_path / "loader.toml"
    path.write_text(TEXT)
    rodata = load_rodata(path)
    assert rodata == Rodata(
        (("cpus", (1, -2)), ("fifo", 1), ("name", "x"), ("slice_ns", 5_000_000)),
        (("timeout_ms", 5000),),
        ("SCX_OPS_ENQ_LAST",),
    )
    assert read_rodata(rodata.table, "it") == rodata
    assert "slice_ns = 5000000" in rodata.summary
    assert "flags = SCX_OPS_ENQ_LAST" in rodata.summary


def test_nothing_is_nothing():
    assert read_rodata({}, "it") == NOTHING_SET
    assert not NOTHING_SET
    assert (NOTHING_SET.table, NOTHING_SET.summary) == ({}, "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[maps]\nx = 1\n", r"maps must be one of \[rodata\], \[ops\]"),
        ("rodata = 3\n", "must be one of"),
        ("[rodata]\nx = 1.5\n", "x must be a whole number of 64 bits"),
        ("[rodata]\nx = 18446744073709551616\n", "x must be a whole number of 64 bits"),
        ("[rodata]\nx = [[1]]\n", "x must be a whole number"),
        ("[rodata]\nx = {a = 1}\n", "x must be a whole number"),
        ('[rodata]\nx = "\\u001b[2J"\n', "x must be a whole number"),
        ('[rodata]\n"a b" = 1\n', "cannot be the name of a variable"),
        ("[ops]\nenqueue = 1\n", "is not the loader's to set"),
        ("[ops]\nflags = [1]\n", "flags must be a number or names"),
        ("[rodata\n", "is not valid TOML"),
        ("".join(f"a{n} = 1\n" for n in range(300)).join(["[rodata]\n", ""]), "at most 256"),
        ("#" * (70 << 10), "larger than"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, text, told):
    path = tmp_path / "loader.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=told):
        load_rodata(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_rodata(tmp_path / "none.toml")
