"""The policy library: the documentation of policies, and that the bundled ones tell the truth about their source."""

from pathlib import Path

import pytest

from kernel_bpf.policies.library import find_policy, load_library, policy_from_file
from schedagent.core.errors import PolicyError, UsageError

GOOD = """
name = "sample"
description = "One sentence."
target_workloads = ["cpu-batch", "mixed"]
algorithm = "How."
limitations = "When not."
inputs = ["history"]

[[tunables]]
name = "slice_us"
type = "u32"
unit = "us"
min = 100
max = 100000
default = 5000
effect = "Longer turns."

[[tunables]]
name = "eager"
type = "bool"
unit = "none"
min = 0
max = 1
default = true
effect = "Wakes at once."
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "sample.toml").write_text(GOOD)
    (tmp_path / "sample.bpf.c").write_text("int x;\n")
    return tmp_path


def test_a_policy_is_read(folder):
    policy = load_library(folder)["sample"]
    assert policy.target_workloads == ("cpu-batch", "mixed")
    assert policy.inputs == ("history",)
    assert policy.source == folder / "sample.bpf.c"
    assert policy.configured({"slice_us": 200}) == (("eager", 1), ("slice_us", 200))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "sample"', "name = 3", "name = 3 is not of type str"),
        ('name = "sample"', 'name = "other"', "name is 'other'"),
        ('description = "One sentence."\n', "", "'description' is missing"),
        ('description = "One sentence."', 'description = ""', "description is empty"),
        ('"cpu-batch"', '"cpu-bitch"', "accepted: batch-long-tail"),
        ('"history"', '"weather"', "inputs has 'weather'"),
        ("inputs", "input", "unknown key 'input'"),
        ('type = "u32"', 'type = "int"', "tunables[0] slice_us: type has 'int'"),
        ('unit = "us"', 'unit = "hours"', "unit has 'hours'"),
        ("min = 100", "min = 1.5", "min = 1.5 is not of type int"),
        ("min = 100", "min = true", "min = True is not of type int"),
        ("min = 100", "minimum = 100", "'min' is missing"),
        ("default = 5000", "default = 50", "default 50 is not between 100 and 100000"),
        ('name = "eager"', 'name = "slice_us"', "documented twice"),
        ("[[tunables]]", "[tunables]", "not valid TOML"),
        ('algorithm = "How."', "algorithm = ", "not valid TOML"),
    ],
)
def test_every_mistake_is_named_with_its_place(folder, old, new, told):
    assert old in GOOD
    (folder / "sample.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(PolicyError) as caught:
        load_library(folder)
    assert told in str(caught.value)
    assert "sample.toml" in str(caught.value)


def test_documentation_without_source(folder):
    (folder / "sample.bpf.c").unlink()
    with pytest.raises(PolicyError, match=r"sample\.bpf\.c, which is not there"):
        load_library(folder)


def test_unknown_policy_suggests_a_close_one(folder):
    with pytest.raises(UsageError) as caught:
        find_policy("smaple", load_library(folder))
    assert "did you mean sample? there are: sample" in str(caught.value)
    assert find_policy("sample", load_library(folder)).name == "sample"


def test_file_with_and_without_documentation(folder):
    assert policy_from_file(folder / "sample.bpf.c").tunables
    bare = folder / "bare.bpf.c"
    bare.write_text("int x;\n")
    policy = policy_from_file(bare)
    assert (policy.name, policy.tunables, policy.inputs, policy.source) == ("bare", (), (), bare)


@pytest.mark.parametrize("name", ["2fast.bpf.c", "a-b.bpf.c", "notes.txt", ".bpf.c"])
def test_file_names_that_cannot_be_policy_names(folder, name):
    (folder / name).write_text("int x;\n")
    with pytest.raises(UsageError, match="does not name a policy"):
        policy_from_file(folder / name)


def test_missing_file(folder):
    with pytest.raises(UsageError, match="is not there"):
        policy_from_file(folder / "gone.bpf.c")
