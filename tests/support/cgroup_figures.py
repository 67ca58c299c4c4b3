"""How limits of cgroups hold under each policy, measured by tests/vm/guest_cgroups.py, and what they should be.

A figure is a share or a quota of CPUs; of the default scheduler it is measured in the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from kernel_bpf.policies.library import load_library
from schedagent.core.policies.policy import CGROUP_LIMITS, CGROUP_WEIGHTS
from schedagent.core.settings import Settings
from tests.support.in_guest import told_inside
from tests.support.paths import FIXTURES
from verifier.microvm.kernels import default_kernel

RECORDED = FIXTURES / "figures" / "cgroup_limits.json"
"""What `make bench-limits` measured last; VERIFIER.md shows it."""

DEFAULT = "default"
POLICIES = ("fair",)
IGNORES = "fifo"
TIMEOUT_S = 500

Figures = Mapping[str, Mapping[str, float]]
"""Policy -> limit -> what was measured."""

WEIGHTS: Mapping[str, float] = {
    "10:1000": 100.0,
    "100:200 below": 2.0,
    "10 changed to 500": 2.0,
    "cpu.idle": 1.0,
    "100:200 among 200": 2.0,
    "100:300 after others": 3.0,
}
LIMITS: Mapping[str, float] = {
    "20 %": 0.2,
    "20 % changed to 50 %": 0.5,
    "50 % changed to none": 1.0,
    "150 %": 1.5,
    "30 % below 150 %": 0.3,
    "20 % after others": 0.2,
}
WANTED: Mapping[str, float] = {**WEIGHTS, **LIMITS}

WEIGHTS_BOUND, LIMITS_BOUND = 0.2, 0.1


def bound(limit: str) -> float:
    """By what part a figure may be off."""
    return WEIGHTS_BOUND if limit in WEIGHTS else LIMITS_BOUND


def deviation(limit: str, figure: float) -> float:
    """By what part a figure is off."""
    part = figure / WANTED[limit]
    return max(part, 1 / part) - 1 if part > 0 else float("inf")


def keeps(policy: str, limit: str) -> bool:
    """Whether a policy claims that it keeps a limit."""
    word = CGROUP_WEIGHTS if limit in WEIGHTS else CGROUP_LIMITS
    return policy == DEFAULT or word not in load_library()[policy].declares


def measure(settings: Settings, folder: Path, policies: Sequence[str] = POLICIES) -> Figures:
    """Measure the default scheduler and policies in one machine; their objects go into the folder."""
    kernel = default_kernel(settings)
    target = prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
    words = [DEFAULT]
    for name in policies:
        path = folder / f"{name}.o"
        path.write_bytes(compile_policy(load_library()[name].source, name, target).object_bytes)
        words.append(f"{name}={path}")
    figures: Figures = told_inside(settings.cache_dir, kernel, "guest_cgroups.py", *words, timeout_s=TIMEOUT_S)
    return figures


def recorded() -> Figures:
    """Return what was measured last."""
    figures: Figures = json.loads(RECORDED.read_text(encoding="utf-8"))
    return figures


def rows(figures: Figures) -> Iterator[tuple[str, ...]]:
    """Yield a line for each limit: what it should be, the default scheduler's figure and those of the policies."""
    for limit, wanted in WANTED.items():
        yield limit, f"{wanted:g}", *(_cell(policy, limit, each[limit]) for policy, each in figures.items())


def _cell(policy: str, limit: str, figure: float) -> str:
    return f"{figure:.3g}" + ("" if keeps(policy, limit) else " (not kept)")
