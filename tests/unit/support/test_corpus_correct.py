"""The correct corpus: listed, named alike everywhere, compiling without a warning, in at least 22 styles."""

import re
import tomllib

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.load.bpf_object import BpfObject
from kernel_bpf.load.exit_info import ExitRecord
from kernel_bpf.policies.library import policy_from_file
from schedagent.core.settings import load_settings
from tests.mutation.__main__ import CORPUS

LISTED = tomllib.loads((CORPUS / "corpus.toml").read_text())["policy"]
SOURCES = sorted(CORPUS.glob("*.bpf.c"))


@pytest.fixture(scope="module")
def target(real_target):
    return real_target


def test_every_policy_is_listed_once_with_a_style_of_its_own():
    assert [entry["file"] for entry in LISTED] == [source.name for source in SOURCES]
    assert len({entry["style"] for entry in LISTED}) == len(LISTED) >= 22
    assert all(entry["sentence"].endswith(".") for entry in LISTED)


def test_list_and_documentation_say_the_same():
    for entry in LISTED:
        assert policy_from_file(CORPUS / entry["file"]).description == entry["sentence"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name.removesuffix(".bpf.c"))
def test_policy_is_what_it_says(source, target):
    info = policy_from_file(source)
    text = source.read_text()
    assert re.match(r"/\* SPDX-License-Identifier: GPL-2.0-only \*/\n/\*\n \* " + info.name + ": ", text)
    assert all(f"\n * {part}: " in text for part in ("Goal", "Algorithm", "Loses"))
    artifact = compile_policy(source, info.name, target, cache_dir=load_settings().cache_dir)
    assert artifact.log == "", "compiles without warnings"
    with BpfObject.open(artifact.object_bytes, info.name) as opened:
        found = {tunable: opened.tunable_value(tunable) for tunable in opened.tunables()}
        assert found == {tunable.name: tunable.default for tunable in info.tunables}
        assert list(opened.struct_ops()) == [info.name], "the ops map carries the policy's name"
        assert ExitRecord.find(opened) is not None
    assert set(re.findall(r"^\t\.\w+ = \(void \*\)(\w+)", text, re.M)) <= set(re.findall(rf"\b{info.name}_\w+", text))
