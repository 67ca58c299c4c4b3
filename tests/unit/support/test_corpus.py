"""The corpus of broken policies is complete, and each of them a whole policy but for its one mistake."""

import tomllib
from collections import Counter

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.load.bpf_object import BpfObject
from kernel_bpf.policies.library import policy_from_file
from schedagent.core.rules import ATTACH, COMPILE, GATES, KERNEL, LOGIC, OVERHEAD, PROVING, RULES, SOURCE
from schedagent.core.settings import load_settings
from tests.support.paths import FIXTURES

FOLDER = FIXTURES / "policies" / "broken"
CORPUS = tomllib.loads((FOLDER / "corpus.toml").read_text())["policy"]
NAMES = [entry["file"].removesuffix(".bpf.c") for entry in CORPUS]

OFTEN = (2, 4, 5, 6, 17, 18, 19, 20, 22, 24, 27, 28, 29, 32, 33)
"""Rules that are broken most, and worst."""


@pytest.fixture(scope="module")
def settings():
    return load_settings()


@pytest.fixture(scope="module")
def target(real_target):
    return real_target


def test_lists_every_file_once():
    files = {path.name for path in FOLDER.glob("*.bpf.c")}
    assert Counter(entry["file"] for entry in CORPUS) == Counter(files)
    documented = {path.stem for path in FOLDER.glob("*.toml")} - {"corpus"}
    assert documented <= set(NAMES)


def test_is_large_and_breaks_every_rule_the_important_ones_often():
    assert len(CORPUS) >= 150
    broken = Counter(entry["rule"] for entry in CORPUS)
    assert set(broken) == set(RULES)
    assert sum(entry.get("derived", False) for entry in CORPUS) >= 40, "written by somebody who means harm"
    assert [rule for rule in OFTEN if broken[rule] < 3] == []


def test_holds_policies_for_every_layer():
    gates = Counter(entry["gate"] for entry in CORPUS)
    assert gates[LOGIC] >= 40
    assert gates[PROVING] + gates[OVERHEAD] >= 15
    assert min(gates[OVERHEAD], gates[KERNEL], gates[SOURCE]) > 0
    assert gates[COMPILE] == gates[ATTACH] == 0


@pytest.mark.parametrize("entry", CORPUS, ids=NAMES)
def test_entry_names_a_gate_and_an_oracle_of_the_rule(entry):
    rule = RULES[entry["rule"]]
    assert entry["gate"] in GATES
    assert entry["mistake"]
    assert ("oracle" in entry) == (entry["gate"] in (PROVING, OVERHEAD) and bool(rule.checks))
    assert entry.get("oracle") in (None, *rule.checks)
    # one of the rule's own gates, or one behind it, would be too late
    assert GATES.index(entry["gate"]) <= max(GATES.index(gate) for gate in rule.gates)


@pytest.mark.parametrize("entry", CORPUS, ids=NAMES)
def test_header_says_what_is_broken(entry):
    source = (FOLDER / entry["file"]).read_text()
    name = entry["file"].removesuffix(".bpf.c")
    header = source.partition("*/\n/*")[2].partition("*/")[0]
    assert header.strip().startswith(f"* {name}: ")
    assert f"Broken on purpose, rule {entry['rule']}: " in header
    assert f'.name = "{name}"' in source


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_warnings_to_one_scheduler_of_its_name(name, target, settings):
    info = policy_from_file(FOLDER / f"{name}.bpf.c")
    artifact = compile_policy(info.source, name, target, cache_dir=settings.cache_dir)
    assert artifact.log == ""
    with BpfObject.open(artifact.object_bytes, name) as opened:
        assert name in opened.struct_ops()
        defaults = {tunable.name: tunable.default for tunable in info.tunables}
        assert {tunable: opened.tunable_value(tunable) for tunable in defaults} == defaults
