"""How far good policies stay from the bounds of the proving ground, and how long a proof takes."""

from __future__ import annotations

import time
from collections import defaultdict

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from kernel_bpf.policies.library import load_library
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_lab
from verifier.lab.vm import LabPolicy
from verifier.proving.prove import ORACLES, Depth

pytestmark = [pytest.mark.bench, pytest.mark.vm, pytest.mark.timeout(1800)]

ROUNDS = 3


def test_bundled_policies_keep_their_distance_from_every_bound():
    """The worst of three rounds over all bundled policies; oracles that a policy declares out do not count."""
    lab, settings = open_lab(load_settings()), load_settings()
    target = prepare_target(lab.kernel.vmlinuz, lab.kernel.release, settings.cache_dir)
    worst, seconds = defaultdict(list), []
    for policy in list(load_library().values()) * ROUNDS:
        candidate = CandidatePolicy(policy.name, policy.configured({}))
        artifact = compile_policy(policy.source, policy.name, target, cache_dir=settings.cache_dir)
        started = time.monotonic()
        answer = lab.prove(LabPolicy(candidate, artifact), Depth.STANDARD)
        seconds.append(time.monotonic() - started)
        assert answer.exit_text == "", policy.name
        for result in answer.results:
            if result["name"] not in policy.declares:
                worst[result["name"]].append((result["measured"], policy.name))
    print(f"\none proof takes {min(seconds):.1f} to {max(seconds):.1f} s")
    for name, info in ORACLES.items():
        figure, policy = max(worst[name], default=(0.0, "nobody was measured"))
        runs = f"{policy}, {len(worst[name])} runs"
        print(f"{name:24} bound {info.bound:5.2f} {info.unit:6} worst {figure:6.3f} ({runs})")
    assert all(figure <= ORACLES[name].bound for name, figures in worst.items() for figure, _policy in figures)
