"""Composed policies through every gate: a spec can say nothing that the verifier refuses.

The bench tests/bench/test_compose.py takes forty drawn specs through the gates; here is one, of as many classes as one
can have. Static gates see eighteen of them in tests/unit.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernel_bpf.policies.compose import compose
from kernel_bpf.policies.library import policy_from_file
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_local_verifier
from tests.corpus import Entry, complaint, judge
from tests.support.random_specs import drawn

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_drawn_spec_passes_every_gate(tmp_path):
    spec = max(drawn(20), key=lambda spec: len(spec.classes))
    composed = compose(spec)
    source = tmp_path / f"{spec.name}.bpf.c"
    source.write_text(composed.source)
    source.with_name(f"{spec.name}.toml").write_text(composed.toml)
    entry = Entry("correct", policy_from_file(source))
    verifier = replace(open_local_verifier(load_settings(), sign=False), topologies=())  # test_topology.py has shapes
    assert complaint(entry, judge(entry, verifier)) == ""
