"""Rule 32: who has to declare what, and that our own policies declare exactly what they go by."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import KernelTarget
from kernel_bpf.policies.compose import compose
from kernel_bpf.policies.library import load_library, policy_from_file
from schedagent.core.policies.policy import READABLE, PolicyInfo, Standing
from schedagent.core.policies.spec import PolicySpec
from schedagent.core.rules import FindingClass
from schedagent.core.settings import load_settings
from schedagent.core.verification import Severity
from tests.mutation.__main__ import CORPUS
from tests.support.random_specs import drawn
from tests.support.taint_cases import case, images
from verifier.logic.checks import check_logic
from verifier.logic.taint.limits import kept_functions
from verifier.logic.taint.rule import findings, inputs_of
from verifier.object.image import BpfImage
from verifier.object.reader import read_object
from verifier.submission import accepted_limits

VICTIMS = case("victims", "uid", "INSERT(IN(p)->cred->uid.val == 1000 ? 8 : SHARED);")
HIDDEN = case("hidden", "", "INSERT(IN(p)->exit_code ? 8 : SHARED);")
BIT = case("bit", "", "INSERT(SHARED + (enq_flags >> 40 & 1));")
CASES = (VICTIMS, HIDDEN, BIT)
SPECS = drawn(18)
CORRECT = sorted(CORPUS.glob("*.bpf.c"))


@pytest.fixture(scope="module")
def victims() -> BpfImage:
    return images(CASES)["victims"]


def test_what_a_derived_policy_does_not_declare_is_an_error(victims: BpfImage) -> None:
    (finding,) = findings(victims, Standing.DERIVED, ())
    assert (finding.rule, finding.severity, finding.finding_class) == (32, Severity.ERROR, FindingClass.UNSAFE)
    assert finding.message == "uid decides which queue a task enters, and the policy does not declare to go by it"
    assert finding.where == "victims_enqueue"
    assert finding.line > 0
    assert finding.path[0].text == "uid is looked at"


def test_what_is_declared_is_no_finding(victims: BpfImage) -> None:
    assert findings(victims, Standing.DERIVED, {"uid"}) == ()
    assert findings(victims, Standing.DERIVED, {"gid"}) != ()


def test_it_is_only_reported_of_what_a_person_brings_and_not_of_our_own(victims: BpfImage) -> None:
    assert [finding.severity for finding in findings(victims, Standing.FOREIGN, ())] == [Severity.NOTE]
    assert findings(victims, Standing.BUNDLED, ()) == ()


def test_what_is_no_input_cannot_be_declared() -> None:
    (finding,) = findings(images(CASES)["hidden"], Standing.DERIVED, READABLE)
    assert finding.message == "kernel memory that no policy may go by decides which queue a task enters"


def test_who_decides_by_a_bit_is_advised_to_branch_on_it() -> None:
    (finding,) = findings(images(CASES)["bit"], Standing.DERIVED, READABLE)
    assert finding.message == (
        "a flag or an error code decides which queue a task enters without a branch, which no proof sees taken:"
        " branch on it"
    )


def test_the_logic_gate_asks_it(victims: BpfImage) -> None:
    declared = check_logic(victims, frozenset(), reads=("uid",)).findings
    silent = check_logic(victims, frozenset()).findings
    assert [finding.rule for finding in declared].count(32) == 0
    assert [finding.rule for finding in silent].count(32) == 1


def test_a_flow_that_does_not_settle_is_an_error(victims: BpfImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.logic.taint.flow.OPERATION_LIMIT", 10)
    (finding,) = findings(victims, Standing.DERIVED, READABLE)
    assert "is not decided" in finding.message


def _image(info: PolicyInfo, target: KernelTarget) -> BpfImage:
    artifact = compile_policy(info.source, info.name, target, cache_dir=load_settings().cache_dir)
    return read_object(artifact.object_bytes)


def _kept(image: BpfImage, target: KernelTarget) -> frozenset[str]:
    """The code of cgroups' limits, which is taken as a whole."""
    return kept_functions(image, accepted_limits(target, load_settings().cache_dir))


@pytest.mark.parametrize("info", load_library().values(), ids=lambda info: info.name)
def test_a_bundled_policy_declares_exactly_what_it_goes_by(info: PolicyInfo, real_target: KernelTarget) -> None:
    image = _image(info, real_target)
    assert inputs_of(image, _kept(image, real_target)) == info.reads


@pytest.mark.parametrize("source", CORRECT, ids=lambda source: source.name.removesuffix(".bpf.c"))
def test_a_correct_policy_goes_by_nothing_else(source, real_target: KernelTarget) -> None:
    info = policy_from_file(source)
    assert inputs_of(_image(info, real_target)) == info.reads


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_composed_policy_goes_by_nothing_else(spec: PolicySpec, real_target: KernelTarget, tmp_path) -> None:
    composed = compose(spec)
    (tmp_path / f"{spec.name}.toml").write_text(composed.toml)
    source = tmp_path / f"{spec.name}.bpf.c"
    source.write_text(composed.source)
    info = policy_from_file(source)
    image = _image(info, real_target)
    assert set(inputs_of(image, _kept(image, real_target))) <= set(info.reads)


def test_the_order_of_what_is_met_is_that_of_the_list(victims: BpfImage) -> None:
    assert inputs_of(victims) == ("uid",)
    assert inputs_of(replace(victims, functions={})) == ()
