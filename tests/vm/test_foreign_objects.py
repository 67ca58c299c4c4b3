"""Objects as the field builds them, loaded by a real kernel: sx_pages of tests/fixtures/foreign."""

from dataclasses import replace

import pytest

from kernel_bpf.policies.library import policy_from_file
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.policies.rodata import load_rodata
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_local_verifier
from tests.support.paths import FIXTURES
from verifier.lab.vm import LabPolicy
from verifier.proving.identity import NOTHING_WORN
from verifier.submission import build

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

FOREIGN = FIXTURES / "foreign"


def test_a_kernel_loads_two_sources_with_an_arena_its_configuration_and_a_loaders_values():
    verifier = open_local_verifier(load_settings(), sign=False)
    info = replace(
        policy_from_file(FOREIGN / "sx_pages.bpf.c"),
        parts=(FOREIGN / "parts/pages.bpf.c",),
        rodata=load_rodata(FOREIGN / "sx_pages_loader.toml"),
    )
    artifact = build(info, verifier.target, (FOREIGN / "parts",), verifier.cache_dir)
    cell = verifier.benches[0].ground.cell(LabPolicy(CandidatePolicy(info.name), artifact, NOTHING_WORN, ()))
    try:
        assert set(cell.load().programs) == {"sx_pages_enqueue", "sx_pages_init"}
    finally:
        cell.close()
