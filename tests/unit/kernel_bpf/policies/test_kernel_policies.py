"""Every bundled policy is what its documentation says, checked on the object compiled for the newest kernel at hand."""

import re

import pytest

from kernel_bpf import BPF
from kernel_bpf.build.compile import compile_policy
from kernel_bpf.load.bpf_object import BpfObject
from kernel_bpf.load.exit_info import ExitRecord
from kernel_bpf.load.sched_ext import CLASSES_MAP, HISTORY_MAP, _find_ops
from kernel_bpf.policies.library import POLICIES, load_library

INPUT_MAPS = {"history": HISTORY_MAP, "classes": CLASSES_MAP}
HASH_MAP = 1  # enum bpf_map_type
DEFINITION = re.compile(
    r"^(?:static|__noinline) [\w *]+?\b(\w+)\(|^\} (\w+) SEC|^struct (\w+) \{|^#define (\w+)"
    r"|^u64 (\w+)(?:\[.*\])?(?: =|;)",
    re.MULTILINE,
)
SOURCES = sorted(path.name.removesuffix(".bpf.c") for path in POLICIES.glob("*.bpf.c"))


@pytest.fixture(scope="module")
def target(real_target):
    return real_target


def test_every_source_is_documented_and_there_are_seven():
    assert list(load_library()) == SOURCES
    assert len(SOURCES) >= 7


@pytest.mark.parametrize("name", SOURCES)
def test_documentation_agrees_with_the_compiled_policy(name, target):
    policy = load_library()[name]
    artifact = compile_policy(policy.source, name, target)
    assert artifact.log == "", "compiles without warnings"
    with BpfObject.open(artifact.object_bytes, name) as opened:
        in_source = {
            tunable: (variable.integer.name, opened.tunable_value(tunable))
            for tunable, variable in opened.tunables().items()
        }
        assert in_source == {tunable.name: (tunable.type, tunable.default) for tunable in policy.tunables}
        opened.set_tunables({tunable.name: tunable.minimum for tunable in policy.tunables})
        opened.set_tunables({tunable.name: tunable.maximum for tunable in policy.tunables})
        inputs = {name for name, map_name in INPUT_MAPS.items() if opened.find_map(map_name)}
        assert inputs == set(policy.inputs)
        assert _find_ops(opened).name == name, "the ops map carries the policy's name"
        assert ExitRecord.find(opened) is not None
        hash_maps = {name for _, name, kind in opened.maps() if kind == HASH_MAP}
        assert hash_maps == {INPUT_MAPS[name] for name in policy.inputs}, "no policy reads a map that nobody fills"


def defined(path):
    """The functions, maps, structs and macros that a file of BPF C defines."""
    return {name for match in DEFINITION.findall(path.read_text()) for name in match if name}


@pytest.mark.parametrize("name", SOURCES)
def test_policies_use_the_headers_instead_of_repeating_them(name):
    """longest_first, layered and interactive each had their own copy of a header or two."""
    headers = {path.name: defined(path) for path in sorted((BPF / "include").glob("*.h"))}
    assert {"remaining_ns", "task_history", "HISTORY_MAX", "longest_ns"} <= headers["history.bpf.h"]
    own = defined(POLICIES / f"{name}.bpf.c")
    assert {header: own & names for header, names in headers.items() if own & names} == {}
